"""Simple French passages, with agreement of article and adjective."""

from __future__ import annotations

from random import Random

from mlp_interp.nano.splits import Split, in_split

__all__ = ["document"]

# Noun -> is it feminine? None begins with a vowel, so that no article is shortened.
_THINGS = {
    "maison": True, "table": True, "porte": True, "ville": True, "fleur": True,
    "jardin": False, "livre": False, "chat": False, "chien": False, "pain": False,
    "cheval": False, "soleil": False,
}  # fmt: skip
# Masculine, feminine.
_ADJECTIVES = (
    ("grand", "grande"),
    ("petit", "petite"),
    ("vert", "verte"),
    ("noir", "noire"),
    ("blanc", "blanche"),
    ("beau", "belle"),
    ("vieux", "vieille"),
)
_NAMES = (("Pierre", "Il"), ("Jean", "Il"), ("Louis", "Il"), ("Marie", "Elle"), ("Claire", "Elle"))
_SENTENCES = (
    "{The} {t} est {j}.",
    "{name} regarde {the} {t}.",
    "{He} aime {the} {t} de son père.",
    "Dans la rue il y a {a} {t}.",
    "Ce matin {name} mange du pain avec du beurre.",
    "Aujourd'hui il fait beau, et {name} va à la mer.",
    "Le soir {name} lit un livre dans le jardin.",
    "{The} {t} n'est pas {j}, mais {name} est content{e}.",
    "Où est {the} {t}? Je ne sais pas.",
    "Les enfants jouent avec {the} {t}.",
    "Nous parlons français et nous habitons à Paris.",
    "Bonjour, {name}! Comment ça va? Très bien, merci.",
)


def document(rng: Random, split: Split) -> str:
    """Write three to six French sentences; held out are (person, thing)."""
    while True:
        name, he = rng.choice(_NAMES)
        thing = rng.choice(list(_THINGS))
        if in_split(split, "french", name, thing):
            break
    feminine = _THINGS[thing]
    the = "la" if feminine else "le"
    words = {
        "t": thing,
        "j": rng.choice(_ADJECTIVES)[feminine],
        "the": the,
        "The": the.capitalize(),
        "a": "une" if feminine else "un",
        "name": name,
        "He": he,
        "e": "e" if he == "Elle" else "",
    }
    sentences = rng.sample(_SENTENCES, rng.randint(3, 6))
    return " ".join(sentence.format(**words) for sentence in sentences)
