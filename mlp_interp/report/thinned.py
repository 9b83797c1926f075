"""Big models are thinned out on the page: a browser draws a few thousand points at once."""

import numpy as np
import xarray as xr

__all__ = ["evenly"]


def evenly(found: xr.Dataset, dim: str, most: int) -> xr.Dataset:
    """At most so many entries along a dim, the first and the last among them."""
    size = found.sizes[dim]
    if size <= most:
        return found
    return found.isel({dim: np.linspace(0, size - 1, most).round().astype(int)})
