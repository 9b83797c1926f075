"""Which combinations of words are kept out of training.

A combination is held out by a hash of its words, so that the split needs no stored list
and is the same on every machine (Python's own ``hash`` of strings is not).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Literal, TypeVar

__all__ = ["Split", "check_split", "in_split", "search"]

T = TypeVar("T")
Split = Literal["train", "heldout"]

_ONE_IN = 8
_TRIES = 5_000


def in_split(split: Split, *key: object) -> bool:
    """Say whether the combination ``key`` belongs to ``split``; about 1 in 8 is held out."""
    text = "|".join(map(str, key))
    # The low bits of a CRC are too regular for keys this alike, so multiply and take high bits.
    mixed = (zlib.crc32(text.encode()) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    return ((mixed >> 40) % _ONE_IN == 0) == (split == "heldout")


def search(draw: Callable[[], T], fits: Callable[[T], bool], *, task: str, left: int) -> T:
    """Draw until something fits, but not for ever.

    Args:
        draw: Draws a combination.
        fits: Says whether it may be used, by its split above all.
        task: Name of the task, for the error.
        left: How many words there are to combine, for the error.

    Raises:
        ValueError: When so many draws have failed that there is surely nothing to find.
    """
    for _ in range(_TRIES):
        drawn = draw()
        if fits(drawn):
            return drawn
    raise ValueError(
        f"task {task!r}: accept left {left} words, and no combination of them is in the split "
        "asked for; expected an accept that leaves more"
    )


def check_split(split: str) -> Split:
    """Return ``split`` if it names one of the two splits.

    Raises:
        ValueError: If it does not.
    """
    if split == "train" or split == "heldout":
        return split
    raise ValueError(f"split is {split!r}, expected 'train' or 'heldout'")
