"""Dimensions against text, what noise costs, and the shapes that features of toy models make."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from mlp_interp.plots import _style as style

SPECTRUM, NOISE, TOY = (
    f"superposition.{name}" for name in ("spectrum", "noise_tolerance", "toy.toy_models")
)
ACROSS = 3  # panels of a row

_NUMBERS = {
    "participation": ("participation", style.SKY),
    "participation_unbiased": ("participation, unbiased", style.BLUE),
    "entropy_rank": ("entropy rank", style.GREEN),
    "k90": ("eigenvalues of 90%", style.ORANGE),
}
_SITE_COLOURS = {
    "post": style.GREEN,
    "mlp_out": style.ORANGE,
    "attn_out": style.ATTENTION,
    "resid_pre": style.SKY,
    "resid_post": style.BLUE,
}


def spectrum(result: xr.Dataset) -> go.Figure:
    """Numbers of dimensions against the amount of text, a panel for each layer.

    Markers are filled from the number of tokens on from which a number stays within 5% of its value
    at the end. A line that still rises at the right says how much text there was, not how many
    dimensions there are.

    Args:
        result: What `superposition.spectrum` returns.

    Returns:
        Lines over tokens, on a log axis, of both participation ratios (bars: one standard error),
        the entropy rank and the number of eigenvalues with 90% of the variance.

    Raises:
        ValueError: If `result` is no such Dataset.
    """
    style.need(result, *_NUMBERS, "participation_se", "enough", "tokens", maker=SPECTRUM)
    style.need_dims(result["participation"], "layer", "n", maker=SPECTRUM)
    layers = [int(layer) for layer in result["layer"].values]
    figure = _panels([f"layer {layer}" for layer in layers], below="tokens")
    tokens = result["tokens"].values
    for place in range(len(layers)):
        one = result.isel(layer=place)
        for name, (label, colour) in _NUMBERS.items():
            enough = float(one["enough"].sel(measure=name))
            error = one["participation_se"].values if name.startswith("participation") else None
            # Of the naive ratio, too, but two bars at one place cannot be told apart.
            shown = error if name == "participation_unbiased" else None
            said = "" if error is None else " ± %{customdata:.2g} (standard error)"
            figure.add_scatter(
                x=tokens, y=one[name].values, error_y=style.bars(shown), customdata=error,
                name=label, legendgroup=name, showlegend=place == 0, mode="lines+markers",
                line_color=colour,
                marker_symbol=["circle" if n >= enough else "circle-open" for n in tokens],
                hovertemplate=f"{label} %{{y:.1f}}{said}<br>%{{x:,}} tokens<extra></extra>",
                **_at(place),
            )  # fmt: skip
    decades = 10.0 ** np.arange(9)
    marks = np.outer(decades, (1, 2, 5)).ravel()
    figure.update_xaxes(type="log", tickvals=marks, tickformat="~s")
    figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(title="dimensions", col=1)
    site = style.plain(str(result.attrs.get("site", "")))
    note = "bars: one standard error over sequences; filled: within 5% of the value at the end"
    return _finished(figure, f"How many dimensions {site} uses", result, note)


def noise_tolerance(result: xr.Dataset) -> go.Figure:
    """What noise costs against its size, a panel for each layer and a line for each site.

    Where a line runs along the dotted guide, of slope 2, the cost is quadratic. The dashed line is
    the level at which noise counts as no longer tolerated, the crosses on it the sizes there.

    Args:
        result: What `superposition.noise_tolerance` returns.

    Returns:
        Lines on logarithmic axes with bars of one standard error. What is not above zero is named
        below.

    Raises:
        ValueError: If `result` is no such Dataset.
    """
    style.need(result, "kl", "kl_se", "tolerated", maker=NOISE)
    style.need_dims(result["kl"], "site", "layer", "size", maker=NOISE)
    layers = [int(layer) for layer in result["layer"].values]
    figure = _panels([f"layer {layer}" for layer in layers], below="size of the noise")
    hidden = []
    sizes, level = result["size"].values, float(result.attrs.get("level", np.nan))
    for place, layer in enumerate(layers):
        one = result.isel(layer=place)
        for site in map(str, one["site"].values):
            here = one.sel(site=site)
            kl, colour = style.drawable(here["kl"].values, log=True), _SITE_COLOURS[site]
            hidden += [f"{site} of layer {layer}"] if np.isnan(kl).any() else []
            figure.add_scatter(
                x=sizes, y=kl, error_y=style.bars(here["kl_se"].values), name=site,
                legendgroup=site, showlegend=place == 0, mode="lines+markers", line_color=colour,
                customdata=here["kl_se"].values, **_at(place),
                hovertemplate=f"{site}, noise of %{{x:g}}<br>KL %{{y:.3g}} ± %{{customdata:.2g}}"
                " nats (standard error)<extra></extra>",
            )  # fmt: skip
            figure.add_scatter(
                x=[float(here["tolerated"])], y=[level], mode="markers", showlegend=False,
                legendgroup=site, marker={"symbol": "x-thin", "size": 11, "line_width": 2.5,
                "line_color": colour}, **_at(place),
                hovertemplate=f"{site}: %{{x:.3g}} costs {level:g} nats<extra></extra>",
            )  # fmt: skip
        start = np.nanmedian(style.drawable(one["kl"].isel(size=0).values, log=True))
        figure.add_scatter(
            x=sizes, y=start * (sizes / sizes[0]) ** 2, mode="lines", name="slope 2",
            line={"color": style.GREY, "dash": "dot", "width": 1.5}, hoverinfo="skip",
            legendgroup="guide", showlegend=place == 0, **_at(place),
        )  # fmt: skip
    figure.add_hline(y=level, line_dash="dash", line_color=style.INK, line_width=1)
    figure.update_xaxes(type="log", tickvals=sizes)
    figure.update_yaxes(type="log", exponentformat="power", dtick=1)
    figure.update_yaxes(title="KL(clean‖noisy) [nats]", col=1)
    style.say_hidden(figure, hidden)
    kind = style.plain(str(result.attrs.get("kind", "")))
    note = f"sizes: shares of the site's spread; bars: one standard error; dashed: {level:g} nats"
    return _finished(figure, f"What {kind} noise costs", result, note)


def toy(result: xr.Dataset) -> go.Figure:
    """Features of toy models, a panel for each: as directions in two dimensions, else their angles.

    Args:
        result: What `superposition.toy.toy_models` returns.

    Returns:
        Of two dimensions lines from 0 to each feature's row, beside the unit circle; of other
        numbers heat maps of the rows' products (``gram``), white at 0, with 1 on the diagonal for a
        feature that is stored whole.

    Raises:
        ValueError: If `result` is no such Dataset.
    """
    style.need(result, "W", "gram", "dimensionality", "loss", "probability", maker=TOY)
    style.need_dims(result["W"], "instance", "feature", "d", maker=TOY)
    shares, losses = result["probability"].values, result["loss"].values
    flat, n = result.sizes["d"] == 2, result.sizes["feature"]
    titles = [f"probability {p:.3g}, loss {x:.2g}" for p, x in zip(shares, losses, strict=True)]
    figure = _panels(titles, below="" if flat else "feature")
    for place in range(len(shares)):
        one = result.isel(instance=place)
        if flat:
            _arrows(figure, one, place)
            continue
        figure.add_heatmap(
            z=one["gram"].values, x=result["feature"].values, y=result["feature"].values,
            coloraxis="coloraxis", xgap=1, ygap=1, **_at(place),
            hovertemplate="features %{y} and %{x}<br>product %{z:.3f}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(constrain="domain")
    if flat:
        limit = 1.15 * max(1.0, float(result["norm"].max()))
        figure.update_xaxes(range=[-limit, limit], zeroline=False, dtick=1)
        figure.update_yaxes(range=[-limit, limit], zeroline=False, dtick=1, constrain="domain")
    else:
        figure.update_xaxes(showgrid=False)
        figure.update_yaxes(showgrid=False, autorange="reversed", constrain="domain")
        figure.update_layout(coloraxis=style.diverging("product of rows", 1.0))
    for place in range(len(shares)):
        figure.update_yaxes({"scaleanchor": f"x{place + 1}" if place else "x"}, **_at(place))
    note = "dotted: the unit circle" if flat else "off the diagonal: interference"
    title = f"{n} features in {result.sizes['d']} dimensions"
    return _finished(figure, title, result, note)


def _arrows(figure: go.Figure, one: xr.Dataset, place: int) -> None:
    """The rows of one toy model, from 0, in front of the unit circle."""
    angle = np.linspace(0, 2 * np.pi, 91)
    figure.add_scatter(
        x=np.cos(angle), y=np.sin(angle), mode="lines", hoverinfo="skip", showlegend=False,
        line={"color": style.GREY, "dash": "dot", "width": 1}, **_at(place),
    )  # fmt: skip
    rows = one["W"].values
    gaps = np.full(len(rows), np.nan)
    ends = np.stack([np.zeros_like(rows), rows, np.full_like(rows, np.nan)], 1).reshape(-1, 2)
    size = np.repeat(one["dimensionality"].values, 3)
    number = np.stack([gaps, one["feature"].values, gaps], 1).ravel()
    figure.add_scatter(
        x=ends[:, 0], y=ends[:, 1], mode="lines+markers", showlegend=False, line_color=style.BLUE,
        marker={"size": np.where(np.isnan(number), 0, 8), "opacity": 1},
        customdata=np.stack([number, size], 1),
        hovertemplate="feature %{customdata[0]}<br>(%{x:.2f}, %{y:.2f})"
        "<br>%{customdata[1]:.2f} of a dimension<extra></extra>",
        **_at(place),
    )  # fmt: skip


def _panels(titles: Sequence[str], *, below: str) -> go.Figure:
    """Panels in rows, with one scale upward, and the lowest of each column named below."""
    across = min(len(titles), ACROSS)
    rows = -(-len(titles) // across)
    figure = make_subplots(
        rows, across, subplot_titles=titles, vertical_spacing=0.2 / rows, horizontal_spacing=0.05
    )
    figure.update_yaxes(matches="y", showticklabels=False)
    figure.update_yaxes(showticklabels=True, col=1)
    for place in range(max(0, len(titles) - across), len(titles)):
        figure.update_xaxes({"title": below}, **_at(place))
    return figure.update_annotations(font_size=12)


def _at(place: int) -> dict[str, Any]:
    """Where a panel is."""
    return {"row": place // ACROSS + 1, "col": place % ACROSS + 1}


def _finished(figure: go.Figure, title: str, result: xr.Dataset, note: str) -> go.Figure:
    """Title, look and size; the legend above the titles of the panels."""
    panels = sum(1 for _ in figure.select_xaxes())
    high = 250 * -(-panels // ACROSS)
    hidden = any(text.yshift == -62 for text in figure.layout.annotations)
    style.finish(
        figure, title, result, note=note, height=high + 206, margin_t=136,
        margin_b=100 if hidden else 70,
    )  # fmt: skip
    figure.update_layout(legend={"y": 1 + 24 / high})
    return figure
