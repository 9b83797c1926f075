"""Tokens on which the package compares what it computes with what the model computes."""

import torch
from jaxtyping import Int
from torch import Tensor

from mlp_interp.models.weights import Weights

__all__ = ["probe_tokens"]

_TEXT = (
    "The capital of France is Paris. When Mary and John went to the store, John gave a drink to "
    "Mary; 17 of them said: never again!"
)


def probe_tokens(
    weights: Weights, *, length: int = 32, seed: int = 0
) -> Int[Tensor, "sequence pos"]:
    """Two fixed sequences, a text's and random tokens; both random for a model without tokenizer.

    The text goes through the streams that real text does: models have tokens and positions at which
    their streams are a hundred times as large as elsewhere.

    Args:
        weights: The model's.
        length: Tokens of each, where the context has so many.
        seed: Of the random ones.
    """
    size, length = weights.W_E.shape[0], min(length, int(weights.model.cfg.n_ctx))
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(size, (2, length), generator=generator)
    tokenizer = getattr(weights.model, "tokenizer", None)
    if tokenizer is not None:
        ids = tokenizer.encode(_TEXT, add_special_tokens=False)
        if tokenizer.bos_token_id is not None:
            ids = [tokenizer.bos_token_id, *ids]
        ids = [i for i in ids if i < size][:length]
        tokens[0, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
    return tokens.to(weights.device)
