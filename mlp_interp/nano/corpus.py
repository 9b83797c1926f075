"""The nano corpus: an endless stream of documents, drawn from the tasks and stories."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from mlp_interp.nano import french, stories, topics
from mlp_interp.nano.planted import (
    agreement,
    copying,
    counting,
    facts,
    ioi,
    lists,
    refusal,
    sentiment,
    years,
)
from mlp_interp.nano.splits import Split, check_split

__all__ = ["MIXTURE", "documents"]

# Kind -> (writer, share of the documents). Short kinds need a larger share of documents
# for the same share of tokens.
MIXTURE: dict[str, tuple[Callable[[Random, Split], str], float]] = {
    "stories": (stories.document, 8),
    "topics": (topics.document, 5),
    "french": (french.document, 3),
    "ioi": (ioi.document, 22),
    "facts": (facts.document, 14),
    "agreement": (agreement.document, 10),
    "sentiment": (sentiment.document, 7),
    "refusal": (refusal.document, 10),
    "greater_than": (years.document, 13),
    "lists": (lists.document, 17),
    "counting": (counting.document, 4),
    "copying": (copying.document, 4),
}


def documents(split: str, seed: int) -> Iterator[str]:
    """Write documents without end.

    Args:
        split: ``"train"`` never shows a combination of words that ``"heldout"`` is made of
            (``mlp_interp.nano.splits``); single words and sentences' frames are shared.
        seed: Equal seeds give equal streams.

    Yields:
        One document, without end-of-text marks.

    Raises:
        ValueError: If ``split`` is unknown.
    """
    return _documents(check_split(split), seed)


def _documents(split: Split, seed: int) -> Iterator[str]:
    rng = Random(f"corpus {split} {seed}")
    writers = [writer for writer, _ in MIXTURE.values()]
    weights = [weight for _, weight in MIXTURE.values()]
    while True:
        (writer,) = rng.choices(writers, weights)
        yield writer(rng, split)
