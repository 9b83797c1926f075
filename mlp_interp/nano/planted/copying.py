"""Copying: a random list of words, part of it again; what comes next is known (induction).

Nothing is held out by word: every list is new.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from mlp_interp.nano.example import Example
from mlp_interp.nano.pools import Pool
from mlp_interp.nano.splits import Split, in_split, search
from mlp_interp.nano.words import COLOURS, NAMES, NOUNS, OBJECTS, PLACES

__all__ = ["document", "draws"]

_WORDS = tuple(dict.fromkeys(NAMES + NOUNS + OBJECTS + PLACES + COLOURS))
_LENGTH = 10
_REPEATED = 3


def _choose(rng: Random, split: Split, words: list[str], length: int) -> list[str]:
    return search(
        lambda: rng.sample(words, length),
        lambda chosen: in_split(split, "copying", *chosen),
        task="induction",
        left=len(words),
    )


def document(rng: Random, split: Split) -> str:
    """Write a list of words once or twice more."""
    words = _choose(rng, split, list(_WORDS), rng.randint(5, 14))
    start = rng.randrange(len(words) // 2)
    return "List: " + " ".join(words + words[start:] + (words if rng.random() < 0.3 else []))


def draws(rng: Random, split: Split, pool: Pool) -> Iterator[Example | None]:
    """Yield lists whose corrupted version repeats another part of the same list."""
    words = pool.words(_WORDS, need=2 * _LENGTH)
    while True:
        chosen = _choose(rng, split, words, _LENGTH)
        clean, corrupted = rng.sample(range(_LENGTH - _REPEATED), 2)
        parts = [chosen[at : at + _REPEATED + 1] for at in (clean, corrupted)]
        prompts = ["List: " + " ".join(chosen + part[:-1]) for part in parts]
        yield Example(
            clean=prompts[0],
            corrupted=prompts[1],
            answer=f" {parts[0][-1]}",
            foil=f" {parts[1][-1]}",
            subject=" ".join(parts[0][:-1]),
        )
