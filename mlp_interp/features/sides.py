"""What a text is read under: behind a prefix, or by an edited model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlp_interp.edits import Edit
from mlp_interp.models import Weights
from mlp_interp.models.indices import count
from mlp_interp.models.options import checked_seed
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.texts import Texts, texts_of
from mlp_interp.prompts.tokenizing import bos_token_id, encode, ordinary_ids, tokenizer_of
from mlp_interp.steering.generation import check_edits

__all__ = [
    "Feature",
    "Side",
    "bare_texts",
    "check_lengths",
    "random_sides",
    "side_of",
    "sides_of",
]

Feature = str | Edit | Sequence[Edit]
"""A prefix, or edits that stand in its place."""


@dataclass(frozen=True)
class Side:
    """What a text is read under.

    Attributes:
        context: Token ids before the text: BOS, and the prefix.
        edits: What is done to the model while it reads; they are in force on the context, too.
        about: The same in words.
    """

    context: tuple[int, ...]
    edits: tuple[Edit, ...]
    about: str


def side_of(model: Model, feature: Any, *, what: str) -> Side:
    """One side.

    Args:
        model: A model with a tokenizer.
        feature: A prefix, empty for none, or edits.
        what: Name of the argument, for errors.

    Raises:
        ValueError: It is neither, or a prefix that ends in white space.
    """
    bos = bos_token_id(tokenizer_of(model))
    if not isinstance(feature, str):
        if not isinstance(feature, Edit | list | tuple):
            raise ValueError(f"{what}={feature!r}; wanted a prefix, an Edit or several")
        edits = check_edits(feature)
        return Side((bos,), edits, "; ".join(map(str, edits)))
    if feature != feature.rstrip():
        # A space belongs to the token after it, which is the text's.
        raise ValueError(f"{what}={feature!r} ends in white space; wanted that in separator")
    if not feature:
        return Side((bos,), (), "no prefix")
    return Side((bos, *encode(tokenizer_of(model), feature)), (), repr(feature))


def sides_of(model: Model, features: Any) -> dict[str, Side]:
    """Sides by name: a prefix alone is its own name.

    Raises:
        ValueError: There are none, or one is no side.
    """
    if isinstance(features, Mapping):
        if not features:
            raise ValueError(f"features={features}; wanted at least one")
        return {
            str(name): side_of(model, one, what=f"features[{name!r}]")
            for name, one in features.items()
        }
    name = features if isinstance(features, str) else "edits"
    return {name: side_of(model, features, what="features")}


def random_sides(
    model: Model, sides: Mapping[str, Side], controls: Any, seed: Any
) -> list[list[Side]]:
    """For each side so many prefixes of random tokens, as long as its own.

    Raises:
        ValueError: There are to be some, and a side has no prefix.
    """
    count("controls", controls, least=0)
    rng = np.random.default_rng(checked_seed(seed))
    known = ordinary_ids(model)
    for name, side in sides.items():
        if controls and len(side.context) < 2:
            raise ValueError(f"controls={controls} for feature {name!r}, which has no prefix")
    return [[_random(side, known, rng) for _ in range(controls)] for side in sides.values()]


def _random(side: Side, known: list[int], rng: np.random.Generator) -> Side:
    bos, *prefix = side.context
    return Side((bos, *rng.choice(known, len(prefix)).tolist()), (), "random tokens")


def bare_texts(model: Model, texts: Any, *, separator: str) -> Texts:
    """Tokens of texts without BOS, as they follow a prefix.

    The separator goes before texts, and is the same under all sides, so that all read the same
    tokens. Token ids are taken as they are, without a BOS at their beginning.

    Raises:
        ValueError: There are none, or one is empty or is none.
    """
    if isinstance(texts, str):
        texts = [texts]
    if isinstance(texts, list | tuple):
        for n, text in enumerate(texts):
            if isinstance(text, str) and not text.strip():
                raise ValueError(f"texts[{n}]={text!r}; wanted a text that is not empty")
        texts = [separator + text if isinstance(text, str) else text for text in texts]
    found = texts_of(model, texts, what="texts", prepend_bos=False)
    rows = tuple(row[1:] if row[0] == found.bos else row for row in found.rows)
    for n, row in enumerate(rows):
        if not row:
            raise ValueError(f"texts[{n}] is nothing but BOS; wanted a text that is not empty")
    # What is read always begins elsewhere, so no BOS is to be left out here.
    return Texts(rows, None, f"{len(rows)} texts")


def check_lengths(weights: Weights, texts: Texts, sides: Mapping[str, Side]) -> None:
    """Refuse what does not fit into the model's context.

    Raises:
        ValueError: The longest text with the longest prefix does not.
    """
    context = max(len(side.context) for side in sides.values())
    longest, room = max(map(len, texts.rows)), int(weights.model.cfg.n_ctx)
    if context + longest > room:
        raise ValueError(
            f"texts of up to {longest} tokens behind {context}; the model reads {room} at most"
        )
