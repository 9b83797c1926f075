"""A direction as a result: what every one of them says about itself."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from mlp_interp.metrics.separation import auroc
from mlp_interp.models import Weights, describe
from mlp_interp.models.protocol import Model
from mlp_interp.sites import GATED, HEADS, NEURONS

__all__ = ["as_direction", "direction_dims", "separation"]


def direction_dims(site: str) -> tuple[str, ...]:
    """Dims of a direction at a site."""
    if site in HEADS:
        return "layer", "head", "d_head"
    return ("layer", "neuron") if site in (*NEURONS, *GATED) else ("layer", "d_model")


def as_direction(
    model: Model,
    values: np.ndarray,
    *,
    site: str,
    layers: Sequence[int],
    heads: Sequence[int] | None = None,
    dims: tuple[str, ...] | None = None,
    coords: Mapping[str, Any] | None = None,
    attrs: Mapping[str, Any],
) -> xr.DataArray:
    """Label the vectors of a direction, with their lengths.

    Args:
        model: The model.
        values: The vectors.
        site: TransformerLens' short name of where they belong.
        layers: Labels along ``layer``.
        heads: Labels along ``head``, where the site has heads.
        dims: Others than the site's.
        coords: Coordinates along all dims but the last.
        attrs: `method`, `long_name`, `data` and what else is to be said.
    """
    dims = dims or direction_dims(site)
    units = dims[:-1]
    labels: dict[str, Any] = {"layer": list(layers)}
    if "head" in dims:
        labels["head"] = list(heads if heads is not None else range(values.shape[1]))
    if "pos" in dims:
        labels["pos"] = np.arange(values.shape[1])
    more = {"norm": np.linalg.norm(values, axis=-1), **(coords or {})}
    return xr.DataArray(
        values,
        dims=dims,
        coords={**labels, **{name: (units, value) for name, value in more.items()}},
        attrs={
            "site": site,
            "unit": "activation",
            "exact": 1,
            "n_layers": Weights.of(model).n_layers,
            **attrs,
            **describe(model),
        },
        name="direction",
    )


def separation(positive: np.ndarray, negative: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """AUROC of two sets of activations ``[prompt, ..., d]`` along directions ``[..., d]``.

    The chance that one of the first set lies further along the direction than one of the second,
    ties counting half.
    """
    return np.asarray(auroc((positive * direction).sum(-1), (negative * direction).sum(-1)))
