"""Features: neurons that tell them, neurons that two models share, what came when in training."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from mlp_interp.plots import _style as style
from mlp_interp.plots._neurons import layer_colours, name_layers

_LETTERS = {"neuron": "N", "head": "H", "latent": "F"}
HUES = (style.BLUE, style.ORANGE, style.GREEN, style.PURPLE, style.SKY, style.AMBER, style.GREY)


def feature_index(result: xr.Dataset, *, top: int = 3, level: float = 0.05) -> go.Figure:
    """The neurons, heads or latents that tell each feature best, and what else they tell.

    Args:
        result: What `features.index` returns.
        top: How many neurons of each feature.
        level: Cells with a dot have a `p_family` of at most this.

    Returns:
        A heat map of AUROCs, features by neurons, white at 0.5.

    Raises:
        ValueError: If `result` is no such Dataset, or `top` is below 1.
    """
    maker = "features.index"
    style.need(result, "auroc", "auroc_se", "p_family", maker=maker)
    kind = next((name for name in _LETTERS if name in result.dims), "neuron")
    style.need_dims(result["auroc"], "feature", "layer", kind, maker=maker)
    if top < 1:
        raise ValueError(f"top={top}; wanted at least 1")
    flat = result.stack(unit=("layer", kind)).transpose("feature", "unit", ...)
    away = np.abs(flat["auroc"].values - 0.5)
    best = [unit for row in away for unit in np.argsort(-row, kind="stable")[:top]]
    units = list(dict.fromkeys(best))
    shown = flat.isel(unit=units)
    places = shown["unit"].values
    labels = [f"L{layer}{_LETTERS[kind]}{place}" for layer, place in places]
    features = [style.plain(str(name)) for name in shown["feature"].values]
    numbers = np.stack([shown["auroc_se"].values, shown["p_family"].values], -1)
    figure = go.Figure()
    figure.add_heatmap(
        x=labels, y=features, z=shown["auroc"].values, customdata=numbers, coloraxis="coloraxis",
        hovertemplate="%{x}, %{y}<br>AUROC %{z:.3f} ± %{customdata[0]:.2g} (standard error)"
        "<br>p over all of them: %{customdata[1]:.3f}<extra></extra>",
    )  # fmt: skip
    rows, columns = np.nonzero(shown["p_family"].values <= level)
    figure.add_scatter(
        x=[labels[n] for n in columns], y=[features[n] for n in rows], mode="markers",
        marker={"size": 5, "color": "black"}, hoverinfo="skip", showlegend=False,
    )  # fmt: skip
    figure.update_xaxes(type="category", tickangle=-60)
    figure.update_yaxes(type="category", autorange="reversed")
    note = (
        f"dots: p over all {kind}s at most {level:g}; red: less active in the feature's documents"
    )
    height = 190 + 26 * len(features)
    style.finish(figure, f"Which {kind}s tell a feature", result, note=note, height=height)
    return figure.update_layout(
        coloraxis=style.diverging("AUROC", 0.5, centre=0.5), margin={"l": 110, "b": 80}
    )


def universal(result: xr.Dataset) -> go.Figure:
    """How alike the neurons of two models are, beside what chance makes of it.

    Args:
        result: What `features.universal` returns.

    Returns:
        Left, the correlations of all neurons with their best partners in the other model, and with
        the best of its neurons turned at random. Right, for each layer, the share of neurons whose
        excess over the turned ones is at least so much.

    Raises:
        ValueError: If `result` is no such Dataset.
    """
    maker = "features.universal"
    style.need(result, "correlation", "rotated", "excess", maker=maker)
    style.need_dims(result["correlation"], "layer", "neuron", "rank", maker=maker)
    figure = make_subplots(
        rows=1, cols=2, horizontal_spacing=0.12,
        subplot_titles=["highest correlation", "excess over turned neurons"],
    )  # fmt: skip
    best = result["correlation"].isel(rank=0).values.ravel()
    for values, name, colour in (
        (best, "its neurons", style.BLUE),
        (result["rotated"].values.ravel(), "turned at random", style.GREY),
    ):
        figure.add_histogram(
            x=values[~np.isnan(values)], name=name, marker_color=colour, opacity=0.6,
            xbins={"start": -0.025, "end": 1.025, "size": 0.025}, histnorm="probability",
            hovertemplate="%{x}: %{y:.3f} of neurons<extra>" + name + "</extra>", row=1, col=1,
        )  # fmt: skip
    layers = [str(layer) for layer in result["layer"].values]
    for row, (layer, colour) in enumerate(zip(layers, layer_colours(len(layers)), strict=True)):
        excess = result["excess"].isel(layer=row).values
        ordered = np.sort(excess[~np.isnan(excess)])[::-1]
        figure.add_scatter(
            x=ordered, y=np.arange(1, len(ordered) + 1) / max(1, len(excess)), mode="lines",
            name=f"layer {layer}", legend="legend2", line={"color": colour, "shape": "vh"},
            hovertemplate=f"layer {layer}<br>%{{y:.3f}} of neurons have"
            " at least %{x:.2f}<extra></extra>",
            row=1, col=2,
        )  # fmt: skip
    figure.add_vline(x=0, line_color="#888", line_width=1, row=1, col=2)  # type: ignore[reportArgumentType]
    figure.update_xaxes(title="correlation", row=1, col=1)
    figure.update_yaxes(title="fraction of neurons", row=1, col=1)
    figure.update_xaxes(title="correlation", row=1, col=2)
    figure.update_yaxes(title="fraction of neurons", range=[0, 1.02], row=1, col=2)
    other = str(result.attrs.get("other_model", "another model"))
    title = f"Which neurons does {style.plain(other)} have, too?"
    name_layers(figure, result["layer"].values.tolist())
    style.finish(figure, title, result, height=460)
    return figure.update_layout(barmode="overlay", margin_b=110, **style.two_legends())


def revisions(result: xr.Dataset, variables: Sequence[str] | None = None) -> go.Figure:
    """What comes when in training.

    Args:
        result: What `features.over_revisions` returns: variables with no other dim.
        variables: Which, in this order; None for all but the errors (``*_se``), which are drawn as
            bars of one standard error.

    Returns:
        A line for each, over tokens read where they are known, else over steps; a log axis, without
        step 0, which is named below.

    Raises:
        ValueError: If `result` is no such Dataset, or a variable is not there or has other dims.
    """
    maker = "features.over_revisions"
    style.need(result, "step", *(variables or ()), maker=maker)
    style.need_dims(result, "revision", maker=maker)
    named = [str(name) for name in result.data_vars if not str(name).endswith("_se")]
    names = named if variables is None else list(variables)
    for name in names:
        if result[name].dims != ("revision",):
            raise ValueError(
                f"result[{name!r}] has dims {result[name].dims}; wanted ('revision',): choose or "
                "average over the others first"
            )
    known = "tokens" in result.coords and bool(result["tokens"].notnull().all())
    axis = "tokens" if known else "step"
    x = style.drawable(result[axis].values, log=True)
    figure = go.Figure()
    for n, name in enumerate(names):
        error = result.get(f"{name}_se")
        figure.add_scatter(
            x=x, y=result[name].values, mode="lines+markers", name=style.plain(name),
            line_color=HUES[n % len(HUES)], marker_symbol=n % 8,
            error_y=style.bars(None if error is None else error.values),
            customdata=result["step"].values,
            hovertemplate=f"{style.plain(name)}, step %{{customdata}}<br>%{{y:.3f}}<extra></extra>",
        )  # fmt: skip
    units = {style.unit_of(result[name], result) for name in names} - {""}
    figure.update_xaxes(type="log", title="tokens read" if known else "training step")
    figure.update_yaxes(title=units.pop() if len(units) == 1 else "")
    style.say_hidden(figure, [f"step {s}" for s in result["step"].values[np.isnan(x)]])
    style.finish(figure, "What comes when in training", result, height=420)
    return figure.update_layout(
        legend={"orientation": "v", "x": 1.02, "xanchor": "left", "y": 1, "yanchor": "top"},
        margin_r=150,
    )
