"""The largest entries of a result: what is ranked, and what is averaged over."""

from collections.abc import Hashable, Mapping

import numpy as np
import xarray as xr

from mlp_interp.models.indices import count
from mlp_interp.results import change_over_gap, is_of_gaps
from mlp_interp.sites import HEADS, NEURONS, STREAM, Site, did_you_mean

__all__ = [
    "DRAWS",
    "UNITS",
    "averaged",
    "chosen",
    "error_of",
    "labels_of",
    "named",
    "top",
    "values_of",
]

DRAWS = ("prompt", "sequence", "sample", "draw")
"""Dimensions along which entries are draws of one quantity, and are averaged."""

UNITS: Mapping[Hashable, str] = {"head": "z", "neuron": "post"}
"""Dimensions of single units, and the site that a quantity of theirs is of."""

_SITES = (*STREAM, *HEADS, *NEURONS, "pattern")
_RANKED = ("component", "sender", "receiver", "node", "site")
# What a result is about, where it has several variables.
_MAIN = (
    *("kl_total", "kl_mean", "perplexity", "normalized", "average_indirect", "estimate"),
    *("fraction", "value_norm_folded", "promoted_logit", "norm", "kl"),
)

# The same by analysis, where names alone do not tell.
_OF = {
    "lens": "kl_output",
    "lens over a corpus": "kl_output",
    "roles of heads": "copying_z",
    "positions": "score",
    "composition of heads": "z",
    "match of heads": "match",
    "kinds of heads": "score",
    "induction circuits": "compose_z",
    "parts of attention scores": "parts",
    "shares of what is read": "share",
    "table": "best_value",
    "virtual_weights": "best_value",
    "singular": "singular_value",
    "subspaces": "overlap",
    "bigrams": "loss",
    "embedding_fidelity": "cosine",
    "memories": "agreement",
    "composition": "compositional",
    "update_events": "total",
    "pursue": "coefficient",
    "projection": "projection",
    "activations in texts": "activation",
}


def chosen(result: xr.DataArray | xr.Dataset, value: str | None) -> xr.DataArray:
    """The variable that is ranked: the one named, or what the result is about.

    Raises:
        ValueError: There is none of that name, it holds no numbers, or none is known to be what the
            result is about.
    """
    if isinstance(result, xr.DataArray):
        if value is not None and value != result.name:
            raise ValueError(
                f"value={value!r} of a DataArray, {result.name!r}; wanted None, or a Dataset"
            )
        return result
    numbers = [str(name) for name, held in result.items() if _is_number(held)]
    if value is None:
        value = _OF.get(str(result.attrs.get("analysis")))
    if value is None:
        value = next((name for name in _MAIN if name in numbers), None)
        alone = [name for name in numbers if result[name].dims]
        if value is None and len(alone) == 1:
            value = alone[0]
        if value is None:
            raise ValueError(f"value=None of a result with {numbers}; wanted one of them")
    if value not in numbers:
        near = did_you_mean(str(value), numbers)
        raise ValueError(f"value={value!r}{near}; wanted one of {numbers}")
    return result[value].rename(value)


def top(
    result: xr.DataArray | xr.Dataset,
    k: int = 10,
    *,
    dim: str | None = None,
    value: str | None = None,
) -> xr.DataArray:
    """The `k` entries of largest absolute value along `dim`, averaged over all else, in order.

    Where ``normalized`` is of several prompts, that is their mean change over their mean gap.

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
    if isinstance(result, xr.Dataset) and is_of_gaps(result, str(array.name)):
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
    names = [n for n in (f"{name}_se", own) if isinstance(result, xr.Dataset) and n in result]
    return result[names[0]] if names else None


def averaged(array: xr.DataArray) -> list[Hashable]:
    """What entries are means over: draws, and positions of shares and effects of components."""
    draws: list[Hashable] = [dim for dim in array.dims if dim in DRAWS]
    whole = "component" in array.dims and "pos" in array.dims
    return [*draws, "pos"] if whole else draws


def values_of(array: xr.DataArray, dim: Hashable) -> np.ndarray:
    """The labels along a dimension, which are its numbers where it has none."""
    return array[dim].values if dim in array.coords else np.arange(array.sizes[dim])


def _is_number(held: xr.DataArray) -> bool:
    return held.dtype.kind in "fiu"
