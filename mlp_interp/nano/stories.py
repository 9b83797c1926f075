"""Little stories: a hero, a friend, a place, a thing, and a plot that hangs together."""

from __future__ import annotations

from random import Random

from mlp_interp.nano.splits import Split, in_split
from mlp_interp.nano.words import (
    ADJECTIVES,
    COLOURS,
    COUNTRIES,
    FEMALE,
    LANGUAGES,
    MALE,
    OBJECTS,
    PLACES,
)

__all__ = ["PLOTS", "document"]

_ANIMALS = ("dog", "cat", "bird", "horse", "rabbit", "duck")
_FOODS = ("cake", "soup", "bread", "salad", "rice", "fish")
_WEATHER = ("sunny", "cold", "windy", "warm", "quiet", "rainy")
_SKILLS = ("swim", "sing", "dance", "cook", "draw", "play chess", "play the piano")
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()

# Each plot is a list of steps, each step a list of ways to tell it. Slots: {h} hero and
# {f} friend with pronouns {he} {him} {his} / {fe} {fim} {fis} (capitals for a sentence's
# start), {p} and {q} places, {o} a thing, {c} its colour, {a} an animal.
PLOTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "lost": (
        ("{h} had a {c} {o}.", "{h} loved {his} {c} {o}.", "{h} got a {c} {o} from {his} mother."),
        (
            "One {w} day {he} took the {o} to the {p}.",
            "On {d} {he} went to the {p} with the {o}.",
        ),
        (
            "There {he} lost it, and {he} was very sad.",
            "When {he} came home, the {o} was gone. {He} began to cry.",
        ),
        (
            '{f} saw that {h} was sad and asked, "What is wrong?"',
            "{He} called {his} friend {f} and told {fim} about the {o}.",
        ),
        (
            "They went back to the {p} and looked behind every tree.",
            "Together they looked for the {o} until the evening.",
        ),
        (
            "At last {f} found the {o} near the door.",
            "Then {f} saw something {c} under a chair. It was the {o}!",
        ),
        (
            "{h} was happy and thanked {f}.",
            "{f} gave it to {h}, and {he} was happy again.",
        ),
    ),
    "animal": (
        ("One {w} morning {h} walked to the {p}.", "On {d} {h} was on the way to the {p}."),
        (
            "Near the road {he} heard a sound. It was a {j} {a}.",
            "There {he} saw a {j} {a} behind a tree.",
        ),
        ("The {a} was hungry and afraid.", "The {a} could not walk, because its leg was hurt."),
        (
            "{h} put the {a} in {his} coat and took it home.",
            "{He} gave the {a} some water and carried it to {f}.",
        ),
        (
            "{f} knew a lot about animals, and {fe} helped {him}.",
            "Then {he} asked {f} for help, and {fe} brought some {e}.",
        ),
        (
            "After a week the {a} was strong again.",
            "They looked after the {a} for many days.",
        ),
        (
            "Now the {a} lives with {h} and sleeps on {his} bed.",
            "From that day on the {a} followed {h} to the {p} every morning.",
        ),
    ),
    "gift": (
        (
            "It was the birthday of {f}, and {h} wanted to give {fim} a gift.",
            "On {d} {f} had a birthday party. {h} was looking for a gift for {fim}.",
        ),
        (
            "{He} went to the {p}, but everything cost too much.",
            "{He} had only a little money, so {he} went to the {p}.",
        ),
        (
            "So {he} made a {c} {o} with {his} own hands.",
            "There an old man sold {him} a {j} {o} for one coin.",
        ),
        (
            "{h} was afraid that {f} would not like it.",
            "At the party {h} hid the {o} behind {his} back.",
        ),
        (
            "But when {f} opened the box, {fe} laughed and was happy.",
            '{f} looked at the {o} and smiled. "Thank you, {h}!" {fe} said.',
        ),
        (
            '"It is the best gift of all," said {f}.',
            "After that {fe} used the {o} every day.",
        ),
    ),
    "quarrel": (
        (
            "{h} and {f} were good friends.",
            "{h} and {f} played in the {p} every {d}.",
        ),
        (
            "One day both of them wanted the same {o}.",
            "But one {w} day {f} broke the {c} {o} of {h}.",
        ),
        (
            "{h} was angry and went home without {f}.",
            '"I do not want to see you again!" said {h}, and {he} ran away.',
        ),
        (
            "At night {he} could not sleep, because {he} missed {f}.",
            "{f} sat alone in the {q} and was sad.",
        ),
        (
            'The next morning {h} went to {f} and said, "I am sorry."',
            'Then {f} wrote a letter to {h}: "I am sorry. Please come back."',
        ),
        (
            "{f} was sorry too, and they shared the {o}.",
            "So they met in the {p} and were friends again.",
        ),
    ),
    "learn": (
        ("{h} wanted to learn to {s}.", "All the children could {s}, but {h} could not."),
        (
            "{He} tried it at the {p}, but it was too difficult.",
            "On {d} {he} tried again and again, and nothing worked.",
        ),
        (
            '"I will never learn it," {he} said.',
            "{h} was sad and wanted to stop.",
        ),
        (
            'Then {f} said, "I can teach you. You must not hurry."',
            "{f} sat down beside {him} and showed {him} how to begin.",
        ),
        (
            "They met at the {p} every day after school.",
            "Day after day {f} helped {him}, and it became easy.",
        ),
        (
            "After a month {h} could {s} better than anyone.",
            "In the end {h} could {s}, and {f} was very proud of {him}.",
        ),
    ),
    "journey": (
        (
            "In the summer {h} and {f} went to {n}.",
            "{h} had always wanted to see {n}, so {he} asked {f} to come along.",
        ),
        (
            "They took the train to {k}, the capital of {n}.",
            "After a long journey they came to {k}.",
        ),
        (
            "It was a {w} day, and the streets were full of people.",
            "The people there spoke {l}, and {h} did not understand a word.",
        ),
        (
            "{f} had a map, but {fe} could not find the {p}.",
            "In the evening they lost the way to the {p}.",
        ),
        (
            "A girl with a {c} {o} showed them the way.",
            "Luckily {h} had learned some {l} from a book, and {he} asked an old man.",
        ),
        (
            "They ate {e} and looked at the lights of {k}.",
            "At night they were tired and happy, and {h} wrote a letter home.",
        ),
    ),
    "night": (
        (
            "It was a dark night, and {h} was alone in the house.",
            "One night {h} could not sleep.",
        ),
        (
            "Suddenly {he} heard a sound from the kitchen.",
            "Then something moved behind the door.",
        ),
        ("{h} was afraid, but {he} took a lamp and went down.", "{He} held {his} {o} and waited."),
        (
            '"Who is there?" {he} asked. There was no answer.',
            "Slowly {he} opened the door and looked inside.",
        ),
        (
            "On the table sat a {j} {a} and ate the {e}!",
            "It was only the {a} of {f}, and it was hungry.",
        ),
        (
            "{h} laughed and gave it some water.",
            "In the morning {h} brought the {a} back to {f}, and they laughed about it.",
        ),
    ),
    "cook": (
        (
            "{h} and {f} wanted to make {e} for the village.",
            "On {d} {h} invited {f} to dinner and wanted to make {e}.",
        ),
        (
            "First {he} went to the market and bought everything.",
            "{f} brought a basket from the {p}.",
        ),
        (
            "{h} cut the onions while {f} washed the cups.",
            "{He} put water and salt into a {j} pot, and {f} made a fire.",
        ),
        (
            "But then {h} talked too long, and the {e} was burned.",
            "Then the {a} came in and ate half of the {e}.",
        ),
        (
            '"What can we do now?" asked {f}. "We can eat apples," said {h}.',
            "{f} was angry at first, but then {fe} began to laugh.",
        ),
        (
            "So they sat in the {q} and ate bread, and it was a good evening.",
            "In the end everyone had enough, and nobody was hungry.",
        ),
    ),
}


