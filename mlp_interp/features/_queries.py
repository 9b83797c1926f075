"""Looking things up in a feature index: a feature's neurons, a neuron's features."""

from typing import Any

import numpy as np
import xarray as xr

from mlp_interp.models.indices import index as checked_index
from mlp_interp.models.options import check_choice, checked_count
from mlp_interp.sites import Site, SiteLike, component_coords, neuron_of

__all__ = ["about", "best"]

_OF_NEURONS = ("auroc", "auroc_se", "p_value", "q_value", "p_family")


def best(found: xr.Dataset, feature: str, *, k: int = 10) -> xr.Dataset:
    """The neurons that tell a feature best, whichever way: by the AUROC's distance from 0.5.

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
    mine = found[list(_OF_NEURONS)].sel(feature=feature).transpose("layer", "neuron")
    auroc = mine["auroc"].values
    checked_count(k, auroc.size, "neurons")
    order = np.argsort(-np.abs(auroc - 0.5), axis=None, kind="stable")[:k]
    rows, columns = np.unravel_index(order, auroc.shape)
    layers = found["layer"].values
    neurons = found["neuron"].values
    sites = [
        Site("post", int(layers[a]), neuron=int(neurons[b]))
        for a, b in zip(rows, columns, strict=True)
    ]
    variables: Any = {
        name: ("component", mine[name].values[rows, columns], mine[name].attrs)
        for name in _OF_NEURONS
    }
    return xr.Dataset(variables, coords=component_coords(sites), attrs=found.attrs).assign_attrs(
        feature=feature
    )


def about(found: xr.Dataset, neuron: SiteLike, *, k: int | None = None) -> xr.Dataset:
    """The features that a neuron tells best, whichever way.

    Args:
        found: What `index` gave.
        neuron: A label (``"L3N669"``), a `Site`, or the pair ``(layer, neuron)``.
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
    site = neuron_of(neuron)
    layers = [int(layer) for layer in found["layer"].values]
    check_choice("neuron's layer", site.layer, layers)
    place = checked_index("neuron", site.unit, found.sizes["neuron"])
    mine = found[list(_OF_NEURONS)].isel(layer=layers.index(site.layer or 0), neuron=place)
    size = mine.sizes["feature"]
    wanted = size if k is None else checked_count(k, size, "features")
    order = np.argsort(-np.abs(mine["auroc"].values - 0.5), kind="stable")[:wanted]
    return mine.isel(feature=order).assign_attrs(neuron=site.label)
