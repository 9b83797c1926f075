"""What `mlp-interp absorption` prints."""

import xarray as xr

from mlp_interp.cli.columns import columns
from mlp_interp.prompts.display import visible
from mlp_interp.views.numbers import number

__all__ = ["lines_of"]

_HEAD = ("kind", "main", "F1", "found", "false alarms", "missed", "full", "by chance", "partial")


def lines_of(found: xr.Dataset) -> list[str]:
    """A line a kind: its main latents, how the direction finds it, and what others take over.

    Args:
        found: What `latents.absorption` gave.
    """
    rows: list[tuple[str, ...]] = [(*_HEAD, "by chance")]
    for kind in found["kind"].values.tolist():
        one = found.sel(kind=kind)
        main = ", ".join(str(n) for n in one["main"].values.tolist() if n >= 0)
        numbers = [number(one[name]) for name in ("f1", "found", "false_alarms", "missed")]
        for name in ("full", "partial"):
            numbers += [number(one[name], one[f"{name}_se"]), number(one[f"{name}_null"])]
        rows.append((str(kind), main or "none", *numbers))
    attrs = found.attrs
    about = f"{attrs['dictionary']}, of {attrs['model']}"
    note = (
        "shares of the texts that the direction finds, with standard errors; by chance: with "
        "decoder rows exchanged"
    )
    return [visible(about), *map(visible, columns(rows)), note]
