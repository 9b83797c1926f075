"""What the report says of heads, computed: from weights, and on random tokens that come twice."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from mlp_interp import heads, weights
from mlp_interp.report.attempt import attempt
from mlp_interp.report.section import Work
from mlp_interp.results import strings

__all__ = ["HeadRoles", "measure"]

TEXTS = 16
"""Random texts that come twice."""

PAIRS = 8
"""Compositions that are listed."""


@dataclass(frozen=True)
class HeadRoles:
    """What was measured of heads; None for what cannot be of this model.

    Attributes:
        roles: See `mlp_interp.heads.roles`.
        attention: See `mlp_interp.heads.detect`.
        induction: See `mlp_interp.heads.induction`.
        pairs: The strongest compositions, along ``pair``; see `mlp_interp.heads.compose`.
        bigrams: See `mlp_interp.weights.bigrams`.
    """

    roles: xr.Dataset | None = None
    attention: xr.Dataset | None = None
    induction: xr.Dataset | None = None
    pairs: xr.Dataset | None = None
    bigrams: xr.Dataset | None = None


def measure(work: Work) -> HeadRoles:
    """Run the analyses of heads; what refuses the model is left out, with a note.

    Args:
        work: What to measure on; its store keeps each finished part.
    """
    model, seed = work.model, work.seed
    told = work.forecast.part()
    parts: dict[str, tuple[str, Callable[[], xr.Dataset]]] = {
        "roles": ("What heads do by their weights", lambda: heads.roles(model, seed=seed)),
        "attention": (
            "Where heads look on random tokens",
            lambda: heads.detect(model, n=TEXTS, seed=seed),
        ),
        "induction": (
            "Induction circuits",
            lambda: heads.induction(model, n=TEXTS, seed=seed),
        ),
        "pairs": ("Which heads compose", lambda: _strongest(heads.compose(model))),
        "bigrams": ("Paths past all heads", lambda: weights.bigrams(model, work.corpus)),
    }
    found: dict[str, Any] = {}
    for n, (name, (what, make)) in enumerate(parts.items(), start=1):
        found[name] = attempt(
            work, what, lambda name=name, make=make: work.store.get(f"heads/{name}", make)
        )
        told(n / len(parts))
    return HeadRoles(**found)


def _strongest(composed: xr.Dataset) -> xr.Dataset:
    """The pairs that compose most beyond chance."""
    z = composed["z"].transpose("writer", "reader").values
    order = np.argsort(-np.where(np.isnan(z), -np.inf, z), axis=None, kind="stable")[:PAIRS]
    order = order[~np.isnan(z.ravel()[order])]
    writer, reader = np.unravel_index(order, z.shape)
    score = composed["score"].transpose("writer", "reader").values
    labels = {
        name: ("pair", strings([str(composed[name].values[i]) for i in places]))
        for name, places in (("writer", writer), ("reader", reader))
    }
    values = {
        "z": ("pair", z[writer, reader], composed["z"].attrs),
        "score": ("pair", score[writer, reader], composed["score"].attrs),
    }
    return xr.Dataset(values, labels, composed.attrs)
