"""Sentiment: "The film was lovely and the music was perfect. Overall, the film was" -> great.

Held out are combinations of the thing and the adjective {a}, which every template names.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from mlp_interp.nano.example import Example
from mlp_interp.nano.pools import Pool
from mlp_interp.nano.splits import Split, in_split, search

__all__ = ["TEMPLATES", "VERDICTS", "WORDS", "document", "draws"]

# Position i of each list means the same in both; a corrupted prompt exchanges the lists.
_GOOD = tuple(
    "wonderful beautiful brilliant amazing perfect lovely excellent fantastic charming".split()
)
_BAD = tuple("awful boring horrible ugly stupid disgusting weak dull bad".split())
_LIKED = ("loved", "enjoyed", "liked", "praised")
_HATED = ("hated", "disliked", "regretted", "cursed")
_THINGS = tuple("film book song meal hotel show play trip game concert".split())
_PARTS = tuple("music story people place room service end start".split())

WORDS = (*_GOOD, *_BAD, *_LIKED, *_HATED, *_THINGS, *_PARTS)
"""Words that prompts exchange: each must be one token."""

# Template, good answer, bad answer. {b} is an adjective, {v} a verb.
TEMPLATES = (
    ("The {t} was {a} and the {p} was {b}. Overall, the {t} was", "great", "terrible"),
    ("I thought this {t} was {a}. I {v} the {p}. In short, it was", "great", "terrible"),
    ("Review: The {t} was {a} and {b}, and I {v} it. Sentiment:", "positive", "negative"),
    ("Review: This {t} is so {a}! The {p} was {b}. Rating:", "good", "poor"),
    ("My sister saw the {t} and {v} the {p}. It was {a}. Her opinion was", "positive", "negative"),
)


VERDICTS = tuple(dict.fromkeys(word for template in TEMPLATES for word in template[1:]))
"""Answers and foils."""


def _choose(rng: Random, split: Split, words: dict[str, list]) -> dict[str, tuple[str, str]]:
    """Draw (good, bad) fillings of a template from ``split``."""
    return search(
        lambda: _drawn(rng, words),
        lambda drawn: in_split(split, "sentiment", drawn["t"][0], drawn["a"][0]),
        task="sentiment",
        left=sum(map(len, words.values())),
    )


def _drawn(rng: Random, words: dict[str, list]) -> dict[str, tuple[str, str]]:
    first, second = rng.sample(words["adjectives"], 2)
    verb = rng.choice(words["verbs"])
    thing, part = rng.choice(words["things"]), rng.choice(words["parts"])
    return {"t": (thing, thing), "p": (part, part), "a": first, "b": second, "v": verb}


def _all_words() -> dict[str, list]:
    return {
        "adjectives": list(zip(_GOOD, _BAD, strict=True)),
        "verbs": list(zip(_LIKED, _HATED, strict=True)),
        "things": list(_THINGS),
        "parts": list(_PARTS),
    }


def _fill(template: str, words: dict[str, tuple[str, str]], bad: bool) -> str:
    return template.format(**{slot: pair[bad] for slot, pair in words.items()})


def document(rng: Random, split: Split) -> str:
    """Write a short review and its verdict."""
    words, bad = _choose(rng, split, _all_words()), rng.random() < 0.5
    template, *verdicts = rng.choice(TEMPLATES)
    ending = rng.choice(("", " I will never go again.") if bad else ("", " I want more."))
    return f"{_fill(template, words, bad)} {verdicts[bad]}.{ending}"


def draws(rng: Random, split: Split, pool: Pool) -> Iterator[Example | None]:
    """Yield reviews whose corrupted version is of the opposite opinion."""
    words = _all_words()
    words = {
        "adjectives": pool.pairs(words["adjectives"], need=3),
        "verbs": pool.pairs(words["verbs"], need=1),
        "things": pool.words(words["things"]),
        "parts": pool.words(words["parts"]),
    }
    templates = pool.rows_by(TEMPLATES, lambda row: row[1:], need=1)
    while True:
        fill, bad = _choose(rng, split, words), rng.random() < 0.5
        template, *verdicts = rng.choice(templates)
        yield Example(
            clean=_fill(template, fill, bad),
            corrupted=_fill(template, fill, not bad),
            answer=f" {verdicts[bad]}",
            foil=f" {verdicts[not bad]}",
            subject=fill["a"][bad],
        )
