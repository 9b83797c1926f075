"""How often neurons fire: by layer, by position, and against what their weights say."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from mlp_interp.plots import _style as style
from mlp_interp.sites import Site

MAKER = "neurons.activity"
BARS = 60  # of a layer's fractions
FEW = 8  # layers that a legend names
MANY = 20_000  # points from which on a browser should draw them with its graphics card


def activation_fractions(activity: xr.Dataset) -> go.Figure:
    """Histograms of how often the neurons of each layer fire, one row a layer.

    The dotted line is the layer's median. Crosses are outliers; the most extreme of either side is
    named, with how many more there are. The grey outline is what the weights alone predict
    (`activation_volume`), for streams that point in all directions alike; it is cut off where it is
    more than twice as high as the bars.

    Args:
        activity: What `neurons.activity` returns.

    Returns:
        A row of bars for each layer, all with one axis of fractions.

    Raises:
        ValueError: If `activity` is no such Dataset.
    """
    style.need(activity, "fraction", "z", "outlier", maker=MAKER)
    style.need_dims(activity["fraction"], "layer", "neuron", maker=MAKER)
    layers = activity["layer"].values.tolist()
    figure = make_subplots(
        rows=len(layers), cols=1, shared_xaxes=True, vertical_spacing=min(0.05, 0.3 / len(layers))
    )
    edges = np.linspace(0, 1, BARS + 1)
    for row, layer in enumerate(layers, 1):
        here = activity.isel(layer=row - 1)
        fraction = here["fraction"].values
        counts = np.histogram(fraction, edges)[0]
        figure.add_bar(
            x=(edges[1:] + edges[:-1]) / 2, y=counts, width=1 / BARS, marker_color=style.MLP,
            name="neurons", legendgroup="neurons", showlegend=row == 1,
            customdata=np.stack([edges[:-1], edges[1:]], axis=-1),
            hovertemplate=f"layer {layer}<br>%{{customdata[0]:.3f}} to %{{customdata[1]:.3f}}<br>"
            "%{y} neurons<extra></extra>",
            row=row, col=1,
        )  # fmt: skip
        top = 1.3 * counts.max()
        if "activation_volume" in here:
            predicted = np.histogram(here["activation_volume"].values, edges)[0]
            top = max(top, min(1.1 * predicted.max(), 2 * counts.max()))
            figure.add_scatter(
                x=edges, y=[*predicted, 0],
                mode="lines", line={"color": style.GREY, "width": 1, "shape": "hv"},
                name="predicted by the weights", legendgroup="predicted", showlegend=row == 1,
                hoverinfo="skip", row=row, col=1,
            )  # fmt: skip
        figure.update_yaxes(title=f"layer {layer}", range=[0, top], nticks=3, row=row, col=1)
        middle = float(np.median(fraction))
        figure.add_scatter(
            x=[middle, middle], y=[0, top], mode="lines", name="median",
            line={"color": style.INK, "width": 1, "dash": "dot"}, legendgroup="median",
            showlegend=row == 1, hovertemplate=f"median {middle:.3f}<extra></extra>",
            row=row, col=1,
        )  # fmt: skip
        has = activity["outlier"].any("neuron").values
        first_row = bool(has.any()) and row == int(has.argmax()) + 1
        _mark(figure, here, int(layer), row, float(top), first_row=first_row)
    figure.update_xaxes(range=[-0.01, 1.01])
    figure.update_xaxes(title="fraction of positions at which a neuron fires", row=len(layers))
    figure.update_layout(bargap=0)
    title = "How often neurons fire: neurons of each layer by their fraction"
    return style.finish(figure, title, activity, height=130 + 110 * len(layers))


def activity_by_position(activity: xr.Dataset) -> go.Figure:
    """Share of each layer's neurons that fire at each position; bands are one standard error.

    Args:
        activity: What `neurons.activity` returns, or `Fraction`.

    Returns:
        A line for each layer, the first dark and the last light; a colour bar names many of them.

    Raises:
        ValueError: If `activity` is no such Dataset.
    """
    style.need(activity, "by_position", "by_position_se", maker=MAKER)
    style.need_dims(activity["by_position"], "layer", "pos", maker=MAKER)
    layers, figure = activity["layer"].values.tolist(), go.Figure()
    places = activity["pos"].values
    for layer, colour in zip(layers, layer_colours(len(layers)), strict=True):
        here = activity.sel(layer=layer)
        mean, error = here["by_position"].values, here["by_position_se"].values
        if np.isfinite(error).all():
            figure.add_scatter(
                x=np.concatenate([places, places[::-1]]),
                y=np.concatenate([mean + error, (mean - error)[::-1]]),
                fill="toself", fillcolor=colour, opacity=0.25, line={"width": 0}, mode="lines",
                legendgroup=str(layer), showlegend=False, hoverinfo="skip",
            )  # fmt: skip
        figure.add_scatter(
            x=places, y=mean, mode="lines", name=f"layer {layer}", legendgroup=str(layer),
            line={"color": colour, "width": 1.8}, customdata=error,
            hovertemplate=f"layer {layer}, position %{{x}}<br>%{{y:.4f}} ± %{{customdata:.2g}} "
            "(standard error)<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title="position in the sequence")
    figure.update_yaxes(title="fraction of neurons that fire", rangemode="tozero")
    name_layers(figure, layers)
    title = "How many neurons fire at each position"
    return style.finish(figure, title, activity, height=430)


def receptor_value(
    result: xr.Dataset, *, x: str = "receptor_norm_folded", y: str = "value_norm"
) -> go.Figure:
    """Every neuron by two of its numbers, coloured by how often it fires; one panel a layer.

    By default what it reads against what it writes: the norms of receptor and value vector. Others
    may be ``y="cosine_folded"``, or ``x="activation_volume", y="fraction"``.

    Args:
        result: What `neurons.activity` or `neurons.neuron_weights` returns; without ``fraction``
            all points have one colour.
        x: The variable across.
        y: The variable up.

    Returns:
        A scatter plot for each layer; all share their axes.

    Raises:
        ValueError: If `result` lacks a variable by layer and neuron.
    """
    for name in (x, y):
        style.need(result, name, maker=f"{MAKER} or neurons.neuron_weights")
        style.need_dims(result[name], "layer", "neuron", maker=MAKER)
    layers = result["layer"].values.tolist()
    columns = min(len(layers), 4)
    rows = -(-len(layers) // columns)
    figure = make_subplots(
        rows=rows, cols=columns, shared_xaxes=True, shared_yaxes=True,
        subplot_titles=[f"layer {layer}" for layer in layers],
        horizontal_spacing=0.02, vertical_spacing=0.16 / rows,
    )  # fmt: skip
    kind = go.Scattergl if result[x].size > MANY else go.Scatter
    hover = f"<b>%{{text}}</b><br>{_plain(x)} %{{x:.3g}}<br>{_plain(y)} %{{y:.3g}}"
    for place, layer in enumerate(layers):
        here = result.isel(layer=place)
        look: dict = {"size": 4, "opacity": 0.75, "color": style.MLP}
        if "fraction" in here:
            look |= {"color": here["fraction"].values, "coloraxis": "coloraxis"}
        points = kind(
            x=here[x].values, y=here[y].values, mode="markers", marker=look, showlegend=False,
            text=[Site("post", int(layer), neuron=int(n)).label for n in here["neuron"].values],
            hovertemplate=hover
            + ("<br>fires at %{marker.color:.4f}" if "fraction" in here else "")
            + "<extra></extra>",
        )  # fmt: skip
        figure.add_trace(points, row=place // columns + 1, col=place % columns + 1)
    figure.update_xaxes(matches="x")
    figure.update_yaxes(matches="y")
    # The first axis is what they match; a browser warns of one that matches itself.
    figure.update_layout(xaxis_matches=None, yaxis_matches=None)
    # One title for all: side by side they would run into each other.
    figure.update_xaxes(title=_titled(result, x), row=rows, col=(columns + 1) // 2)
    for row in range(1, rows + 1):
        figure.update_yaxes(title=_titled(result, y), row=row, col=1)
    bar = {"title": {"text": "fraction of positions<br>at which it fires", "side": "right"}}
    figure.update_layout(
        coloraxis={"colorscale": style.SEQUENTIAL, "cmin": 0, "colorbar": bar | {"thickness": 14}}
    )
    title = f"Neurons: {_plain(y)} against {_plain(x)}"
    return style.finish(figure, title, result, height=170 + 250 * rows)


def _mark(
    figure: go.Figure, here: xr.Dataset, layer: int, row: int, top: float, *, first_row: bool
) -> None:
    """Crosses on the outliers of a layer; a name for the most extreme of either side."""
    z, fraction = here["z"].values, here["fraction"].values
    far = here["outlier"].values
    labels = np.array([Site("post", layer, neuron=int(n)).label for n in here["neuron"].values])
    if far.any():
        figure.add_scatter(
            x=fraction[far], y=np.zeros(far.sum()), mode="markers", cliponaxis=False,
            marker={"symbol": "x-thin", "size": 8, "line": {"width": 1.5, "color": style.INK}},
            name="outlier", legendgroup="outlier", showlegend=first_row, customdata=labels[far],
            hovertemplate="<b>%{customdata}</b><br>fires at %{x:.4f}<extra></extra>",
            row=row, col=1,
        )  # fmt: skip
    for side, sign, place in (("left", -1, 0.0), ("right", 1, 1.0)):
        chosen = np.flatnonzero(far & (z * sign > 0))
        if not len(chosen):
            continue
        first = chosen[np.argmax(np.abs(z[chosen]))]
        more = f" and {len(chosen) - 1} more" if len(chosen) > 1 else ""
        figure.add_annotation(
            x=place, y=top, text=f"{labels[first]} ({fraction[first]:.3f}){more}", xanchor=side,
            yanchor="top", showarrow=False, font={"size": 11, "color": style.INK},
            bgcolor="rgba(255,255,255,0.8)", row=row, col=1,
        )  # fmt: skip


def layer_colours(count: int) -> list[str]:
    """Dark to light, without the palest end, which white paper swallows."""
    places = [0.9 * n / max(1, count - 1) for n in range(count)]
    return [str(colour) for colour in sample_colorscale(style.SEQUENTIAL, places)]


def name_layers(figure: go.Figure, layers: list[int]) -> None:
    """A colour bar in place of a legend that many layers would fill the figure with."""
    if len(layers) <= FEW:
        return
    figure.update_traces(
        showlegend=False, selector=lambda trace: str(trace.name).startswith("layer ")
    )
    colours = layer_colours(len(layers))
    figure.add_scatter(
        x=[None], y=[None], mode="markers", showlegend=False, hoverinfo="skip", name="layers",
        marker={
            "color": [layers[0]], "cmin": layers[0], "cmax": layers[-1], "showscale": True,
            "colorscale": [[n / (len(colours) - 1), c] for n, c in enumerate(colours)],
            "colorbar": {"title": {"text": "layer", "side": "top"}, "thickness": 14, "nticks": 6},
        },
    )  # fmt: skip


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _titled(result: xr.Dataset, name: str) -> str:
    unit = style.unit_of(result[name])
    return f"{_plain(name)} [{unit}]" if unit and unit != name else _plain(name)
