"""Texts beside what is ranked: one for each entry, or the few tokens of each."""

from collections.abc import Hashable, Mapping
from itertools import product

import numpy as np
import xarray as xr

from mlp_interp.prompts.display import visible

__all__ = ["flat", "texts_of"]

_SHOWN = 3  # tokens of an entry


def flat(array: xr.DataArray, cells: Mapping[Hashable, int]) -> np.ndarray:
    """An array for each entry, in the order of `cells`; repeated along those it is the same for."""
    lacking = {dim: size for dim, size in cells.items() if dim not in array.dims}
    return (
        array.drop_vars(lacking, errors="ignore")
        .expand_dims(lacking)
        .transpose(*cells)
        .values.ravel()
    )


def texts_of(name: str, held: xr.DataArray, cells: Mapping[Hashable, int]) -> dict[str, np.ndarray]:
    """Columns of a variable of texts: the first few along its last further dimension, joined.

    Each place along the dimensions before that has a column of its own. None where texts are of
    several prompts or positions, over which there is no mean.
    """
    held = held.squeeze([dim for dim in held.dims if dim not in cells and held.sizes[dim] == 1])
    further = [dim for dim in held.dims if dim not in cells]
    if {"prompt", "pos", "sequence", "sample", "draw"} & {*further}:
        return {}
    if not further:
        return {name: _drawn(flat(held, cells))}
    *sides, last = further
    columns = {}
    for at in product(*(range(held.sizes[dim]) for dim in sides)):
        one = held.isel(dict(zip(sides, at, strict=True)))
        each = [_drawn(flat(one.isel({last: n}), cells)) for n in range(one.sizes[last])[:_SHOWN]]
        labels = [str(one[dim].item()) for dim in sides if dim in one.coords]
        texts = [" | ".join(row) for row in zip(*each, strict=True)]
        columns[" ".join([*labels, name])] = np.array(texts, dtype=object)
    return columns


def _drawn(texts: np.ndarray) -> np.ndarray:
    return np.array([visible(str(text)) for text in texts], dtype=object)
