"""Neurons as memories, in sentences, numbers and for the page's template."""

from typing import Any

import numpy as np
import xarray as xr

from mlp_interp import plots
from mlp_interp.prompts.display import visible
from mlp_interp.report.figure import WIDE, drawing
from mlp_interp.report.format import number, percent
from mlp_interp.report.sections.memories.compute import Memories
from mlp_interp.report.thinned import evenly

__all__ = ["numbers", "sentences", "shown"]

LAYERS = 12
"""That many are drawn, evenly among more."""


def shown(found: Memories) -> dict[str, Any]:
    """What the template takes."""
    size, some = found.neurons.sizes["layer"], evenly(found.neurons, "layer", LAYERS)
    left = (
        f" {some.sizes['layer']} of {size} layers are drawn." if some.sizes["layer"] < size else ""
    )
    events = plots.update_events(evenly(found.events, "layer", LAYERS))
    return {
        "heading": "Do neurons say what comes next?",
        "intro": "Read as a memory, a neuron's receptor is a key for a kind of text, and its value "
        "vector a guess of what follows. Its triggers are the places where it is most active.",
        "note": left,
        "memories": drawing(plots.memories(some), width=WIDE),
        "events": drawing(events, height=600, width=WIDE, margin_b=240, legend2_y=-0.48),
        "best": _best(found.best),
    }


def sentences(found: Memories) -> list[str]:
    """Whether values say what follows, and whether that is what changes predictions."""
    mean = found.neurons[["agreement", "agreement_chance"]].mean()
    right, chance = float(mean["agreement"]), float(mean["agreement_chance"])
    times = f", {number(right / chance)} times as often as other values" if chance > 0 else ""
    text = (
        f"The token that a neuron promotes most follows {percent(right)} of its triggers{times} "
        f"({percent(chance)}); at the median trigger of the median neuron it has rank "
        f"{_median(found.neurons, 'rank')} instead of {_median(found.neurons, 'rank_chance')}."
    )
    changed = found.events.sel(event="changed")
    at = int(np.nanargmax(changed["share"].values))
    layer, share = found.events["layer"].values[at], float(changed["share"][at])
    decided = float(changed["promotion"].mean())
    return [
        text,
        f"The MLP of layer {layer} changes the prediction most often, at {percent(share)} of "
        f"positions; over layers, {percent(decided)} of changes raise the new token by more than "
        "they lower the old one.",
    ]


def numbers(found: Memories) -> dict[str, Any]:
    """By layer, and the neurons that are listed."""
    by_layer = found.neurons[["agreement", "agreement_chance"]].mean("neuron")
    changed = found.events.sel(event="changed")
    return {
        "agreement": by_layer["agreement"].values.tolist(),
        "agreement_chance": by_layer["agreement_chance"].values.tolist(),
        "changed": changed["share"].values.tolist(),
        "promotion": changed["promotion"].values.tolist(),
        "best": {row["label"]: row["right"] for row in _best(found.best)},
    }


def _median(found: xr.Dataset, name: str) -> str:
    return f"{float(found[name].median()):,.0f}"


def _best(found: xr.Dataset) -> list[dict[str, Any]]:
    """One row for each neuron, with its first trigger."""
    rows = []
    for n, label in enumerate(found["component"].values):
        one = found.isel(component=n)
        words = [visible(str(word)) for word in one["text"].isel(example=0).values]
        at = [int(offset) for offset in one["context"].values].index(0)
        rows.append(
            {
                "label": str(label),
                "right": float(one["agreement"]),
                "chance": float(one["agreement_chance"]),
                "promoted": visible(str(one["promoted_text"].values[0])),
                "before": "".join(words[:at]),
                "trigger": words[at],
                "after": "".join(words[at + 1 :]),
            }
        )
    return rows
