"""Greater-than: "The war lasted from the year 1732 to the year 17" -> any of 33 to 99.

After Hanna et al. (2023), "How does GPT-2 compute greater-than?". A year is two tokens,
the century and the two digits of the year. Held out are combinations (event, two digits).
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from mlp_interp.nano.example import Example
from mlp_interp.nano.pools import Pool, any_word
from mlp_interp.nano.splits import Split, in_split, search

__all__ = ["TEMPLATES", "document", "draws"]

TEMPLATES = (
    "The {event} lasted from the year {century}{start} to the year {century}",
    "The {event} began in {century}{start} and ended in {century}",
)
EVENTS = tuple(
    "war peace journey project voyage reign siege trial study strike conflict tour trade "
    "drought famine festival crisis career debate battle".split()
)
CENTURIES = tuple(str(century) for century in range(11, 20))
DIGITS = tuple(f"{number:02d}" for number in range(100))
# The corrupted year of the paper: after it, almost every year is valid.
_FIRST = "01"


def _choose(rng: Random, split: Split, events: list[str]) -> tuple[str, int]:
    return search(
        # From 02, so that the corrupted year is earlier; to 98, so that a year is left.
        lambda: (rng.choice(events), rng.randint(2, 98)),
        lambda drawn: in_split(split, "greater_than", *drawn),
        task="greater_than",
        left=len(events),
    )


def document(rng: Random, split: Split) -> str:
    """Write one or two spans of years, or a list of years in order."""
    century = rng.choice(CENTURIES)
    if rng.random() < 0.2:
        years = sorted(rng.sample(range(100), rng.randint(4, 8)))
        return "Years in order: " + ", ".join(f"{century}{year:02d}" for year in years) + "."
    sentences = []
    for _ in range(rng.randint(1, 2)):
        if rng.random() < 0.05:
            event, start = rng.choice(EVENTS), 1
        else:
            event, start = _choose(rng, split, list(EVENTS))
        end = rng.randint(start + 1, 99)
        text = rng.choice(TEMPLATES).format(event=event, century=century, start=f"{start:02d}")
        sentences.append(f"{text}{end:02d}.")
    return " ".join(sentences)


def _is_two_pieces(pool: Pool, century: str, year: str) -> bool:
    # Byte-pair encoding may know a whole year (" 1900") or its first three digits (" 181").
    return not pool.accept(f" {century}{year}") and not pool.accept(f" {century}{year[0]}")


def _spans(pool: Pool) -> list[tuple[str, int]]:
    """Return the (century, start) whose years a filtered pool cuts into century and digits."""
    spans = [
        (century, start) for century in pool.words(CENTURIES, need=1) for start in range(2, 99)
    ]
    if pool.accept is any_word:
        return spans
    kept = [
        (century, start)
        for century, start in spans
        if _is_two_pieces(pool, century, DIGITS[start]) and _is_two_pieces(pool, century, _FIRST)
    ]
    if len(kept) < 20:
        raise ValueError(
            f"task {pool.task!r}: accept left {len(kept)} years that are not one piece, "
            "expected at least 20"
        )
    return kept


def draws(rng: Random, split: Split, pool: Pool) -> Iterator[Example | None]:
    """Yield spans whose corrupted version starts in the year 01 of the same century.

    ``answers`` holds all later two-digit years and ``foils`` all earlier ones, the start
    itself included. ``accept`` is asked for the two digits as they stand, without a space,
    and for whole years and their first three digits, which must *not* be single tokens.
    """
    if not all(pool.accept(digits) for digits in DIGITS):
        left = sum(pool.accept(digits) for digits in DIGITS)
        raise ValueError(
            f"task {pool.task!r}: accept left {left} of {len(DIGITS)} two-digit pieces, "
            "expected all"
        )
    events = pool.words(EVENTS)
    spans = _spans(pool)
    while True:
        event, start = _choose(rng, split, events)
        centuries = [century for century, year in spans if year == start]
        if not centuries:
            yield None
            continue
        century = rng.choice(centuries)
        template = rng.choice(TEMPLATES)
        answers, foils = DIGITS[start + 1 :], DIGITS[: start + 1]
        yield Example(
            clean=template.format(event=event, century=century, start=f"{start:02d}"),
            corrupted=template.format(event=event, century=century, start=_FIRST),
            answer=rng.choice(answers),
            # Right after the corrupted year, wrong after the clean one.
            foil=rng.choice(DIGITS[int(_FIRST) + 1 : start + 1]),
            subject=f"{start:02d}",
            answers=answers,
            foils=foils,
        )
