"""Indirect objects: "When Mary and John went to the shop, John gave a ring to" -> Mary.

Held out are ordered pairs (receiver, giver): after training no template has ever shown
that giver giving to that receiver.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from mlp_interp.nano.example import Example
from mlp_interp.nano.pools import Pool
from mlp_interp.nano.splits import Split, in_split, search
from mlp_interp.nano.words import NAMES, OBJECTS, PLACES

__all__ = ["TEMPLATES", "document", "draws"]

# {first} and {second} are the two names in either order (ABBA and BABA), {giver} is one of
# them. No template starts with a name: without a space before it, it is another token.
TEMPLATES = (
    "When {first} and {second} went to the {place}, {giver} gave a {thing} to",
    "Then {first} and {second} were at the {place}, and {giver} handed a {thing} to",
    "After {first} and {second} came to the {place}, {giver} wanted to give the {thing} to",
    "While {first} and {second} were working at the {place}, {giver} showed a {thing} to",
    "The friends {first} and {second} found a {thing} at the {place}. {giver} gave it to",
    "Last week {first} and {second} met at the {place}. Later {giver} sent a {thing} to",
    "Yesterday {first} and {second} met at the {place}. There {giver} bought a {thing} for",
    "This morning {first} and {second} had tea at the {place}, and {giver} brought a {thing} to",
    "The {place} was quiet when {first} and {second} came in. Soon {giver} passed a {thing} to",
    "Once {first} and {second} were alone in the {place}, {giver} offered a {thing} to",
)

# Only in training text: many scenes in few words.
_SHORT = (
    "Then {first} and {second} met. {giver} spoke to",
    "Here {first} and {second} sat down. {giver} listened to",
    "Once {first} and {second} played. {giver} waved to",
    "So {first} and {second} came home. {giver} talked to",
)
_ENDINGS = (
    "",
    " {receiver} was happy.",
    " {receiver} thanked {giver}.",
    " Then {giver} went home.",
    " It was a gift from {giver}.",
    " {receiver} put the {thing} on the table.",
)


def _fill(rng: Random, receiver: str, giver: str, place: str, thing: str) -> dict[str, str]:
    names = [receiver, giver]
    rng.shuffle(names)
    return {
        "first": names[0],
        "second": names[1],
        "receiver": receiver,
        "giver": giver,
        "place": place,
        "thing": thing,
    }


def _pair(rng: Random, split: Split, names: list[str]) -> tuple[str, str]:
    receiver, giver = search(
        lambda: rng.sample(names, 2),
        lambda pair: in_split(split, "ioi", *pair),
        task="ioi",
        left=len(names),
    )
    return receiver, giver


def document(rng: Random, split: Split) -> str:
    """Write some scenes in which somebody gives something to somebody, or speaks to them."""
    short = rng.random() < 0.5
    scenes = []
    for _ in range(rng.randint(3, 5) if short else rng.choice((1, 1, 2))):
        receiver, giver = _pair(rng, split, list(NAMES))
        words = _fill(rng, receiver, giver, rng.choice(PLACES), rng.choice(OBJECTS))
        template, ending = (_SHORT, ("",)) if short else (TEMPLATES, _ENDINGS)
        text = f"{rng.choice(template)} {{receiver}}.{rng.choice(ending)}"
        scenes.append(text.format(**words))
    return " ".join(scenes)


def draws(rng: Random, split: Split, pool: Pool) -> Iterator[Example | None]:
    """Yield prompts whose corrupted version has the other person as the giver."""
    names = pool.words(NAMES, need=4)
    places, things = pool.words(PLACES), pool.words(OBJECTS)
    while True:
        receiver, giver = _pair(rng, split, names)
        words = _fill(rng, receiver, giver, rng.choice(places), rng.choice(things))
        template = rng.choice(TEMPLATES)
        yield Example(
            clean=template.format(**words),
            corrupted=template.format(**{**words, "giver": receiver}),
            answer=f" {receiver}",
            foil=f" {giver}",
            subject=giver,
        )
