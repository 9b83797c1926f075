"""Whose activations a cache holds: as far as it says which model made it."""

from typing import Any

import torch

from mlp_interp.models.caches import CutCache
from mlp_interp.models.protocol import Cache
from mlp_interp.models.weights import Weights

__all__ = ["check_origin"]

_READ = ("W_Q", "W_V", "W_O", "W_in", "W_out")


@torch.no_grad()
def check_origin(weights: Weights, cache: Cache) -> None:
    """Refuse a run, or a cache of the library's, that a model with other weights made.

    A dict of tensors does not say who made it.

    Raises:
        ValueError: Another model made it.
    """
    while isinstance(cache, CutCache):
        cache = cache.cache
    made: Any = getattr(cache, "weights", None)
    other = getattr(cache, "model", None) if made is None else made.model
    if other is None or other is weights.model or _same(weights, Weights(other)):
        return
    names = [str(getattr(m.cfg, "model_name", type(m).__name__)) for m in (other, weights.model)]
    raise ValueError(
        f"cache is of a model {names[0]!r} with other weights than model={names[1]!r}; wanted "
        "a cache that this model made, processed as it is"
    )


def _same(weights: Weights, other: Weights) -> bool:
    """Whether two models read and write the stream alike."""
    if weights.n_layers != other.n_layers or not _equal(weights.W_E, other.W_E):
        return False
    return all(
        _equal(weights.parameter(layer, name), other.parameter(layer, name))
        for layer in range(weights.n_layers)
        for name in _READ
    )


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    b = b.to(a)
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())
