"""Subject-verb agreement: "Today the keys near the table" -> are.

The opening word fixes the tense, so that the verb is unique. In the examples the noun
nearest to the verb has the wrong number. Held out are pairs (subject, distractor).
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from mlp_interp.nano.example import Example
from mlp_interp.nano.pools import Pool
from mlp_interp.nano.splits import Split, in_split, search
from mlp_interp.nano.words import NOUNS, plural

__all__ = ["OPENINGS", "document", "draws"]

# Opening -> verb for one, verb for many.
OPENINGS = {
    "Today the": ("is", "are"),
    "Now the": ("is", "are"),
    "Yesterday the": ("was", "were"),
    "Last week the": ("was", "were"),
    "This year the": ("has", "have"),
}
_LINKS = ("near", "behind", "beside", "next to", "with", "in front of")
_AFTER_BE = ("old", "new", "here", "in the garden", "at home", "very big", "lost", "ready")
_AFTER_HAVE = ("changed a lot", "been here", "become old", "moved to the village")


def _pair(rng: Random, split: Split, nouns: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return search(
        lambda: rng.sample(nouns, 2),
        lambda pair: in_split(split, "agreement", pair[0][0], pair[1][0]),
        task="agreement",
        left=len(nouns),
    )


def document(rng: Random, split: Split) -> str:
    """Write one to three sentences; here the distractor's number is free."""
    nouns = [(noun, plural(noun)) for noun in NOUNS]
    sentences = []
    for _ in range(rng.randint(1, 3)):
        subject, distractor = _pair(rng, split, nouns)
        opening = rng.choice(list(OPENINGS))
        many = rng.random() < 0.5
        verb = OPENINGS[opening][many]
        rest = rng.choice(_AFTER_HAVE if verb in ("has", "have") else _AFTER_BE)
        # The opposite number is the instructive case, so it comes more often.
        wrong = not many if rng.random() < 0.7 else many
        link = "" if rng.random() < 0.15 else f" {rng.choice(_LINKS)} the {distractor[wrong]}"
        sentences.append(f"{opening} {subject[many]}{link} {verb} {rest}.")
    return " ".join(sentences)


def draws(rng: Random, split: Split, pool: Pool) -> Iterator[Example | None]:
    """Yield prompts whose corrupted version has the subject in the other number."""
    nouns = pool.pairs([(noun, plural(noun)) for noun in NOUNS], need=4)
    openings = [opening for opening, verbs in OPENINGS.items() if pool.accepts(*verbs)]
    while True:
        subject, distractor = _pair(rng, split, nouns)
        many = rng.random() < 0.5
        opening, link = rng.choice(openings), rng.choice(_LINKS)
        rest = f"{link} the {distractor[not many]}"
        yield Example(
            clean=f"{opening} {subject[many]} {rest}",
            corrupted=f"{opening} {subject[not many]} {rest}",
            answer=f" {OPENINGS[opening][many]}",
            foil=f" {OPENINGS[opening][not many]}",
            subject=subject[many],
        )
