"""What the neurons do, as the page's template takes it: tables, figures, examples."""

from typing import Any

import numpy as np
import xarray as xr
from markupsafe import Markup

from mlp_interp import plots, views
from mlp_interp.report.figure import WIDE, drawing
from mlp_interp.report.format import percent, with_error
from mlp_interp.report.sections.neurons.compute import EACH_SIDE, Neurons
from mlp_interp.report.sections.neurons.words import layers
from mlp_interp.report.thinned import evenly

# A browser draws these at once on any machine, and they are small beside the page's libraries.
LAYERS = 8
POINTS = 4_000
PLACES = 256

WIDEST = 14
"""Letters of a token in a table."""


def shown(neurons: Neurons) -> dict[str, Any]:
    """Everything that the section needs; big models are thinned out, which ``notes`` tell.

    Args:
        neurons: What was measured.
    """
    few = evenly(neurons.activity, "layer", LAYERS)
    places = evenly(few, "pos", PLACES)
    points = _some_neurons(few)
    return {
        "heading": "What do the neurons do?",
        "intro": "A neuron reads the stream through its receptor and, where its activation before "
        "the nonlinearity is above zero, fires: then it adds its value vector to the stream.",
        "layers": layers(neurons),
        "size": neurons.activity.sizes["neuron"],
        "beyond": neurons.activity.attrs["outliers_beyond"],
        "level": neurons.updates.attrs["level"],
        "each_side": EACH_SIDE,
        "outliers": _outliers(neurons.outliers),
        "fractions": drawing(plots.activation_fractions(few)),
        "predicted": drawing(
            plots.receptor_value(points, x="activation_volume", y="fraction"), width=WIDE
        ),
        "norms": drawing(plots.receptor_value(points), width=WIDE),
        "position": drawing(plots.activity_by_position(places)),
        "updates": drawing(
            plots.update_shares(evenly(neurons.updates, "layer", LAYERS)), width=WIDE
        ),
        "examples": _examples(neurons.examples),
        **_notes(neurons.activity, points, places, neurons.outliers.sizes["component"]),
    }


def _some_neurons(found: xr.Dataset) -> xr.Dataset:
    """As many neurons of each layer, drawn at random, as make few enough points."""
    each = max(1, POINTS // found.sizes["layer"])
    if found.sizes["neuron"] <= each:
        return found
    drawn = np.random.default_rng(0).choice(found.sizes["neuron"], each, replace=False)
    return found.isel(neuron=np.sort(drawn))


def _notes(
    whole: xr.Dataset, points: xr.Dataset, places: xr.Dataset, listed: int
) -> dict[str, str]:
    """What is left out of tables and figures, in words that end their captions."""
    size, of, every = whole.sizes, points.sizes, " Every layer is in the table."
    some = f"{of['layer']} of {size['layer']} layers are drawn."
    fewer = f"{of['neuron']:,} of each layer's {size['neuron']:,} neurons are drawn, at random."
    thin = f"{places.sizes['pos']} of {size['pos']:,} positions are drawn."
    left = [of["layer"] < size["layer"], of["neuron"] < size["neuron"]]
    more = int(whole["outlier"].sum()) - listed
    return {
        "more": f"{more:,} more are in the netCDF file." * (more > 0),
        "some_layers": (some + every) * left[0],
        "some_neurons": " ".join([fewer] * left[1] + [some] * left[0]),
        "some_places": " ".join([thin] * (places.sizes["pos"] < size["pos"]) + [some] * left[0]),
    }


def _outliers(far: xr.Dataset) -> list[dict[str, Any]]:
    return [
        {
            "label": str(label),
            "fraction": with_error(float(here["fraction"]), float(here["fraction_se"])),
            "share": float(here["fraction"]),
            "predicted": percent(float(here["activation_volume"])),
            "norm": f"{float(here['receptor_norm_folded']):.3g}",
            "bias": f"{float(here['bias_folded']):+.2f}",
            "z": f"{float(here['z']):+.1f}",
            "promoted": _words(here["promoted_text"]),
        }
        for n, label in enumerate(far["component"].values)
        for here in [far.isel(component=n)]
    ]


def _examples(found: xr.Dataset) -> list[dict[str, Any]]:
    return [
        {
            "label": str(label),
            "why": str(here["why"].item()),
            "promoted": _words(here["promoted_text"]),
            "suppressed": _words(here["suppressed_text"]),
            "views": _texts(here),
        }
        for n, label in enumerate(found["component"].values)
        for here in [found.isel(component=n)]
    ]


def _texts(here: xr.Dataset) -> list[Markup]:
    """One coloured text for each example; one scale for all of a neuron.

    Only what fires is coloured, and only where the neuron fires is an example of it.
    """
    strengths, drawn = here["activation"].values, []
    for n in np.flatnonzero(strengths > 0):
        inside = here["token"].values[n] >= 0
        place = f"sequence {here['sequence'].values[n]}, position {here['pos'].values[n]}"
        view = views.tokens(
            [str(text) for text in here["text"].values[n][inside]],
            np.maximum(here["around"].values[n][inside], 0),
            limit=float(np.nanmax(strengths)),
            caption=f"{strengths[n]:.2f} at {_word(here, int(n))!r} ({place})",
        )
        drawn.append(Markup(view.fragment(legend=not drawn)))
    return drawn


def _word(here: xr.Dataset, n: int) -> str:
    return str(here["text"].sel(context=0).values[n])


def _words(text: xr.DataArray) -> list[str]:
    """Tokens for a table: spaces and line breaks seen, long ones cut."""
    words = [str(word).replace("\n", "⏎").replace("\t", "⇥") for word in text.values]
    return [word if len(word) <= WIDEST else word[: WIDEST - 1] + "…" for word in words]
