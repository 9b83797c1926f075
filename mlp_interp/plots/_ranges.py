"""The layer-range matrix: what happens when several layers in a row are removed."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from mlp_interp.plots import _style as style

NAMES = {"perplexity": "perplexity", "delta_loss": "Δloss", "kl": "KL(clean‖ablated)"}
WHAT = {"mlp": "MLPs", "attn": "attention", "both": "attention and MLPs"}


def ranges(result: xr.Dataset, *, quantity: str = "perplexity") -> go.Figure:
    """Heatmap: the first removed layer down, the last removed layer across.

    The diagonal removes one layer, the top right corner removes all of them. Perplexity is coloured
    on a log scale, since removing many layers multiplies it.

    Args:
        result: What `ablation.ablate_ranges` returns: variables over (start, end), NaN where
            end < start.
        quantity: "perplexity", "delta_loss" or "kl".

    Returns:
        A heatmap with the values written in the cells (up to 8 layers or blocks), and in the hover
        text.

    Raises:
        ValueError: If `result` lacks the quantity or the dimensions, or a perplexity is not
            positive.
    """
    maker = "ablation.ablate_ranges"
    if quantity not in NAMES:
        raise ValueError(f"quantity must be one of {', '.join(NAMES)}, got {quantity!r}")
    style.need(result, quantity, maker=maker)
    style.need_dims(result[quantity], "start", "end", maker=maker)
    values = result[quantity].transpose("start", "end").values.astype(float)
    log = quantity == "perplexity"
    if log and (values <= 0).any():
        raise ValueError(f"a perplexity must be positive, got {np.nanmin(values)}")

    se = result.get(f"{quantity}_se")
    error = se.transpose("start", "end").values if se is not None else np.full_like(values, np.nan)
    unit = style.unit_of(result[quantity], default="" if log else "nats/token")
    unit = "" if unit in ("1", "perplexity", "none", "") else " " + unit
    starts, ends = (result[dim].values.astype(str).tolist() for dim in ("start", "end"))
    # Δloss can fall below zero, so it is signed; the others are magnitudes.
    signed = quantity == "delta_loss" and np.nanmin(values) < -0.1 * np.nanmax(values)
    bar: dict = {"title": {"text": f"{NAMES[quantity]}{unit}", "side": "right"}, "thickness": 14}
    shade = np.log10(values) if log else values
    if log:
        bar |= _decades(np.nanmin(shade), np.nanmax(shade))
    small = len(starts) <= 8
    figure = go.Figure(
        go.Heatmap(
            z=shade, x=ends, y=starts, customdata=np.stack([values, error], axis=-1),
            colorscale=style.DIVERGING if signed else style.SEQUENTIAL,
            zmid=0 if signed else None, hoverongaps=False, xgap=1, ygap=1, colorbar=bar,
            text=_short(values) if small else None, texttemplate="%{text}" if small else None,
            hovertemplate="layers %{y} to %{x} removed<br>" + NAMES[quantity]
            + " %{customdata[0]:.4g}" + unit
            + ("" if se is None else " ± %{customdata[1]:.2g} (standard error)")
            + "<extra></extra>",
        )
    )  # fmt: skip
    clean = result.attrs.get("clean_perplexity")
    also = f" (clean: {float(clean):.4g})" if log and clean is not None else ""
    what = WHAT.get(str(result.attrs.get("kind", "")), "sub-updates")
    figure.update_xaxes(
        title="last layer removed", type="category", showgrid=False, tickangle=0,
        tickvals=ends[:: -(-len(ends) // 10)],
    )  # fmt: skip
    figure.update_yaxes(
        title="first layer removed", type="category", autorange="reversed", showgrid=False
    )
    title = f"{NAMES[quantity].capitalize()} without {what} of a range of layers{also}"
    return style.finish(figure, title, result, height=440, width=620)


def _decades(low: float, high: float) -> dict:
    """Colour bar ticks at round numbers for a scale drawn in powers of ten."""
    marks = [m * 10.0**e for e in range(-3, 16) for m in (1, 2, 5)]
    ticks = [np.log10(m) for m in marks if low - 0.02 <= np.log10(m) <= high + 0.02]
    if len(ticks) < 2:  # everything lies between two round numbers
        ticks = np.linspace(low, high, 3).tolist()
    ticks = ticks[:: max(1, len(ticks) // 6)]
    rounded = [float(f"{10**at:.3g}") for at in ticks]
    return {
        "tickvals": ticks,
        "ticktext": [f"{m:,.0f}" if m >= 1 else f"{m:g}" for m in rounded],
    }


def _short(values: np.ndarray) -> list[list[str]]:
    """Three digits per cell, "12.3k" beyond ten thousand, nothing where nothing was measured."""

    def write(value: float) -> str:
        if np.isnan(value):
            return ""
        for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
            if abs(value) >= size:
                return f"{value / (1e3 if letter == 'k' else size):.3g}{letter}"
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"

    return [[write(value) for value in row] for row in values]
