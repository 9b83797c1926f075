"""Neurons as memories: do their values say what follows, and what do MLPs do to predictions?"""

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from mlp_interp.plots import _style as style
from mlp_interp.plots._neurons import FEW, layer_colours, name_layers
from mlp_interp.results import mean_and_error_over

PARTS = {
    "promoted": ("neurons that raise it", style.BLUE),
    "eliminated": ("neurons that lower it", style.ORANGE),
    "b_out": ("b_out", style.PURPLE),
    "norm": ("the norm's share", "#b3b3b3"),
}
_STEPS = 400
"""Points of a line."""


def memories(result: xr.Dataset) -> go.Figure:
    """How often triggers continue as their neuron's value says, and how far from the top they do.

    Args:
        result: What `neurons.memories` returns.

    Returns:
        Left bars of the mean agreement of each layer's neurons, with one standard error over
        neurons, beside what the layer's other values get on the same triggers. Right, for each
        layer, the share of its neurons whose median rank of the next token is at most so much;
        dotted with values exchanged within the layer, where the result has that.

    Raises:
        ValueError: If `result` is no such Dataset.
    """
    maker = "neurons.memories"
    style.need(result, "agreement", "agreement_chance", "rank", maker=maker)
    style.need_dims(result["agreement"], "layer", "neuron", maker=maker)
    figure = make_subplots(
        rows=1, cols=2, column_widths=[0.42, 0.58], horizontal_spacing=0.12,
        subplot_titles=["next token is what the value promotes most", "rank of the next token"],
    )  # fmt: skip
    layers = [str(layer) for layer in result["layer"].values]
    for name, label, colour in (
        ("agreement", "its own value", style.BLUE),
        ("agreement_chance", "other values of the layer", style.GREY),
    ):
        mean, error = mean_and_error_over(result[name], "neuron")
        figure.add_bar(
            x=layers, y=mean.values, name=label, marker_color=colour,
            error_y=style.bars(error.values),
            hovertemplate=f"layer %{{x}}, {label}<br>%{{y:.4f}} of triggers"
            " ± %{error_y.array:.2g} (standard error)<extra></extra>",
            row=1, col=1,
        )  # fmt: skip
    for layer, colour in zip(layers, layer_colours(len(layers)), strict=True):
        here = result.isel(layer=layers.index(layer))
        for name, dash in (("rank", "solid"), ("rank_chance", "dot")):
            if name in here:
                _ranks(figure, here[name].values, layer, colour, dash)
    figure.update_xaxes(title="layer", type="category", row=1, col=1)
    figure.update_yaxes(title="fraction of triggers", rangemode="tozero", row=1, col=1)
    figure.update_xaxes(title="median rank over triggers, plus 1", type="log", row=1, col=2)
    figure.update_yaxes(title="fraction of neurons", row=1, col=2)
    figure.update_yaxes(range=[0, 1.02], row=1, col=2)
    name_layers(figure, result["layer"].values.tolist())
    note = "dotted: values exchanged within the layer" if "rank_chance" in result else ""
    style.finish(figure, "Neurons as memories", result, note=note, height=460)
    return figure.update_layout(barmode="group", margin_b=110, **style.two_legends())


def _ranks(figure: go.Figure, ranks: np.ndarray, layer: str, colour: str, dash: str) -> None:
    """The cumulative distribution of a layer's median ranks."""
    ordered = np.concatenate([[0], np.sort(ranks[~np.isnan(ranks)])])
    share = np.arange(len(ordered)) / max(1, len(ranks))
    # A layer of thousands is drawn by some of its quantiles.
    few = np.linspace(0, len(ordered) - 1, min(_STEPS, len(ordered))).round().astype(int)
    ordered, share = ordered[few], share[few]
    chance = dash != "solid"
    figure.add_scatter(
        x=ordered + 1, y=share, mode="lines", name=f"layer {layer}", legend="legend2",
        legendgroup=f"rank {layer}", showlegend=not chance,
        line={"color": colour, "dash": dash, "width": 1.2 if chance else 2, "shape": "hv"},
        hovertemplate=f"layer {layer}{', values exchanged' if chance else ''}<br>"
        "%{y:.3f} of neurons have rank %{x:.0f} or before<extra></extra>",
        row=1, col=2,
    )  # fmt: skip


