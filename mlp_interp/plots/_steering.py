"""Dose and response: what a direction does at each coefficient, and below it what that costs."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from mlp_interp.plots import _style as style

MAKER = "steering.dose_response"
COSTS = {
    "perplexity_ratio": "perplexity, steered / clean",
    "kl": "KL(clean‖steered)",
    "delta_loss": "Δloss",
}
LOGARITHMIC = ("perplexity_ratio",)
LIMITS = {"perplexity_ratio": "limit_perplexity", "kl": "limit_kl"}
COLOURS = (style.BLUE, style.ORANGE, style.GREEN, style.PURPLE, style.AMBER, style.SKY)
DASHES = ("solid", "dash", "dot", "dashdot")


def dose_response(
    result: xr.Dataset,
    *,
    metric: str | None = None,
    cost: str = "perplexity_ratio",
    change: bool = False,
) -> go.Figure:
    """A curve per layer: the metric against the coefficient, and the cost below.

    Bands are one standard error; there is none where a log axis cannot show its lower edge. Where a
    coefficient is useful, within the limits of the cost and with an effect of more than two
    standard errors, the upper panel is shaded in the colour of the layer, half way to the next
    coefficient; a click on a layer's name hides all that is its own.

    Args:
        result: What `steering.dose_response` returns.
        metric: Which of its metrics; None for the only one.
        cost: "perplexity_ratio", "kl" or "delta_loss". Without a corpus there is no lower panel.
        change: Draw the effect, the metric less its value at coefficient 0, prompt by prompt.

    Returns:
        One panel, or two that share their coefficients.

    Raises:
        ValueError: If `result` is no such Dataset, or has several metrics and none is chosen, or
            lacks the one that is.
    """
    style.need(result, "direction_norm", maker=MAKER)
    style.need_dims(result, "layer", "coef", maker=MAKER)
    metric = _chosen(result, metric)
    if cost not in COSTS:
        raise ValueError(f"cost must be one of {', '.join(COSTS)}, got {cost!r}")
    costed = f"cost_{cost}" in result
    figure = make_subplots(
        rows=2 if costed else 1, cols=1, shared_xaxes=True, vertical_spacing=0.06,
        row_heights=[0.62, 0.38] if costed else None,
    )  # fmt: skip
    name = f"{metric}_effect" if change else metric
    for number, layer in enumerate(result["layer"].values):
        look = {
            "color": COLOURS[number % len(COLOURS)],
            "dash": DASHES[number // len(COLOURS) % len(DASHES)],
        }
        one = result.sel(layer=layer)
        if costed:
            _shade(figure, one, metric, look, name)
        _curve(figure, one, name, look, row=1)
        if costed:
            _curve(figure, one, f"cost_{cost}", look, row=2, log=cost in LOGARITHMIC)
    unit = style.unit_of(result[metric])
    said = f"change of {metric}" if change else metric
    figure.update_yaxes(title=f"{style.plain(said)} [{unit}]", row=1, col=1)
    figure.update_xaxes(zeroline=True, zerolinecolor="#999")
    figure.update_xaxes(title="coefficient of the direction", row=2 if costed else 1, col=1)
    if costed:
        kind = style.unit_of(result[f"cost_{cost}"])
        figure.update_yaxes(
            title=COSTS[cost] + ("" if kind == "ratio" else f" [{kind}]"), row=2, col=1,
            type="log" if cost in LOGARITHMIC else "linear",
        )  # fmt: skip
        _limit(figure, result, cost)
    title = f"Dose and response: {style.plain(str(result.attrs.get('direction', 'direction')))}"
    note = "bands are one standard error" + ("; shaded where useful" if costed else "")
    figure = style.finish(figure, title, result, note=note, height=560 if costed else 400)
    return figure.update_layout(
        legend={"title": "layer", "orientation": "v", "x": 1.01, "xanchor": "left", "y": 1,
                "yanchor": "top"},
        hovermode="closest",
    )  # fmt: skip


def _chosen(result: xr.Dataset, metric: str | None) -> str:
    known = [str(name)[: -len("_by_prompt")] for name in result if str(name).endswith("_by_prompt")]
    if metric is None and len(known) == 1:
        return known[0]
    if metric not in known:
        raise ValueError(f"metric must be one of {', '.join(known) or 'none'}, got {metric!r}")
    return metric


def _curve(
    figure: go.Figure, one: xr.Dataset, name: str, look: dict, *, row: int, log: bool = False
) -> None:
    """A curve with its band, both of one layer."""
    layer, x = int(one["layer"]), one["coef"].values
    y, error = one[name].values.astype(float), np.nan_to_num(one[f"{name}_se"].values)
    group = f"layer {layer}"
    across, up = _band(x, style.drawable(y - error, log=log), style.drawable(y + error, log=log))
    figure.add_scatter(
        x=across, y=up, fill="toself", fillcolor=_faint(look["color"], 0.18), line={"width": 0},
        mode="lines", legendgroup=group, showlegend=False, hoverinfo="skip", name=f"{group} band",
        row=row, col=1,
    )  # fmt: skip
    unit = style.unit_of(one[name])
    figure.add_scatter(
        x=x, y=style.drawable(y, log=log), mode="lines+markers", name=str(layer),
        legendgroup=group, showlegend=row == 1, line={**look, "width": 2},
        marker={"color": look["color"], "size": 6},
        customdata=one[f"{name}_se"].values,
        hovertemplate=f"<b>layer {layer}</b>, coefficient %{{x:.4g}}<br>%{{y:.4g}} {unit}"
        " ± %{customdata:.2g} (standard error)<extra></extra>",
        row=row, col=1,
    )  # fmt: skip


def _band(x: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An outline around each run of points that have both edges, NaN between the outlines."""
    there = np.flatnonzero(np.isfinite(low) & np.isfinite(high))
    across, up = [], []
    for run in np.split(there, np.flatnonzero(np.diff(there) > 1) + 1):
        across += [*x[run], *x[run[::-1]], np.nan]
        up += [*high[run], *low[run[::-1]], np.nan]
    return np.array(across[:-1], dtype=float), np.array(up[:-1], dtype=float)


