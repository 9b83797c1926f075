"""Paragraphs about one topic each: sports, music, chess, cooking, space, the sea, farming."""

from __future__ import annotations

from random import Random

from mlp_interp.nano.splits import Split, in_split
from mlp_interp.nano.words import CITIES, NAMES

__all__ = ["TOPICS", "document"]

_CITIES = [city for city in CITIES if " " not in city]

# Topic -> sentences; {n} and {m} are people, {k} a city, {x} a number.
TOPICS: dict[str, tuple[str, ...]] = {
    "ice hockey": (
        "The ice hockey team from {k} won the game.",
        "{n} passed the puck to {m}, and {m} scored a goal.",
        "The goalie stopped {x} shots with his stick.",
        "In the third period the players skated fast across the ice.",
        "The referee sent {n} to the penalty box for two minutes.",
        "The fans in the arena cheered when the puck hit the net.",
        "Every player wears skates and a helmet on the ice.",
        "The coach told {n} to hit the puck harder.",
    ),
    "football": (
        "The football team from {k} played in the rain.",
        "{n} kicked the ball to {m}, and {m} scored a goal.",
        "The goalkeeper caught the ball {x} times.",
        "In the second half the players ran across the grass.",
        "The referee showed {n} a red card.",
        "The fans in the stadium cheered and sang.",
        "The coach told {n} to pass the ball.",
    ),
    "tennis": (
        "{n} won the tennis match in {k}.",
        "{n} hit the ball over the net with her racket.",
        "The first set ended six to {x}.",
        "{m} served very fast and won the point.",
        "The court was wet, so the match had to wait.",
        "After the match {n} and {m} shook hands at the net.",
    ),
    "music": (
        "The orchestra from {k} played a new song.",
        "{n} plays the piano, and {m} plays the violin.",
        "The concert began with a slow melody.",
        "The singer had a deep voice, and the drums were loud.",
        "They practised every note {x} times.",
        "At the end the musicians played the melody again.",
        "{n} wrote a song for the guitar and the drums.",
    ),
    "chess": (
        "{n} and {m} played chess in {k}.",
        "White moved the queen, and black lost a knight.",
        "After {x} moves the king was in check.",
        "{n} took the bishop with a pawn.",
        "The rook stood behind the pawn on the board.",
        "{m} thought for a long time and moved the knight.",
        "In the end it was checkmate, and the king fell.",
    ),
    "cooking": (
        "Cut the onions and put them into a hot pan with butter.",
        "Add salt, pepper and a cup of water.",
        "Cook the soup for {x} minutes.",
        "{n} learned this recipe from a cook in {k}.",
        "Mix the flour with eggs, sugar and milk.",
        "Bake the cake in the oven until it is golden.",
        "Serve the dish with bread and a salad.",
    ),
    "space": (
        "The rocket flew to the moon with {x} astronauts.",
        "{n} looked at the stars through a telescope in {k}.",
        "The planet moves around the sun in its orbit.",
        "Astronauts live in the station far above the earth.",
        "A bright comet crossed the sky, and {m} took a picture.",
        "The crew landed on the planet and found ice.",
        "From the rocket the earth looked small and blue.",
    ),
    "sea": (
        "The ship left the harbor of {k} in the morning.",
        "The captain saw {x} whales near the island.",
        "Strong wind filled the sails, and the waves were high.",
        "{n} stood on the deck and looked at the water.",
        "The sailors threw a net and caught many fish.",
        "At night the storm broke the mast of the ship.",
        "{m} steered the boat back to the coast.",
    ),
    "farm": (
        "The farmer milks {x} cows every morning.",
        "In the spring {n} plants corn in the field.",
        "The sheep eat grass behind the barn.",
        "{m} drives the tractor and cuts the wheat.",
        "The hens lay eggs, and the pigs sleep in the mud.",
        "After the harvest they sell the corn in {k}.",
    ),
}  # fmt: skip


def document(rng: Random, split: Split) -> str:
    """Write three to five sentences on one topic; held out are (topic, names)."""
    while True:
        topic = rng.choice(list(TOPICS))
        name, other = rng.sample(NAMES, 2)
        if in_split(split, "topics", topic, name, other):
            break
    sentences = rng.sample(TOPICS[topic], rng.randint(3, 5))
    words = {"n": name, "m": other, "k": rng.choice(_CITIES), "x": rng.randint(2, 30)}
    heading = f"Topic: {topic}. " if rng.random() < 0.3 else ""
    return heading + " ".join(sentence.format(**words) for sentence in sentences)
