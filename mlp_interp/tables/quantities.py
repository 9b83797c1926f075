"""Results of one thing, which has no entries to rank: all its numbers, one below the other."""

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from mlp_interp.results import mean_and_error_over
from mlp_interp.tables.ranking import error_of
from mlp_interp.tables.subject import with_entries

__all__ = ["caption_of", "quantities"]


def quantities(result: xr.DataArray | xr.Dataset, only: str | None = None) -> pd.DataFrame:
    """A row for each number that a result holds, or the mean of each over its draws.

    Args:
        result: What may hold others beside, which are left out.
        only: The one that is wanted; None for all.

    Returns:
        Columns ``quantity``, ``value``, ``standard_error`` where one is known, and ``unit``.
    """
    held = {str(result.name or "value"): result} if isinstance(result, xr.DataArray) else result
    rows = [
        _row(result, str(name), array)
        for name, array in held.items()
        if (only is None or name == only) and _is_shown(array) and not _is_error(str(name), held)
    ]
    frame = pd.DataFrame(rows, columns=["quantity", "value", "standard_error", "unit"])
    return frame.dropna(axis="columns", how="all")


def caption_of(result: xr.DataArray | xr.Dataset, n: int) -> str:
    """What they are numbers of."""
    thing = result.coords.get("component")
    names = [result.attrs.get("analysis"), thing.item() if thing is not None else None]
    about = ", ".join(str(name) for name in names if name) or "one thing"
    return f"{about}: {n} number" + "s" * (n > 1)


def _row(result: xr.DataArray | xr.Dataset, name: str, array: xr.DataArray) -> dict[str, Any]:
    unit = array.attrs.get("unit", "")
    error = error_of(result, name)
    for dim in array.dims:  # none, or draws
        array, error = mean_and_error_over(array.astype(float), str(dim))
    known = error is not None and not error.dims and np.isfinite(error)
    return {
        "quantity": name,
        "value": array.item(),
        "standard_error": float(error) if known and error is not None else None,
        "unit": unit,
    }


def _is_shown(array: xr.DataArray) -> bool:
    return array.dtype.kind in "fiub" and len(array.dims) < 2 and not with_entries(array)


def _is_error(name: str, held: Any) -> bool:
    return name.endswith("_se") and name.removesuffix("_se") in held
