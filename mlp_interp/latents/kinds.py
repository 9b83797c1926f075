"""Texts by kind: which is of which, and the half of each kind that chooses."""

from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["halves", "kinds_of"]


def kinds_of(texts: Mapping[str, Sequence[str]]) -> np.ndarray:
    """The kind of each text, by number.

    Raises:
        ValueError: Fewer than two kinds, or fewer than four texts of one.
    """
    if len(texts) < 2:
        raise ValueError(f"texts has {len(texts)} kinds; wanted two or more")
    for name, some in texts.items():
        if isinstance(some, str) or len(some) < 4:
            raise ValueError(f"texts[{name!r}] has {len(some)} texts; wanted a list of 4 or more")
    return np.repeat(np.arange(len(texts)), [len(some) for some in texts.values()])


def halves(kinds: np.ndarray, seed: int) -> np.ndarray:
    """True for the half of each kind's texts that choose."""
    order = np.random.default_rng(seed)
    chooses = np.zeros(len(kinds), dtype=bool)
    for kind in np.unique(kinds):
        own = order.permutation(np.flatnonzero(kinds == kind))
        chooses[own[: len(own) // 2]] = True
    return chooses
