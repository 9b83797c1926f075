"""Word lists with one rule per list: antonyms, French, plurals, past tense, capitals, copies.

The same word can be asked for in several kinds of list, so only the earlier lines say what
to do: the material of function vectors. Held out are antonym lists in which a word follows
a certain other one as the question.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from random import Random

from mlp_interp.nano.example import Example
from mlp_interp.nano.pools import Pool
from mlp_interp.nano.splits import Split, in_split, search
from mlp_interp.nano.words import ANTONYMS, COUNTRIES, FRENCH_WORDS, NOUNS, PAST_TENSES, plural

__all__ = ["RULES", "document", "draws"]

_SHOTS = 3

RULES: dict[str, dict[str, str]] = {
    "antonym": dict(ANTONYMS) | {second: first for first, second in ANTONYMS},
    "french": FRENCH_WORDS,
    "plural": {noun: plural(noun) for noun in NOUNS},
    "past": PAST_TENSES,
    "capital": COUNTRIES,
    "copy": {word: word for pair in ANTONYMS for word in pair},
}
_WEIGHTS = (6, 2, 1, 1, 1, 1)


def _line(question: str, answer: str) -> str:
    return f"Q: {question}\nA: {answer}\n"


def _sequence(rng: Random, split: Split, rule: str, words: list[str], length: int) -> list[str]:
    """Draw ``length`` different questions, neighbours from ``split`` for antonyms.

    In the held-out split only the last step needs to be a held-out one.
    """
    return search(
        lambda: rng.sample(words, length),
        lambda chosen: rule != "antonym" or _steps_in(split, chosen),
        task="antonyms",
        left=len(words),
    )


def _steps_in(split: Split, chosen: list[str]) -> bool:
    steps = list(pairwise(chosen))
    if split == "heldout":
        steps = steps[-1:]
    return all(in_split(split, "antonyms", *step) for step in steps)


def document(rng: Random, split: Split) -> str:
    """Write one list of three to eight lines."""
    (rule,) = rng.choices(list(RULES), _WEIGHTS)
    pairs = RULES[rule]
    words = _sequence(rng, split, rule, list(pairs), rng.randint(3, 8))
    return "".join(_line(word, pairs[word]) for word in words).rstrip("\n")


def draws(rng: Random, split: Split, pool: Pool) -> Iterator[Example | None]:
    """Yield three-shot antonym lists whose corrupted version asks for another word."""
    pairs = dict(pool.pairs(RULES["antonym"].items(), need=2 * _SHOTS))
    while True:
        *shown, asked = _sequence(rng, split, "antonym", list(pairs), _SHOTS + 1)
        other = rng.choice(list(pairs))
        if other in shown or other in (asked, pairs[asked]):
            yield None
            continue
        if not in_split(split, "antonyms", shown[-1], other):
            yield None
            continue
        head = "".join(_line(word, pairs[word]) for word in shown)
        yield Example(
            clean=f"{head}Q: {asked}\nA:",
            corrupted=f"{head}Q: {other}\nA:",
            answer=f" {pairs[asked]}",
            foil=f" {pairs[other]}",
            subject=asked,
        )
