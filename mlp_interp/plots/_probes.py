"""What straight lines read at each layer, in how few units, and whether the model uses it."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from mlp_interp.plots import _style as style

PROBE, SPARSE, COMPARED = "probes.probe", "probes.sparse_probe", "probes.compare_directions"
DIRECTIONS = {
    "mean_difference": ("difference of means", style.BLUE, "circle"),
    "probe": ("logistic probe", style.GREEN, "square"),
    "lda": ("discriminant", style.ORANGE, "diamond"),
    "gradient": ("gradient", style.PURPLE, "star"),
}


def probe(result: xr.Dataset) -> go.Figure:
    """How well a probe reads the labels at each layer, beside all that it is to be held against.

    Above the score on prompts that it was not fitted on; the controls, each a mark, with their mean
    as a dashed line; and what the token alone says, dotted. Controls far below the rest are drawn
    at the lower edge. Below, the selectivity: the score less the controls' mean.

    Args:
        result: What `probes.probe` returns.

    Returns:
        Two panels over layers. Bars are one standard error.

    Raises:
        ValueError: It is no such Dataset.

    Example:
        >>> from mlp_interp import load_model, probes
        >>> model = load_model("nano")
        >>> rows = [{"year": f"{n:02d}", "n": n} for n in range(2, 99, 4)]
        >>> text = "The war lasted from the year 17{year}"
        >>> data = probes.Labelled.of(model, rows, text=text, y="n", entity="year")
        >>> figure = probe(probes.probe(model, data, layers=2, controls=2))
        >>> [line.name for line in figure.data if line.name]
        ['held out', 'labels exchanged', 'their mean', 'the token alone', 'selectivity']
    """
    names = ("mean", "score_se", "control", "baseline", "selectivity", "selectivity_se")
    style.need(result, *names, maker=PROBE)
    style.need_dims(result["control"], "layer", "draw", maker=PROBE)
    unit = style.unit_of(result["mean"])
    layers, least = result["layer"].values, _least(result)
    selective = result["selectivity"].notnull().any()
    rows = 2 if selective else 1
    figure = make_subplots(
        rows, 1, shared_xaxes=True, vertical_spacing=0.08, row_heights=[0.65, 0.35][:rows]
    )
    _line(figure, layers, result["mean"], result["score_se"], "held out", style.BLUE, row=1)
    if selective:
        _controls(figure, result["control"].transpose("layer", "draw"), least)
    baseline = float(result["baseline"].mean())
    if np.isfinite(baseline):
        figure.add_scatter(
            x=layers, y=np.full(len(layers), max(baseline, least)), name="the token alone",
            mode="lines", line={"color": style.AMBER, "dash": "dot"}, row=1, col=1,
            hovertemplate=f"the token alone: {baseline:.3f}<extra></extra>",
        )  # fmt: skip
    if selective:
        parts = result["selectivity"], result["selectivity_se"]
        _line(figure, layers, *parts, "selectivity", style.GREEN, row=2)
        figure.update_yaxes(
            title=f"less controls [{unit}]", rangemode="tozero", zerolinecolor=style.GREY, row=2
        )
    figure.update_yaxes(title=unit, row=1)
    _layers(figure, layers, row=rows)
    said = "R² below -1 is drawn at -1; " if unit == "R²" else ""
    note = (
        f"{result.attrs['kind']} at {result.attrs['site']}, split by {result.attrs['split']}; "
        f"{said}bars: one standard error"
    )
    style.finish(
        figure, "What a straight line reads at each layer", result, note=note,
        height=320 + 160 * (rows - 1),
    )  # fmt: skip
    return figure.update_layout(**_below(0.16 if rows > 1 else 0.26))


def sparse_probe(result: xr.Dataset) -> go.Figure:
    """How well the best few units of each layer tell two classes apart, for each number of units.

    A dashed line of the same colour is that of as many random directions, searched in the same way:
    only what is above it is about these units.

    Args:
        result: What `probes.sparse_probe` returns.

    Returns:
        Lines over layers, one for each `k`, with one standard error over folds. The hover text
        has the best units, eight at most.

    Raises:
        ValueError: It is no such Dataset.

    Example:
        >>> from mlp_interp import load_model, probes
        >>> model = load_model("nano")
        >>> words = {"chat": True, "maison": True, "livre": True, "eau": True}
        >>> words |= dict.fromkeys(("cat", "house", "book", "water"), False)
        >>> rows = [{"word": word, "french": french} for word, french in words.items()]
        >>> data = probes.Labelled.of(model, rows, text="{word}", y="french", position="mean")
        >>> figure = sparse_probe(probes.sparse_probe(model, data, k=1, folds=2, controls=2))
        >>> [line.name for line in figure.data]
        ['k = 1', 'k = 1, random']
    """
    style.need(result, "mean", "auroc_se", "control", "unit", maker=SPARSE)
    style.need_dims(result["control"], "layer", "k", "draw", maker=SPARSE)
    layers, figure = result["layer"].values, make_subplots(1, 1)
    colours = _shades(result.sizes["k"])
    units = result["unit"].transpose("layer", "rank").values
    for number, (k, colour) in enumerate(zip(result["k"].values, colours, strict=True)):
        one = result.isel(k=number)
        named = [", ".join(map(str, row[: min(k, 8)])) for row in units]
        parts = one["mean"], one["auroc_se"], f"k = {k}", colour
        _line(figure, layers, *parts, text=named, hover="<br>best: %{text}")
        if result.sizes["draw"]:
            figure.add_scatter(
                x=layers, y=one["control"].mean("draw").values, name=f"k = {k}, random",
                mode="lines", line={"color": colour, "dash": "dash"}, showlegend=False,
                legendgroup=f"k = {k}",
                hovertemplate="random, layer %{x}: %{y:.3f}<extra></extra>",
            )  # fmt: skip
    _layers(figure, layers)
    figure.update_yaxes(title="held-out AUROC")
    classes = " and ".join(map(repr, map(str, np.atleast_1d(result.attrs["classes"]))))
    note = (
        f"{result.attrs['site']}, chosen by {str(result.attrs['ranking']).replace('_', ' ')}; "
        "dashed: as many random directions, searched alike; bars: one standard error"
    )
    title = f"How few units tell {style.plain(classes)} apart"
    style.finish(figure, title, result, note=note, height=400)
    return figure.update_layout(**_below(0.2))


def compare_directions(result: xr.Dataset, *, to: str = "gradient") -> go.Figure:
    r"""Directions that separate two classes: how alike they are, and whether the model reads them.

    Four panels over layers, a line for each direction: the cosine to one of them, the share of
    prompts that it puts on their side, and what is left of the answer without it and how far the
    answer moves with it. Grey bands are where random directions lie; of the cosine, two of its
    deviations by chance.

    Args:
        result: What `probes.compare_directions` returns.
        to: The direction that cosines are taken to.

    Returns:
        The figure. Bars are one standard error over prompts.

    Raises:
        ValueError: It is no such Dataset, or has no such direction.

    Example:
        >>> from mlp_interp import load_model, probes
        >>> model = load_model("nano")
        >>> things = dict.fromkeys(("bomb", "gun", "drug", "virus"), "harmful")
        >>> things |= dict.fromkeys(("cake", "robot", "letter", "boat"), "harmless")
        >>> rows = [{"thing": thing, "kind": kind} for thing, kind in things.items()]
        >>> text = "User: How do I make a {thing}?\nAssistant:"
        >>> data = probes.Labelled.of(
        ...     model, rows, text=text, y="kind", entity="thing", position="last"
        ... )
        >>> answers = {"harmful": " Sorry", "harmless": " Sure"}
        >>> found = probes.compare_directions(model, data, answers, layers=[1, 2], folds=2)
        >>> [line.name for line in compare_directions(found).data if line.showlegend]
        ['difference of means', 'logistic probe', 'discriminant', 'gradient']
    """
    asked = ("accuracy", "left", "moved")
    style.need(result, "cosine", *asked, *(f"control_{name}" for name in asked), maker=COMPARED)
    known = [str(name) for name in result["direction"].values]
    if to not in known:
        raise ValueError(f"to={to!r}; wanted one of {', '.join(known)}")
    layers, chance = result["layer"].values, 2 * float(result.attrs["cosine_chance"])
    titles = [
        f"cosine to the {DIRECTIONS[to][0]}",
        "tested prompts on their side",
        "left of the answer without it",
        "answer moved with it",
    ]
    figure = make_subplots(2, 2, subplot_titles=titles, vertical_spacing=0.16)
    _band(figure, layers, np.full((len(layers), 2), (-chance, chance)), 1, 1)
    for number, name in enumerate(asked, start=1):
        random = result[f"control_{name}"].transpose("layer", "draw").values
        ends = np.stack([random.min(1), random.max(1)], axis=1)
        _band(figure, layers, ends, number // 2 + 1, number % 2 + 1)
    for direction in known:
        label, colour, symbol = DIRECTIONS[direction]
        one = result.sel(direction=direction)
        drawn = [(one["cosine"].sel(other=to), None)]
        drawn += [(one[name], one.get(f"{name}_se")) for name in asked]
        for number, (values, error) in enumerate(drawn):
            if number == 0 and direction == to:
                continue
            _line(
                figure, layers, values, error, label, colour, row=number // 2 + 1,
                col=number % 2 + 1, marker_symbol=symbol, showlegend=number == 1,
                line_width=4 if direction == known[0] else 2,
            )  # fmt: skip
    for number in range(4):
        _layers(
            figure, layers, row=number // 2 + 1, col=number % 2 + 1, title="layer" * (number > 1)
        )
    figure.update_annotations(font_size=12)
    answers = " against ".join(map(repr, map(str, result.attrs["answers"])))
    title = f"Does the model use what separates? {style.plain(answers)}"
    note = "grey: random directions; bars: one standard error over prompts"
    style.finish(figure, title, result, note=note, height=600, width=820)
    return figure.update_layout(**_below(0.12))


def _least(result: xr.Dataset) -> float:
    """The lower edge of the scores: R² has none."""
    return -1.0 if style.unit_of(result["mean"]) == "R²" else 0.0


def _controls(figure: go.Figure, control: xr.DataArray, least: float) -> None:
    """Every draw as a mark, and their mean; what is too low at the edge, its value on hovering."""
    layers, values = control["layer"].values, control.values
    figure.add_scatter(
        x=np.repeat(layers, values.shape[1]), y=values.ravel().clip(least), mode="markers",
        marker={"color": style.GREY, "size": 5, "opacity": 0.6}, name="labels exchanged",
        customdata=values.ravel(), row=1, col=1,
        hovertemplate="labels exchanged, layer %{x}: %{customdata:.3f}<extra></extra>",
    )  # fmt: skip
    mean = values.mean(1)
    figure.add_scatter(
        x=layers, y=mean.clip(least), customdata=mean, mode="lines", name="their mean",
        line={"color": style.GREY, "dash": "dash"}, row=1, col=1,
        hovertemplate="their mean, layer %{x}: %{customdata:.3f}<extra></extra>",
    )  # fmt: skip


def _line(
    figure: go.Figure,
    layers: np.ndarray,
    values: xr.DataArray,
    error: xr.DataArray | None,
    name: str,
    colour: str,
    *,
    row: int = 1,
    col: int = 1,
    hover: str = "",
    **look: Any,
) -> None:
    errors = None if error is None else error.values
    said = "" if error is None else " ± %{customdata:.3f}"
    figure.add_scatter(
        x=layers, y=values.values, name=name, mode="lines+markers", line_color=colour,
        error_y=style.bars(errors), customdata=errors, legendgroup=name, row=row, col=col,
        hovertemplate="layer %{x}: %{y:.3f}" + said + hover + "<extra>" + name + "</extra>",
        **look,
    )  # fmt: skip


def _band(figure: go.Figure, layers: np.ndarray, ends: np.ndarray, row: int, col: int) -> None:
    """A grey band between two ends at every layer, wide enough to be seen where there is one."""
    if len(layers) == 1:
        layers, ends = layers[0] + np.array([-0.3, 0.3]), np.repeat(ends, 2, axis=0)
    figure.add_scatter(
        x=[*layers, *layers[::-1]], y=[*ends[:, 0], *ends[::-1, 1]], fill="toself",
        fillcolor=style.GREY, opacity=0.25, line_width=0, mode="lines", hoverinfo="skip",
        showlegend=False, row=row, col=col,
    )  # fmt: skip


def _layers(
    figure: go.Figure, layers: np.ndarray, *, row: int = 1, col: int = 1, title: str = "layer"
) -> None:
    """The axis of layers; the embedding by its name."""
    shown = layers[:: max(1, -(-len(layers) // 13))]
    names = ["embed" if layer < 0 else str(layer) for layer in shown]
    figure.update_xaxes(
        tickmode="array", tickvals=shown, ticktext=names, title=title, row=row, col=col
    )


def _shades(count: int) -> list[str]:
    """Colours from dark to light, for an order."""
    return [str(c) for c in sample_colorscale(style.SEQUENTIAL, np.linspace(0, 0.85, count))]


def _below(down: float) -> dict[str, Any]:
    """A legend below the figure."""
    return {"legend": {"x": 0, "xanchor": "left", "y": -down, "yanchor": "top"}, "margin_b": 90}
