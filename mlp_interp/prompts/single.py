"""Tokens that somebody names, one for each prompt."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from mlp_interp.models import Weights
from mlp_interp.prompts.tokenizing import single_token, tokenizer_of

__all__ = ["one_each", "token_id"]


def token_id(weights: Weights, token: Any, *, name: str) -> int:
    """The id of one token, given by it or by a word that is one token.

    Args:
        weights: The model's.
        token: An integer of Python, numpy or torch, or a text.
        name: Of the argument, for the error.

    Raises:
        ValueError: It is neither, no single token, or outside the vocabulary; ids below 0, which
            often stand for no token, are outside.
    """
    if isinstance(token, str):
        return single_token(tokenizer_of(weights.model), token, what=name)
    number = token.tolist() if hasattr(token, "tolist") else token
    if type(number) is not int or not 0 <= number < weights.d_vocab:
        raise ValueError(
            f"{name}={number!r}; wanted a token id from 0 to {weights.d_vocab - 1}, or a word of "
            "one token"
        )
    return number


def one_each(weights: Weights, tokens: Any, n: int, name: str) -> Int[Tensor, " prompt"]:
    """One token for each of some prompts: ids, or words that are one token.

    Args:
        weights: The model's.
        tokens: One for all prompts, or one for each.
        n: How many prompts there are.
        name: Of the argument, for the error.

    Raises:
        ValueError: They are not one each, or outside the vocabulary.
    """
    listed = tokens.tolist() if isinstance(tokens, Tensor | np.ndarray) else tokens
    single = isinstance(listed, int | str)
    if not single and not isinstance(listed, Sequence):
        raise ValueError(f"{name}={tokens!r}; wanted token ids or single-token strings")
    many = [listed] * n if single else list(listed)
    for token in many:
        if isinstance(token, bool) or not isinstance(token, int | str | np.integer):
            raise ValueError(
                f"{name} holds {token!r}; wanted integer token ids or single-token strings"
            )
    if len(many) != n:
        raise ValueError(f"{name} has {len(many)} tokens for {n} prompts; wanted one each, or one")
    ids = [
        single_token(tokenizer_of(weights.model), token, what=name)
        if isinstance(token, str)
        else int(token)
        for token in many
    ]
    if any(not 0 <= i < weights.d_vocab for i in ids):
        raise ValueError(f"{name}={ids} has ids outside the vocabulary of {weights.d_vocab}")
    return torch.tensor(ids, device=weights.device)
