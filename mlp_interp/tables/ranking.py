"""The largest entries of a result: what is ranked, and what is averaged over."""

from collections.abc import Hashable, Mapping

import numpy as np
import xarray as xr

from mlp_interp.models.indices import count
from mlp_interp.results import change_over_gap, is_of_gaps
from mlp_interp.sites import HEADS, NEURONS, STREAM, Site
from mlp_interp.tables.subject import DRAWS, chosen

__all__ = [
    "UNITS",
    "averaged",
    "error_of",
    "labels_of",
    "named",
    "top",
    "values_of",
]

UNITS: Mapping[Hashable, str] = {"head": "z", "neuron": "post"}
"""Dimensions of single units, and the site that a quantity of theirs is of."""

_SITES = (*STREAM, *HEADS, *NEURONS, "pattern")
_OF_MEANS = ("score_se", "auroc_se")  # what the errors of scores over folds are called
_RANKED = ("component", "sender", "receiver", "node", "site")


def top(
    result: xr.DataArray | xr.Dataset,
    k: int = 10,
    *,
    dim: str | None = None,
    value: str | None = None,
) -> xr.DataArray:
    """The `k` entries of largest absolute value along `dim`, averaged over all else, in order.

    Where ``normalized`` is of several prompts, that is their mean change over their mean gap; given
    by itself, as a DataArray, it is averaged like anything else.

    Args:
        result: What is ranked: shares, effects, patching results. `table` prints them with their
            errors.
        k: How many.
        dim: What is ranked: a dimension, or a coordinate with a label for each entry of several
            (``component`` of a grid over layers and heads); None for the first that the result has
            of ``component``, ``sender``, ``receiver``, ``node`` and ``site``.
        value: Which variable of a Dataset; None for what it is about (``kl_total``, ``normalized``
            and their kin).

    Returns:
        A DataArray along `dim` alone, with its coordinates.

    Raises:
        ValueError: `dim` or `value` is not in the result, or `k` is not positive.

    Example:
        >>> top(xr.DataArray([1.0, -3.0, 2.0], {"component": ["a", "b", "c"]}), 2).component.values
        array(['b', 'c'], dtype='<U1')
    """
    array = chosen(result, value)
    if is_of_gaps(result, str(array.name)):
        array = change_over_gap(result)[0].rename(array.name)
    array = named(array)
    known = [name for name in _RANKED if name in array.dims or name in array.coords]
    dim = (known or [_RANKED[0]])[0] if dim is None else dim
    over: tuple[Hashable, ...] = array.coords[dim].dims if dim in array.coords else (dim,)
    if not over or not {*over} <= {*array.dims}:
        raise ValueError(f"dim={dim!r} is not a dimension of the result {array.dims}")
    k = count("k", k)
    mean = array.mean([d for d in array.dims if d not in over], keep_attrs=True)
    if over != (dim,):
        mean = mean.stack({dim: over}, create_index=False)
    order = np.argsort(-np.abs(mean.values), kind="stable")[:k]
    return mean.isel({dim: order})


def labels_of(array: xr.DataArray, values: Mapping[Hashable, np.ndarray]) -> np.ndarray | None:
    """Labels such as ``L3H5`` and ``3.resid_pre``; None for what is of whole layers only."""
    unit = next((dim for dim in UNITS if dim in values), None)
    name = str(array.name) if str(array.name) in _SITES else UNITS.get(unit)
    names = values.get("site", [name] * len(values["layer"]))
    if names[0] is None:
        return None
    places = [{}] * len(names) if unit is None else [{str(unit): int(i)} for i in values[unit]]
    each = zip(names, values["layer"], places, strict=True)
    return np.array([Site(str(name), int(layer), **place).label for name, layer, place in each])


def named(array: xr.DataArray) -> xr.DataArray:
    """With a label for each head or neuron by layer, where it has none."""
    unit = next((str(dim) for dim in UNITS if dim in array.dims), None)
    if "component" in array.coords or unit is None or "layer" not in array.dims:
        return array
    values = np.meshgrid(values_of(array, "layer"), values_of(array, unit), indexing="ij")
    labels = labels_of(array, {"layer": values[0].ravel(), unit: values[1].ravel()})
    grid = np.array(labels).reshape(values[0].shape)
    return array.assign_coords(component=(("layer", unit), grid))


def error_of(result: xr.DataArray | xr.Dataset, name: str) -> xr.DataArray | None:
    """The standard error that a result has of one of its variables, which is a mean already."""
    own = f"{name.removesuffix('_mean').removesuffix('_rate')}_se"
    names = [f"{name}_se", own, *(_OF_MEANS if name == "mean" else ())]
    names = [n for n in names if isinstance(result, xr.Dataset) and n in result]
    return result[names[0]] if names else None


def averaged(array: xr.DataArray) -> list[Hashable]:
    """What entries are means over: draws, and positions of shares and effects of components."""
    draws: list[Hashable] = [dim for dim in array.dims if dim in DRAWS]
    whole = "component" in array.dims and "pos" in array.dims
    return [*draws, "pos"] if whole else draws


def values_of(array: xr.DataArray, dim: Hashable) -> np.ndarray:
    """The labels along a dimension, which are its numbers where it has none."""
    return array[dim].values if dim in array.coords else np.arange(array.sizes[dim])
