"""What a `Contrast` refuses, each with one clear error."""

from typing import Any

import torch
from torch import Tensor

__all__ = ["check_lengths", "check_pairs", "check_sets", "check_tensors", "check_whole"]


def check_tensors(contrast: Any) -> None:
    """Refuse tensors that are not token ids of matching shapes.

    Raises:
        ValueError: One is not integer, is empty, or has another shape than the clean tokens say.
    """
    clean = contrast.clean_tokens
    if not isinstance(clean, Tensor) or clean.ndim != 2:
        raise ValueError(f"clean_tokens={_shape(clean)}; wanted a tensor [prompt, pos]")
    if clean.numel() == 0:
        raise ValueError(
            f"clean_tokens={_shape(clean)} is empty; wanted at least one prompt with one token"
        )
    shapes = {
        "clean_tokens": clean.shape,
        "corrupted_tokens": clean.shape,
        "answers": clean.shape[:1],
        "foils": clean.shape[:1],
    }
    for name, shape in shapes.items():
        tensor = getattr(contrast, name)
        if not isinstance(tensor, Tensor) or tensor.shape != shape:
            raise ValueError(
                f"{name}={_shape(tensor)}; wanted shape {tuple(shape)}, as clean_tokens is "
                f"{tuple(clean.shape)}"
            )
        if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
            raise ValueError(f"{name} is {tensor.dtype}; wanted integer token ids")
        if bool((tensor < 0).any()):
            raise ValueError(f"{name} holds {int(tensor.min())}; wanted token ids from 0")
    subject = contrast.subject
    if subject is not None and (subject.dtype != torch.bool or subject.shape != clean.shape):
        raise ValueError(
            f"subject={_shape(subject)} of {subject.dtype}; wanted booleans {tuple(clean.shape)}"
        )


def check_lengths(contrast: Any) -> None:
    """Refuse lengths that are none of these prompts.

    Raises:
        ValueError: Not one integer for each prompt, below 1, or the longest is not as long as the
            tokens are.
    """
    lengths, clean = contrast.lengths, contrast.clean_tokens
    if lengths is None or not isinstance(clean, Tensor) or clean.ndim != 2:
        return
    whole = isinstance(lengths, Tensor) and not (
        lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool
    )
    if not whole or lengths.shape != clean.shape[:1]:
        raise ValueError(
            f"lengths={_shape(lengths)}; wanted one integer for each of {len(clean)} prompts"
        )
    if int(lengths.min()) < 1 or int(lengths.max()) != clean.shape[1]:
        raise ValueError(
            f"lengths={lengths.tolist()}; wanted integers from 1, the largest of them "
            f"{clean.shape[1]} as clean_tokens is {tuple(clean.shape)}"
        )
    for name in ("corrupted_tokens", "subject"):
        tensor = getattr(contrast, name)
        if isinstance(tensor, Tensor) and tensor.shape != clean.shape:
            raise ValueError(
                f"{name}={_shape(tensor)}; wanted shape {tuple(clean.shape)}, as clean_tokens is"
            )


def check_pairs(contrast: Any) -> None:
    """Refuse pairs that do not contrast.

    Raises:
        ValueError: A prompt's answer is its foil, or its clean and corrupted tokens are the same.
    """
    same = (contrast.answers == contrast.foils).nonzero()
    if len(same):
        prompt = int(same[0])
        answer, foil = contrast.answer_text[prompt], contrast.foil_text[prompt]
        if answer != foil:
            raise ValueError(
                f"prompt {prompt}: answer {answer!r} and foil {foil!r} begin with the same token; "
                "wanted first tokens that differ, which is what attribution reads"
            )
        raise ValueError(
            f"prompt {prompt}: answer and foil are the same token {answer!r}; wanted two"
        )
    same = (~contrast.differs.any(-1)).nonzero()
    if len(same):
        prompt = int(same[0])
        raise ValueError(
            f"prompt {prompt}: clean and corrupted are the same tokens "
            f"{contrast.clean_text[prompt]!r}; wanted at least one to differ"
        )


def check_whole(contrast: Any) -> None:
    """Refuse whole answers and foils that do not begin with the single tokens.

    Raises:
        ValueError: Not one for each prompt, or one that begins otherwise.
    """
    for name, single in (("answer_tokens", "answers"), ("foil_tokens", "foils")):
        whole, ids = getattr(contrast, name), getattr(contrast, single).tolist()
        if [list(tokens[:1]) for tokens in whole] != [[token] for token in ids]:
            raise ValueError(f"{name}={whole}; wanted tokens of each prompt from {single}={ids} on")


def check_sets(contrast: Any) -> None:
    """Refuse sets of answers and foils that do not go with the single ones.

    Raises:
        ValueError: Not one set per prompt, a set without the answer (foil), or a token in both.
    """
    for sets, single in (("all_answers", "answers"), ("all_foils", "foils")):
        held, ids = getattr(contrast, sets), getattr(contrast, single).tolist()
        if len(held) != len(ids):
            raise ValueError(f"{sets} has {len(held)} entries; wanted one for each of {len(ids)}")
        for prompt, (tokens, token) in enumerate(zip(held, ids, strict=True)):
            if token not in tokens:
                raise ValueError(
                    f"prompt {prompt}: {sets}={tokens} lacks token {token} of {single}"
                )
    for prompt, (right, wrong) in enumerate(
        zip(contrast.all_answers, contrast.all_foils, strict=True)
    ):
        if both := set(right) & set(wrong):
            raise ValueError(
                f"prompt {prompt}: tokens {sorted(both)} are in all_answers and in all_foils"
            )


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
