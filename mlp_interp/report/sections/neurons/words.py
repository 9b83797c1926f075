"""What the neurons do, in sentences and numbers."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xarray as xr

from mlp_interp.report.format import percent
from mlp_interp.report.sections.neurons.compute import Neurons


@dataclass(frozen=True)
class Layer:
    """The neurons of one layer.

    Attributes:
        layer: Its number.
        fraction: Median over neurons of the fraction of positions at which they fire.
        low: The fraction that a tenth of the neurons stays below.
        high: The fraction that a tenth of them exceeds.
        predicted: Median of what the weights alone predict, `activation_volume`.
        dead: How many never fire here.
        always: How many always do.
        outliers: How many fire unlike the others.
        needed: Neurons whose sub-updates' sum has the wanted cosine to the update, median.
        constant: Share of the update's mean square that is always the same.
    """

    layer: int
    fraction: float
    low: float
    high: float
    predicted: float
    dead: int
    always: int
    outliers: int
    needed: int
    constant: float


def layers(neurons: Neurons) -> list[Layer]:
    """One row for each layer."""
    found, updates = neurons.activity, neurons.updates
    low, middle, high = np.quantile(found["fraction"].values, [0.1, 0.5, 0.9], axis=1)
    columns = [
        *(found["layer"].values, middle, low, high),
        np.median(found["activation_volume"].values, axis=1),
        *(found[name].values.sum(1) for name in ("dead", "always", "outlier")),
        *(updates["needed_median"].values, updates["explained"].values),
    ]
    return [Layer(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def sentences(neurons: Neurons) -> list[str]:
    """What to know first: how often neurons fire, and how many are behind an update."""
    rows, found = layers(neurons), neurons.activity
    count = found["fraction"].size
    fraction = float(found["fraction"].median())
    predicted = float(found["activation_volume"].median())
    least, most = _ends(rows, "fraction")
    text = f"The median neuron fires at {percent(fraction)} of positions"
    if len(rows) > 1:
        text += f" (from {percent(least.fraction)} in layer {least.layer} to "
        text += f"{percent(most.fraction)} in layer {most.layer})"
    text += ", where the weights alone, for streams in all directions, would say "
    text += f"{percent(predicted)}. {_outliers(neurons.outliers, rows, count)}"
    return [text, _behind(neurons.updates, rows, found.sizes["neuron"])]


def numbers(neurons: Neurons) -> dict[str, Any]:
    """The same, and the tables of the section, for the JSON file."""
    found, far = neurons.activity, neurons.outliers
    names = ("fraction", "fraction_se", "activation_volume", "receptor_norm_folded", "z")
    each = {
        str(label): {name: float(far[name].values[n]) for name in names}
        | {"promoted": [str(text) for text in far["promoted_text"].values[n]]}
        for n, label in enumerate(far["component"].values)
    }
    return {
        "fraction_median": float(found["fraction"].median()),
        "predicted_median": float(found["activation_volume"].median()),
        "layers": {row.layer: asdict(row) for row in layers(neurons)},
        "outliers": each,
        "examples": dict(
            zip(neurons.examples["component"].values, neurons.examples["why"].values, strict=True)
        ),
    }


def _ends(rows: list[Layer], name: str) -> tuple[Layer, Layer]:
    by = sorted(rows, key=lambda row: getattr(row, name))
    return by[0], by[-1]


def _outliers(far: xr.Dataset, rows: list[Layer], count: int) -> str:
    total, dead = (sum(getattr(row, name) for row in rows) for name in ("outliers", "dead"))
    text = (
        f"Of {count:,} neurons, {total:,} {'is an outlier' if total == 1 else 'are outliers'} of "
    )
    text += f"their layer, and {dead:,} never {'fires' if dead == 1 else 'fire'} here"
    often = far.isel(component=(far["z"] > 0).values)
    if not often.sizes["component"]:
        return f"{text}."
    first = often.isel(component=0)
    return (
        f"{text}; {first['component'].item()} is furthest above its layer, with "
        f"{percent(float(first['fraction']))}."
    )


def _behind(updates: xr.Dataset, rows: list[Layer], size: int) -> str:
    few, many = _ends(rows, "needed")
    steady = _ends(rows, "constant")[1]
    level = float(updates.attrs["level"])
    if few.needed == many.needed:
        span = f"{few.needed:,}"
    else:
        span = f"{few.needed:,} (layer {few.layer}) to {many.needed:,} (layer {many.layer})"
    return (
        f"Of a layer's {size:,} neurons, the {span} most active ones add up to the direction of a "
        f"typical MLP update (cosine {level:g}); what is the same at every token makes up to "
        f"{percent(steady.constant)} of its mean square (layer {steady.layer})."
    )
