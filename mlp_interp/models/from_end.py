"""Edits that are held on a model and count from the end of rows, which padding moves away."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from mlp_interp.models.protocol import Model

__all__ = ["check_from_end", "from_end", "held_from_end"]

_HELD: WeakKeyDictionary[Any, list[str]] = WeakKeyDictionary()


@contextmanager
def from_end(model: Model, held: list[str]) -> Iterator[None]:
    """Know of edits on a model, in words, for as long as a block of code holds them there."""
    before = held_from_end(model)
    _HELD[model] = [*before, *held]
    try:
        yield
    finally:
        _HELD[model] = before


def held_from_end(model: Model) -> list[str]:
    """Those that are held on a model now."""
    return _HELD.get(model, [])


def check_from_end(model: Model, data: str) -> None:
    """Refuse to run padded rows: hooks cannot know where in them each text ends.

    Args:
        model: The model.
        data: The texts, in words.

    Raises:
        ValueError: Some edit that counts from the end is held on the model.
    """
    if held := held_from_end(model):
        raise ValueError(
            f"the edit at {held[0]}, held by steer, counts from the end of rows, which would be "
            f"padded here ({data}); wanted positions from 0, texts of one length, or one text "
            "at a time"
        )
