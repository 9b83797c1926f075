"""The parts of a neuron's page as labelled variables."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from mlp_interp.models.protocol import Model
from mlp_interp.neurons.weights.similar import nearest_neurons
from mlp_interp.prompts.reading import texts
from mlp_interp.results import variable
from mlp_interp.sites import NEURONS, Site

__all__ = ["activity", "bands", "direct", "examples", "similar"]


_EXAMPLES = {
    "activation": "activation of the example",
    "sequence": "the example's sequence in the corpus, -1 for none",
    "pos": "the example's position in its sequence, -1 for none",
    "token": "tokens around the example, -1 beyond the ends of a sequence",
    "around": "activation at the tokens around the example",
}


def activity(found: dict[str, xr.Dataset], names: Sequence[str] = NEURONS) -> dict[str, Any]:
    """How often it fires, moments, histograms."""
    bins = [found[f"bins.{name}"] for name in names]
    variables: dict[str, Any] = {"site": ("site", list(names))}
    for name in ("fraction", "fraction_se"):
        long_name = "share of positions at which it fires"
        variables[name] = found["fraction"][name].assign_attrs(long_name=long_name)
    for name in ("mean", "std", "least", "greatest"):
        values = [float(found[f"moments.{where}"][name]) for where in names]
        about = f"{name} over positions"
        variables[name] = variable("site", values, unit="activation", long_name=about)
    variables["histogram"] = xr.DataArray(
        np.stack([one["count"].values for one in bins]),
        {
            "bin_low": ("bin", bins[0]["low"].values, {"unit": "activation"}),
            "bin_high": ("bin", bins[0]["high"].values, {"unit": "activation"}),
        },
        ("site", "bin"),
        attrs={"unit": "positions", "long_name": "positions by activation"},
    )
    return variables


def examples(model: Model, found: xr.Dataset, prefix: str, along: str) -> dict[str, Any]:
    """Examples under names of their own, places that do not exist left out, and tokens as text."""
    there = found["sequence"] >= 0
    some = there.any([dim for dim in there.dims if dim != along])
    real = found.isel({along: some.values})
    token = real["token"]
    words = texts(model, np.maximum(token.values, 0))
    text = token.copy(data=np.where(token.values < 0, "", words).astype(object))
    variables = {
        f"{prefix}_{name}": real[name].reset_coords(drop=True)
        for name in ("activation", "sequence", "pos", "token", "around")
    }
    variables[f"{prefix}_text"] = text.reset_coords(drop=True).assign_attrs(
        unit="text", long_name="the token as text; nothing beyond the ends of a sequence"
    )
    for name, about in _EXAMPLES.items():
        variables[f"{prefix}_{name}"].attrs.setdefault("long_name", about)
    return variables


def bands(drawn: xr.Dataset) -> dict[str, Any]:
    """What the bands are."""
    about = (
        ("low", "activation", "from this"),
        ("high", "activation", "to below this"),
        ("count", "positions", "positions in the band"),
    )
    return {
        f"band_{name}": variable("band", drawn[name].values, unit=unit, long_name=said)
        for name, unit, said in about
    }


def direct(words: xr.Dataset, coefficient: Any) -> dict[str, Any]:
    """What it adds to the logits of the tokens that it promotes and suppresses."""
    return {
        f"{name}_direct": (words[f"{name}_logit"] * coefficient.values)
        .reset_coords(drop=True)
        .assign_attrs(unit="logits", long_name="added directly to the logit when it fires, mean")
        for name in ("promoted", "suppressed")
    }


def similar(model: Model, site: Site, k: int) -> dict[str, Any]:
    """The nearest neurons, by what they write and by what they read."""
    kinds = ("value", "receptor")
    nearest = [nearest_neurons(model, site, k=k, by=by) for by in kinds]
    dims = ("by", "rank")
    labels = np.stack([one["component"].values.astype(object) for one in nearest])
    return {
        "by": ("by", list(kinds)),
        "similar": variable(dims, labels, unit="label", long_name="nearest neurons"),
        **{
            f"similar_{kind}_cosine": variable(
                dims,
                np.stack([one[f"{kind}_cosine"].values for one in nearest]),
                unit="cosine",
                long_name=f"cosine of the {kind} vectors",
            )
            for kind in kinds
        },
    }
