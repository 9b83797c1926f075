"""What an edit may be, as far as it can be said without a model."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mlp_interp.edits.selection import axes

if TYPE_CHECKING:
    from mlp_interp.edits.edit import Edit

__all__ = ["check_selection", "check_value"]


def check_selection(edit: "Edit") -> None:
    """Refuse a selection that the site cannot have.

    Raises:
        ValueError: Units or keys where there are none, or nothing selected.
    """
    label, where = edit.site.label, axes(edit.site.name)
    if edit.units is not None and "units" not in where:
        raise ValueError(f"units={edit.units}: site {label!r} has no heads or neurons")
    if edit.units is not None and edit.chosen is not edit.units:
        raise ValueError(f"units={edit.units} beside site={label!r}; wanted one of the two")
    if edit.keys is not None and "keys" not in where:
        raise ValueError(f"keys={edit.keys}: site {label!r} is no pattern")
    for name in ("positions", "units", "keys"):
        if getattr(edit, name) == ():
            raise ValueError(f"{name}=() at {label!r} selects nothing; wanted None for all")


def check_value(edit: "Edit") -> None:
    """Refuse a value that the action cannot use.

    Raises:
        ValueError: It is not of the kind that the action wants, or not finite.
    """
    if isinstance(edit.value, tuple) != (edit.action == "clamp"):
        wanted = "the pair (low, high)" if edit.action == "clamp" else "a number or a tensor"
        raise ValueError(f"value={edit.value} of {edit.action!r}; wanted {wanted}")
    if edit.action in ("project_out", "noise") and edit.site.name == "pattern":
        raise ValueError(
            f"site={edit.site.label!r} with {edit.action!r}; wanted set, add, scale or clamp"
        )
    for value in (edit.value,) if edit.action == "project_out" else edit.values:
        _check_finite(edit, torch.as_tensor(value))
    if edit.action in _CHECKS:
        _CHECKS[edit.action](edit)


def _check_finite(edit: "Edit", value: Tensor) -> None:
    wrong = ~value.isfinite() if edit.action != "clamp" else value.isnan()
    if wrong.any():
        raise ValueError(
            f"value of {edit.action!r} at {edit.site.label!r} holds "
            f"{float(value[wrong].flatten()[0])}; wanted finite numbers"
        )


def _check_clamp(edit: "Edit") -> None:
    bounds = edit.values
    if not bounds:
        raise ValueError("low=None and high=None; wanted at least one of them")
    if len(bounds) == 2 and (torch.as_tensor(bounds[0]) > torch.as_tensor(bounds[1])).any():
        raise ValueError(f"low={bounds[0]} is above high={bounds[1]}")


def _check_project_out(edit: "Edit") -> None:
    shape = tuple(torch.as_tensor(edit.value).shape)
    if len(shape) not in (1, 2):
        raise ValueError(f"directions of shape {shape}; wanted [d] or [k, d]")
    if edit.site.name in ("pre", "post") and edit.chosen is not None:
        raise ValueError(
            f"units={edit.chosen} at {edit.site.label!r}; wanted all neurons, which a "
            "direction goes across"
        )
    if not len(edit.basis):
        raise ValueError("directions are all zero; wanted one that is not")


def _check_noise(edit: "Edit") -> None:
    if (torch.as_tensor(edit.value) < 0).any():
        raise ValueError(f"std={edit.value}; wanted none below 0")
    if edit.seed < 0:
        raise ValueError(f"seed={edit.seed}; wanted an integer from 0")


_CHECKS: dict[str, Callable[["Edit"], None]] = {
    "clamp": _check_clamp,
    "project_out": _check_project_out,
    "noise": _check_noise,
}
