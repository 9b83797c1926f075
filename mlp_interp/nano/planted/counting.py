"""Counting: "Count: 4 6 8 10" -> 12, and number words in order.

Held out are combinations (first number, step).
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from mlp_interp.nano.example import Example
from mlp_interp.nano.pools import Pool
from mlp_interp.nano.splits import Split, in_split, search
from mlp_interp.nano.words import NUMBERS

__all__ = ["document", "draws"]

_STEPS = (1, 2, 3, 5)
_SHOWN = 4
_LAST = 60


def _choose(rng: Random, split: Split, step: int, length: int) -> list[int]:
    """Draw ``length`` numbers that rise by ``step``."""
    start = search(
        lambda: rng.randint(1, _LAST - step * (length - 1)),
        lambda start: in_split(split, "counting", start, step),
        task="counting",
        left=_LAST,
    )
    return list(range(start, start + step * length, step))


def document(rng: Random, split: Split) -> str:
    """Count in figures, or in words by ones."""
    if rng.random() < 0.25:
        start, length = rng.randint(0, 13), rng.randint(4, 7)
        return "Count: " + " ".join(NUMBERS[start : start + length])
    numbers = _choose(rng, split, rng.choice(_STEPS), rng.randint(5, 9))
    return "Count: " + " ".join(map(str, numbers))


def draws(rng: Random, split: Split, pool: Pool) -> Iterator[Example | None]:
    """Yield counts whose corrupted version starts elsewhere and has the same step."""
    accepted = set(pool.words([str(number) for number in range(1, _LAST + 1)], need=20))
    while True:
        step = rng.choice(_STEPS)
        clean, corrupted = (_choose(rng, split, step, _SHOWN + 1) for _ in range(2))
        if clean == corrupted or not {*map(str, clean + corrupted)} <= accepted:
            yield None
            continue
        yield Example(
            clean="Count: " + " ".join(map(str, clean[:-1])),
            corrupted="Count: " + " ".join(map(str, corrupted[:-1])),
            answer=f" {clean[-1]}",
            foil=f" {corrupted[-1]}",
            subject=" ".join(map(str, clean[:-1])),
        )
