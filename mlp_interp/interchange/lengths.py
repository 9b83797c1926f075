"""Contrasts whose pairs differ in length: each length is analysed by itself, then put together.

No engine knows of padding. `Question.by_length` and `Question.parts` give questions about prompts
of one length; what they are answered with comes back here into the order of the prompts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

__all__ = ["in_order", "merged", "order_of"]

_BY_LENGTH = ("pos", "source")


def order_of(numbers: Sequence[Sequence[int]]) -> list[int]:
    """Where each prompt stands in what was found of some of them after the other.

    Args:
        numbers: The numbers of the prompts of each part.

    Example:
        >>> order_of([(1, 2), (0,)])
        [2, 0, 1]
    """
    return np.argsort([number for some in numbers for number in some], kind="stable").tolist()


def in_order(numbers: Sequence[Sequence[int]], pieces: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays of some prompts each, along the last axis, as one in the order of the prompts."""
    order, whole = order_of(numbers), np.concatenate(pieces, axis=-1)
    return whole if order == [*range(len(order))] else whole[..., order]


def merged(results: Sequence[xr.Dataset], attrs: Mapping[str, Any]) -> xr.Dataset:
    """Results of prompts of one length each as one of all prompts, in their order.

    Positions are all that any prompt has. Where a prompt has none, numbers are NaN, texts empty and
    flags False. Checks are the largest of all.

    Args:
        results: Of the same analysis, with the numbers of the prompts as coordinate ``prompt``.
        attrs: What is said of the whole contrast.
    """
    if len(results) == 1:
        return results[0]
    checks = [str(name) for name in results[0] if str(name).startswith("check_")]
    # Only a single prompt has tokens of its own along positions.
    parts = [_positions_by_prompt(one.drop_vars("token", errors="ignore")) for one in results]
    for dim in _BY_LENGTH:
        if dim in parts[0].dims:
            parts = [_reindexed(part, dim, _union(parts, dim)) for part in parts]
    whole = xr.concat(
        [part.drop_vars(checks) for part in parts],
        "prompt",
        data_vars="minimal",
        coords="minimal",
        compat="equals",
        join="exact",
        combine_attrs="override",
    ).sortby("prompt")
    largest = {
        name: results[0][name].copy(data=max(float(one[name]) for one in results))
        for name in checks
    }
    return whole.assign(largest).assign_attrs({**results[0].attrs, **attrs})


def _positions_by_prompt(part: xr.Dataset) -> xr.Dataset:
    """A single position lies along the prompts: those of other lengths may have another one."""
    if "pos" not in part.coords or part["pos"].ndim:
        return part
    places = np.full(part.sizes["prompt"], part["pos"].item())
    return part.drop_vars("pos").assign_coords(pos=("prompt", places))


def _union(parts: Sequence[xr.Dataset], dim: str) -> list[int]:
    """All positions: in the order asked for where it is the same, else ascending."""
    asked = [part[dim].values.tolist() for part in parts]
    if all(places == asked[0] for places in asked):
        return asked[0]
    return sorted({place for places in asked for place in places})


def _reindexed(part: xr.Dataset, dim: str, places: list[int]) -> xr.Dataset:
    empty = {"b": False, "U": ""}
    kinds = {name: x.dtype.kind for name, x in part.variables.items() if dim in x.dims}
    fill = {name: empty[kind] for name, kind in kinds.items() if kind in empty}
    return part.reindex({dim: places}, fill_value={**dict.fromkeys(kinds, np.nan), **fill})
