"""Texts by kind: which is of which, and the half of each kind that chooses."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mlp_interp.models.padding import Padded
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.texts import Prompts, padded_texts, texts_of
from mlp_interp.prompts.tokenizing import decode

__all__ = ["halves", "kinds_of", "of_all_kinds"]


def kinds_of(texts: Any) -> np.ndarray:
    """The kind of each text, by number.

    Raises:
        ValueError: No texts by kind, fewer than two kinds, or fewer than four texts of one.
    """
    if not isinstance(texts, Mapping):
        raise ValueError(f"texts={type(texts).__name__}; wanted kinds of text by name, as a dict")
    if len(texts) < 2:
        raise ValueError(f"texts has {len(texts)} kinds; wanted two or more")
    for name, some in texts.items():
        several = not isinstance(some, str) and hasattr(some, "__len__")
        if not several or len(some) < 4:
            number = f"has {len(some)} texts" if several else f"is a {type(some).__name__}"
            raise ValueError(f"texts[{name!r}] {number}; wanted a list of 4 or more")
    return np.repeat(np.arange(len(texts)), [len(some) for some in texts.values()])


def of_all_kinds(model: Model, texts: Mapping[str, Prompts]) -> tuple[Padded, list[str]]:
    """The texts of all kinds in a row, without their padding, and how each reads.

    Raises:
        ValueError: They are no texts of this model.
    """
    every: list[Any] = []
    for name, some in texts.items():
        if not isinstance(some, list | tuple):  # of a tensor, rows may be padded
            some = texts_of(model, some, what=f"texts[{name!r}]").rows
        every += some
    padded, tokenizer = padded_texts(model, every), getattr(model, "tokenizer", None)
    rows = zip(every, padded.rows(), strict=True)
    said = [text if isinstance(text, str) else decode(tokenizer, row) for text, row in rows]
    return padded, said


def halves(kinds: np.ndarray, seed: int) -> np.ndarray:
    """True for the half of each kind's texts that choose."""
    order = np.random.default_rng(seed)
    chooses = np.zeros(len(kinds), dtype=bool)
    for kind in np.unique(kinds):
        own = order.permutation(np.flatnonzero(kinds == kind))
        chooses[own[: len(own) // 2]] = True
    return chooses
