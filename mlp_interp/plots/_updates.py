"""How many neurons are behind an update, of which sign, and how much of it is constant."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from mlp_interp.plots import _style as style
from mlp_interp.plots._neurons import layer_colours, name_layers

MAKER = "neurons.update_shares"
SHARES = {
    "explained": ("constant (mean square)", style.GREY),
    "negative_share": ("negative activations (direction)", style.AMBER),
    "negative_norm_share": ("negative activations (norms)", style.PURPLE),
}


def update_shares(result: xr.Dataset) -> go.Figure:
    """Cosine of the k largest sub-updates' sum to the whole update; beside it, shares of it.

    Bars are one standard error over sequences, where there is one. Diamonds mark the median number
    of neurons that reaches the cosine that was asked for (the dotted line).

    Args:
        result: What `neurons.update_shares` returns.

    Returns:
        Left a line for each layer over a log axis of neurons; right, by layer, how much of the
        update's mean square is always the same, and what comes from negative activations: of the
        update in its own direction, and of the norms of all sub-updates.

    Raises:
        ValueError: If `result` is no such Dataset.
    """
    style.need(result, "cosine", "cosine_se", "needed_median", *SHARES, maker=MAKER)
    style.need_dims(result["cosine"], "layer", "k", maker=MAKER)
    level = float(result.attrs.get("level", np.nan))
    figure = make_subplots(
        rows=1, cols=2, column_widths=[0.6, 0.4], horizontal_spacing=0.1,
        subplot_titles=["sum of the largest sub-updates", "shares of the update"],
    )  # fmt: skip
    layers, counts = result["layer"].values.tolist(), result["k"].values
    for layer, colour in zip(layers, layer_colours(len(layers)), strict=True):
        here = result.sel(layer=layer)
        figure.add_scatter(
            x=counts, y=here["cosine"].values, name=f"layer {layer}", mode="lines+markers",
            line={"color": colour, "width": 1.8}, marker={"size": 5}, legendgroup=str(layer),
            error_y=style.bars(here["cosine_se"].values),
            hovertemplate=f"layer {layer}, %{{x}} neurons<br>cosine %{{y:.4f}}"
            " ± %{error_y.array:.2g} (standard error)<extra></extra>",
            row=1, col=1,
        )  # fmt: skip
        figure.add_scatter(
            x=[int(here["needed_median"])], y=[level], mode="markers", legendgroup=str(layer),
            marker={
                "symbol": "diamond", "size": 11, "color": colour,
                "line": {"width": 1, "color": "white"},
            },
            showlegend=False, name=f"layer {layer}",
            hovertemplate=f"layer {layer}: median %{{x}} neurons for {level:g}<extra></extra>",
            row=1, col=1,
        )  # fmt: skip
    figure.add_scatter(
        x=counts[[0, -1]], y=[level, level], mode="lines", showlegend=False, hoverinfo="skip",
        name="level", line={"color": style.GREY, "dash": "dot", "width": 1}, row=1, col=1,
    )  # fmt: skip
    for name, (label, colour) in SHARES.items():
        error = result[f"{name}_se"].values if f"{name}_se" in result else None
        figure.add_bar(
            x=[str(layer) for layer in layers], y=result[name].values, name=label,
            marker_color=colour, error_y=style.bars(error), legend="legend2",
            hovertemplate=f"layer %{{x}}<br>{label} %{{y:.4f}}<extra></extra>", row=1, col=2,
        )  # fmt: skip
    by = {"activation": "|activation|", "norm": "norm"}.get(str(result.attrs.get("order")), "size")
    figure.update_xaxes(
        title=f"neurons, by falling {by}", type="log", tickvals=_apart(counts), row=1, col=1
    )
    figure.update_yaxes(title="cosine to the update", row=1, col=1)
    figure.update_xaxes(title="layer", type="category", row=1, col=2)
    figure.update_yaxes(title="fraction", row=1, col=2)
    name_layers(figure, layers)
    style.finish(figure, "How many neurons are behind an update", result, height=480)
    return figure.update_layout(
        barmode="group",
        legend={"orientation": "v", "x": 0.53, "y": 0.02, "xanchor": "right", "yanchor": "bottom"},
        legend2={"orientation": "h", "x": 1, "y": -0.16, "xanchor": "right", "yanchor": "top"},
        margin_b=110,
    )


def _apart(counts: np.ndarray) -> list[int]:
    """Ticks on a log axis, without those whose numbers would touch the next."""
    kept = [int(counts[-1])]
    for count in counts[-2::-1]:
        if kept[0] / count > 1.6:
            kept.insert(0, int(count))
    return kept
