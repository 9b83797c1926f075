"""The neurons whose values say best what follows where they are most active."""

import numpy as np
import xarray as xr

from mlp_interp.results import strings
from mlp_interp.sites import Site

__all__ = ["best"]


def best(memories: xr.Dataset, k: int) -> xr.Dataset:
    """The neurons that are right most often, and of these the ones that raise the token most.

    Args:
        memories: What `memories` returned.
        k: How many at most.

    Returns:
        The same variables along ``component`` instead of ``layer`` and ``neuron``; neurons without
        triggers are not among them.
    """
    agreement, lift = (memories[name].fillna(-np.inf).values for name in ("agreement", "lift"))
    order = np.lexsort((-lift.ravel(), -agreement.ravel()))[:k]
    order = order[np.isfinite(agreement.ravel()[order])]
    row, neuron = np.unravel_index(order, agreement.shape)
    rows, neurons = (xr.DataArray(at, dims="component") for at in (row, neuron))
    found = memories.isel(layer=rows, neuron=neurons)
    labels = [
        Site("post", int(layer), neuron=int(unit)).label
        for layer, unit in zip(found["layer"].values, found["neuron"].values, strict=True)
    ]
    return found.assign_coords(component=strings(labels))