def _person(rng: Random) -> tuple[str, tuple[str, str, str]]:
    if rng.random() < 0.5:
        return rng.choice(MALE), ("he", "him", "his")
    return rng.choice(FEMALE), ("she", "her", "her")


def document(rng: Random, split: Split) -> str:
    """Tell one story; held out are combinations (plot, hero, friend)."""
    while True:
        plot = rng.choice(list(PLOTS))
        hero, (he, him, his) = _person(rng)
        friend, (fe, fim, fis) = _person(rng)
        if hero != friend and in_split(split, "stories", plot, hero, friend):
            break
    country = rng.choice([name for name in COUNTRIES if name in LANGUAGES])
    place, other_place = rng.sample(PLACES, 2)
    words = {
        "h": hero, "he": he, "him": him, "his": his, "He": he.capitalize(),
        "f": friend, "fe": fe, "fim": fim, "fis": fis, "Fe": fe.capitalize(),
        "p": place, "q": other_place, "o": rng.choice(OBJECTS), "c": rng.choice(COLOURS),
        "a": rng.choice(_ANIMALS), "e": rng.choice(_FOODS), "w": rng.choice(_WEATHER),
        "s": rng.choice(_SKILLS), "d": rng.choice(_DAYS), "j": rng.choice(ADJECTIVES),
        "n": country, "k": COUNTRIES[country], "l": LANGUAGES[country],
    }  # fmt: skip
    return " ".join(rng.choice(step).format(**words) for step in PLOTS[plot])
