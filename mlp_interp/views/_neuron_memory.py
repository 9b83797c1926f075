"""A neuron as a memory, for its page: its triggers, what follows them, and chance."""

from typing import Any

import numpy as np
import xarray as xr

from mlp_interp.sites import Site
from mlp_interp.views.numbers import number, percent

__all__ = ["memory"]

_NEEDED = (
    *("agreement", "agreement_chance", "agreement_p", "lift", "lift_chance", "lift_p", "rank"),
    *(
        "promoted",
        "promoted_text",
        "trigger_text",
        "activation",
        "next",
        "next_text",
        "sequence",
        "pos",
    ),
)


def memory(page: xr.Dataset, found: xr.Dataset) -> dict[str, Any]:
    """What the template shows of what `memories` found.

    Raises:
        ValueError: It is no such result, of another model, or without this neuron.
    """
    missing = [name for name in _NEEDED if name not in getattr(found, "variables", ())]
    if missing:
        raise ValueError(
            f"memories lacks {', '.join(map(repr, missing))}; wanted the Dataset of memories"
        )
    for name in ("model", "revision", "processing"):
        ours, theirs = (x.attrs.get(name) for x in (page, found))
        # Nothing of either depends on processing, but both should be of one loaded model.
        if ours != theirs:
            raise ValueError(f"memories is of {name}={theirs!r}; wanted the page's, {ours!r}")
    label = str(page["component"].item())
    site = Site.parse(label) if "latent" not in page.coords else None
    known = site is not None and site.layer in found["layer"] and site.neuron in found["neuron"]
    if site is None or not known:
        raise ValueError(f"memories has nothing of {label}; wanted layers with this neuron")
    one = found.sel(layer=site.layer, neuron=site.neuron)
    triggers = _triggers(page, one)
    said = {name: number(one[name]) for name in ("lift", "lift_chance", "lift_p")}
    return {
        **said,
        "promoted": [str(text) for text in one["promoted_text"].values],
        "triggers": triggers,
        "agreement": percent(one["agreement"]),
        "agreement_chance": percent(one["agreement_chance"]),
        "agreement_p": number(one["agreement_p"]),
        "rank": f"{float(one['rank']):,g}",
        "rank_chance": f"{float(one['rank_chance']):,g}" if "rank_chance" in one else "",
        "known": bool(one["agreement"].notnull()),
        "data": "" if found.attrs.get("data") == page.attrs.get("data") else found.attrs["data"],
    }


def _triggers(page: xr.Dataset, one: xr.Dataset) -> list[dict[str, Any]]:
    """The triggers that there are, with the text before where the page has it."""
    before: dict[tuple[int, int], list[str]] = {}
    if one.attrs.get("data") == page.attrs.get("data") and "example" in page.sizes:
        earlier = page["top_text"].isel(context=page["context"].values < 0)
        places = zip(page["top_sequence"].values, page["top_pos"].values, strict=True)
        for (sequence, pos), text in zip(places, earlier.values, strict=True):
            before[int(sequence), int(pos)] = [str(x) for x in text if x != ""]
    rows = []
    for i in np.flatnonzero(one["activation"].notnull().values):
        here = one.isel(example=i)
        follows = int(here["next"])
        rows.append(
            {
                "activation": number(here["activation"], sign=True),
                "before": before.get((int(here["sequence"]), int(here["pos"])), []),
                "token": str(here["trigger_text"].item()),
                "next": str(here["next_text"].item()) if follows >= 0 else "",
                "end": follows < 0,
                "agrees": follows >= 0 and follows == int(one["promoted"][0]),
            }
        )
    return rows
