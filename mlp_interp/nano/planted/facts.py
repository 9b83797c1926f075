"""Facts: country -> capital, country -> language, landmark -> city, capital -> country.

Held out are combinations of a fact and a way to say it: each fact is known from its other
phrasings, each phrasing from other facts.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from mlp_interp.nano.example import Example
from mlp_interp.nano.pools import Pool
from mlp_interp.nano.splits import Split, in_split, search
from mlp_interp.nano.words import COUNTRIES, LANDMARKS, LANGUAGES

__all__ = ["RELATIONS", "document", "draws"]

# Relation -> (facts, phrasings).
RELATIONS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "capital": (
        COUNTRIES,
        (
            "The capital of {x} is",
            "The capital city of {x} is called",
            "In {x}, the capital is",
            "Everyone knows that the capital of {x} is",
            "The government of {x} sits in",
            "My friend lives in {x}, in the capital city of",
            "Q: What is the capital of {x}? A:",
            "We travelled to {x} to see its capital,",
            "The president of {x} lives in",
            "On the map of {x} she found the capital,",
        ),
    ),
    "language": (
        LANGUAGES,
        (
            "The language of {x} is",
            "In {x}, people speak",
            "The official language of {x} is",
            "People who live in {x} speak",
            "Children in {x} learn to read in",
            "She grew up in {x}, so she speaks",
            "Q: What language do people speak in {x}? A:",
            "To live in {x} you must learn",
            "The newspapers in {x} are written in",
        ),
    ),
    "city": (
        LANDMARKS,
        (
            "The {x} is in",
            "The {x} is in the city of",
            "You can visit the {x} in",
            "We saw the {x} when we were in",
            "Tourists take pictures of the {x} in",
            "Q: Where is the {x}? A:",
            "The famous {x} stands in",
            "To see the {x} you must go to",
        ),
    ),
    "country": (
        {capital: country for country, capital in COUNTRIES.items()},
        (
            "The city of {x} is the capital of",
            "People in {x} live in the capital of",
            "The train to {x} goes to the capital of",
            "Q: In which country is {x}? A:",
            "She was born in {x}, the capital of",
        ),
    ),
}

# The phrasings to ask with. After "The Charles Bridge is in", "the city of" is as right as the
# city, so a phrasing that another one continues has no single answer.
_ASKED = {
    name: tuple(
        phrasing
        for phrasing in phrasings
        if not any(other != phrasing and other.startswith(phrasing) for other in phrasings)
    )
    for name, (_, phrasings) in RELATIONS.items()
}
_SAID = {name: phrasings for name, (_, phrasings) in RELATIONS.items()}

_OPENINGS = ("", "", "", "The teacher told us this. ", "Here is a fact. ", "Remember this. ")


def _choose(
    rng: Random,
    split: Split,
    relations: dict[str, list[tuple[str, str]]],
    phrasings: dict[str, tuple[str, ...]],
) -> tuple[str, str, str, str]:
    """Draw (relation, subject, object, phrasing) from ``split``."""
    return search(
        lambda: _drawn(rng, relations, phrasings),
        lambda drawn: in_split(split, "facts", drawn[1], drawn[3]),
        task="facts",
        left=sum(map(len, relations.values())),
    )


def _drawn(
    rng: Random,
    relations: dict[str, list[tuple[str, str]]],
    phrasings: dict[str, tuple[str, ...]],
) -> tuple[str, str, str, str]:
    relation = rng.choice(list(relations))
    subject, thing = rng.choice(relations[relation])
    return relation, subject, thing, rng.choice(phrasings[relation])


def document(rng: Random, split: Split) -> str:
    """Write one to four facts."""
    relations = {name: list(facts.items()) for name, (facts, _) in RELATIONS.items()}
    sentences = []
    for _ in range(rng.randint(1, 4)):
        _, subject, thing, phrasing = _choose(rng, split, relations, _SAID)
        sentences.append(f"{phrasing.format(x=subject)} {thing}.")
    return rng.choice(_OPENINGS) + " ".join(sentences)


def draws(rng: Random, split: Split, pool: Pool) -> Iterator[Example | None]:
    """Yield prompts whose corrupted version asks about another country, landmark or city."""
    relations = {name: pool.pairs(facts.items(), need=4) for name, (facts, _) in RELATIONS.items()}
    while True:
        relation, subject, thing, phrasing = _choose(rng, split, relations, _ASKED)
        other, other_thing = rng.choice(relations[relation])
        if other_thing == thing:
            yield None
            continue
        yield Example(
            clean=phrasing.format(x=subject),
            corrupted=phrasing.format(x=other),
            answer=f" {thing}",
            foil=f" {other_thing}",
            subject=subject,
        )