def _shade(figure: go.Figure, one: xr.Dataset, metric: str, look: dict, name: str) -> None:
    """The useful range as a band from the curve's lowest value to its highest."""
    useful = one["useful"].sel(metric=metric).values.astype(bool)
    x, y = one["coef"].values, one[name].values.astype(float)
    low, high = float(np.nanmin(y)), float(np.nanmax(y))
    edges = np.concatenate([[x[0]], (x[1:] + x[:-1]) / 2, [x[-1]]])
    across: list[float | None] = []
    up: list[float | None] = []
    for n in np.flatnonzero(useful):
        left, right = float(edges[n]), float(edges[n + 1])
        across += [left, left, right, right, left, None]
        up += [low, high, high, low, low, None]
    if across:
        group = f"layer {int(one['layer'])}"
        figure.add_scatter(
            x=across[:-1], y=up[:-1], fill="toself", fillcolor=_faint(look["color"], 0.10),
            line={"width": 0}, mode="lines", legendgroup=group, showlegend=False,
            hoverinfo="skip", name=f"{group} useful", row=1, col=1,
        )  # fmt: skip


def _limit(figure: go.Figure, result: xr.Dataset, cost: str) -> None:
    limit = result.attrs.get(LIMITS.get(cost, ""))
    if limit is not None:
        ends = [float(result["coef"].min()), float(result["coef"].max())]
        figure.add_scatter(
            x=ends, y=[limit, limit], mode="lines", name="limit of cost", hoverinfo="skip",
            line={"color": style.GREY, "dash": "dot", "width": 1}, row=2, col=1,
        )  # fmt: skip


def _faint(colour: str, opacity: float) -> str:
    red, green, blue = (int(colour[n : n + 2], 16) for n in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {opacity})"