def update_events(result: xr.Dataset, *, event: str = "changed") -> go.Figure:
    """What the changes of the prediction by MLPs are made of: the new token's, and the old one's.

    Args:
        result: What `neurons.update_events` returns.
        event: ``"changed"``: all changes; ``"settled"``: those to the model's own prediction.

    Returns:
        Left, by layer, at which share of tokens the MLP changes the prediction, and at which share
        of the changes it raises the new token by more than it lowers the old one; right, for both
        tokens of every layer, the parts of the change of the logit, stacked. They sum to the black
        marks. Bars are one standard error over sequences.

    Raises:
        ValueError: If `result` is no such Dataset, or has no such event.
    """
    maker = "neurons.update_events"
    style.need(result, "share", "promotion", "total", *PARTS, maker=maker)
    style.need_dims(result["total"], "layer", "token", "event", maker=maker)
    events = [str(name) for name in result["event"].values]
    if event not in events:
        raise ValueError(f"event={event!r}; wanted one of {', '.join(map(repr, events))}")
    found = result.sel(event=event).transpose("layer", "token")
    figure = make_subplots(
        rows=1, cols=2, column_widths=[0.34, 0.66], horizontal_spacing=0.1,
        subplot_titles=["how often", "change of the logit, over the mean of all"],
    )  # fmt: skip
    layers = [str(layer) for layer in found["layer"].values]
    for name, label, colour in (
        ("share", "of tokens: the prediction changes", style.SKY),
        ("promotion", "of changes: promotion decides", style.GREEN),
    ):
        figure.add_bar(
            x=layers, y=found[name].values, name=label, marker_color=colour, legend="legend2",
            error_y=style.bars(found[f"{name}_se"].values if f"{name}_se" in found else None),
            hovertemplate=f"layer %{{x}}<br>%{{y:.3f}} {label}<extra></extra>", row=1, col=1,
        )  # fmt: skip
    names = [str(token) for token in found["token"].values]
    axis = _pairs(layers, names)
    hover = [f"layer {layer}, {token} token" for layer in layers for token in names]
    for name, (label, colour) in PARTS.items():
        figure.add_bar(
            x=axis, y=found[name].values.ravel(), name=label, marker_color=colour,
            offsetgroup="parts", base=_bases(found, name).ravel(),
            customdata=hover,
            hovertemplate=f"%{{customdata}}<br>{label}: %{{y:+.3f}} logits<extra></extra>",
            row=1, col=2,
        )  # fmt: skip
    figure.add_scatter(
        x=axis, y=found["total"].values.ravel(), mode="markers", name="all of the change",
        marker={"symbol": "diamond", "size": 9, "color": "black"},
        error_y=style.bars(found["total_se"].values.ravel() if "total_se" in found else None),
        customdata=hover, hovertemplate="%{customdata}<br>%{y:+.3f} logits<extra></extra>",
        row=1, col=2,
    )  # fmt: skip
    figure.update_xaxes(title="layer", type="category", row=1, col=1)
    figure.update_yaxes(title="fraction", range=[0, 1.05], row=1, col=1)
    figure.update_yaxes(title="logits", zeroline=True, zerolinecolor="#888", row=1, col=2)
    title = "How MLPs change the prediction: the new top token, and the old one"
    note = f"event: {event}"
    if len(layers) > FEW:  # no room for names below pairs of bars
        figure.update_xaxes(title="layer", row=1, col=2)
        note += f"; bars of a layer: {', '.join(names)}"
    style.finish(figure, title, result, note=note, height=500)
    return figure.update_layout(barmode="group", margin_b=140, **style.two_legends())


def _pairs(layers: list[str], names: list[str]) -> Any:
    """Where the bars of each layer's tokens stand: named below them where there is room."""
    if len(layers) <= FEW:
        return [np.repeat([f"layer {n}" for n in layers], len(names)), names * len(layers)]
    beside = (np.arange(len(names)) - (len(names) - 1) / 2) / (len(names) + 0.5)
    return (np.array([float(n) for n in layers])[:, None] + beside).ravel()


def _bases(found: xr.Dataset, name: str) -> np.ndarray:
    """Where each part's bar begins: on those before it of the same sign."""
    own = found[name].values
    base = np.zeros_like(own)
    for other in PARTS:
        if other == name:
            return base
        value = found[other].values
        base += np.where(np.sign(value) == np.sign(own), value, 0)
    return base
