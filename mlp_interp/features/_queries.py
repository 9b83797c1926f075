"""Looking things up in a feature index: a feature's units, a unit's features."""

from typing import Any

import numpy as np
import xarray as xr

from mlp_interp.features.units import site_at, unit_of
from mlp_interp.models.indices import index as checked_index
from mlp_interp.models.options import check_choice, checked_count
from mlp_interp.sites import Site, SiteLike, component_coords, neuron_of, site_of

__all__ = ["about", "best"]

_OF_UNITS = ("auroc", "auroc_se", "p_value", "q_value", "p_family")


def best(found: xr.Dataset, feature: str, *, k: int = 10) -> xr.Dataset:
    """The neurons, heads or latents that tell a feature best, by the AUROC's distance from 0.5.

    Args:
        found: What `index` gave.
        feature: One of its features.
        k: How many.

    Returns:
        The numbers of `index` along ``component``, the best first.

    Raises:
        ValueError: There is no such feature, or not so many neurons.

    Example:
        >>> from mlp_interp import load_model
        >>> from mlp_interp.features import index
        >>> texts = ["Il aime le pain."] * 4 + ["He likes the bread."] * 4
        >>> found = index(load_model("nano"), texts, {"French": [True] * 4 + [False] * 4})
        >>> best(found, "French", k=3).sizes["component"]
        3
    """
    check_choice("feature", feature, [str(name) for name in found["feature"].values])
    unit = unit_of(found)
    mine = found[list(_OF_UNITS)].sel(feature=feature).transpose("layer", unit)
    auroc = mine["auroc"].values
    checked_count(k, auroc.size, f"{unit}s")
    order = np.argsort(-np.abs(auroc - 0.5), axis=None, kind="stable")[:k]
    rows, columns = np.unravel_index(order, auroc.shape)
    layers, places = found["layer"].values, found[unit].values
    sites = [
        site_at(unit, int(layers[a]), int(places[b])) for a, b in zip(rows, columns, strict=True)
    ]
    variables: Any = {
        name: ("component", mine[name].values[rows, columns], mine[name].attrs)
        for name in _OF_UNITS
    }
    return xr.Dataset(variables, coords=component_coords(sites), attrs=found.attrs).assign_attrs(
        feature=feature
    )


def about(found: xr.Dataset, neuron: SiteLike, *, k: int | None = None) -> xr.Dataset:
    """The features that a neuron, head or latent tells best, whichever way.

    Args:
        found: What `index` gave.
        neuron: A label (``"L3N669"``, ``"L3H5"``, ``"L3F17"``), a `Site`, or the pair of its layer
            and number.
        k: How many features; None for all.

    Returns:
        The numbers of `index` along ``feature``, the best first.

    Raises:
        ValueError: The index has no such neuron, or not so many features.

    Example:
        >>> from mlp_interp import load_model
        >>> from mlp_interp.features import index
        >>> texts = ["Il aime le pain."] * 4 + ["He likes the bread."] * 4
        >>> found = index(load_model("nano"), texts, {"French": [True] * 4 + [False] * 4})
        >>> about(found, "L0N433").auroc.dims
        ('feature',)
    """
    unit = unit_of(found)
    site = _unit(neuron, unit)
    layers = [int(layer) for layer in found["layer"].values]
    check_choice("neuron's layer", site.layer, layers)
    place = checked_index("neuron", site.unit, found.sizes[unit])
    mine = found[list(_OF_UNITS)].isel({"layer": layers.index(site.layer or 0), unit: place})
    size = mine.sizes["feature"]
    wanted = size if k is None else checked_count(k, size, "features")
    order = np.argsort(-np.abs(mine["auroc"].values - 0.5), kind="stable")[:wanted]
    return mine.isel(feature=order).assign_attrs(neuron=site.label)


def _unit(given: SiteLike, unit: str) -> Site:
    """What was named, if the index is of such units."""
    if unit == "neuron":
        return neuron_of(given)
    if not isinstance(given, str | Site):
        pair = site_of(given, kind="neuron", argument="neuron")
        return site_at(unit, pair.layer or 0, pair.unit)
    site = site_of(given, argument="neuron")
    if site.kind != unit or site == site.whole:
        example = site_at(unit, 3, 5).label
        raise ValueError(f"neuron={site.label!r}, and the index is of {unit}s; wanted {example!r}")
    return site
