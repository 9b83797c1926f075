"""Which heads are asked about, and how long distances reach."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mlp_interp.models import Weights
from mlp_interp.models.indices import count
from mlp_interp.results import strings
from mlp_interp.sites import Site

__all__ = [
    "by_layer",
    "check_some_later",
    "checked_distance",
    "checked_distances",
    "head_coords",
    "listed_heads",
]


def listed_heads(weights: Weights, heads: Any, *, argument: str = "heads") -> list[Site]:
    """The heads that somebody named, or all of them.

    Args:
        weights: The model's.
        heads: Labels (``"L1H3"``), `Site` objects or pairs ``(layer, head)``, one or several; None
            for all.
        argument: What the caller calls them, for errors.

    Raises:
        ValueError: One is no head of the model, one comes twice, or there are none.
    """
    return weights.heads if heads is None else weights.places(heads, kind="head", argument=argument)


def by_layer(sites: Sequence[Site]) -> dict[int, list[int]]:
    """Places among some heads, by their layers."""
    found: dict[int, list[int]] = {}
    for place, site in enumerate(sites):
        found.setdefault(site.layer or 0, []).append(place)
    return found


def check_some_later(writing: Sequence[Site], reading: Sequence[Site]) -> None:
    """Refuse heads of which none can read what another one wrote.

    Raises:
        ValueError: No reader is in a later layer than some writer.
    """
    last, first = max(site.layer or 0 for site in reading), min(site.layer or 0 for site in writing)
    if last <= first:
        raise ValueError(
            f"readers={[site.label for site in reading[:3]]} of layers up to {last}, "
            f"writers={[site.label for site in writing[:3]]} of layers from {first}; wanted a "
            "reader in a later layer than some writer, which it can read"
        )


def checked_distance(weights: Weights, distance: Any) -> None:
    """Refuse what is no distance between two positions of the context; None is the average.

    Raises:
        ValueError: It is no integer from 0 to less than the context's length.
    """
    if distance is not None:
        count("distance", distance, least=0, most=int(weights.model.cfg.n_ctx) - 1)


def checked_distances(weights: Weights, distances: Any, *, least: int = 2) -> int:
    """How many distances, from 0, a kernel reaches.

    Raises:
        ValueError: It is no integer from `least` to the context's length.
    """
    return count("distances", distances, least=least, most=int(weights.model.cfg.n_ctx))


def head_coords(sites: Sequence[Site], dim: str = "head") -> dict[str, Any]:
    """Coordinates of a dimension of heads of any layers: labels, layers and indices."""
    return {
        dim: strings([site.label for site in sites]),
        f"{dim}_layer": (dim, np.array([site.layer for site in sites])),
        f"{dim}_index": (dim, np.array([site.unit for site in sites])),
    }
