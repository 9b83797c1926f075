"""What heads do, from weights and on texts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from mlp_interp.plots import _style as style

__all__ = ["compose", "positions", "roles", "scores"]

_SIGNED = ("copying", "duplicate", "copying_z")
_NAMED = 30  # readers up to which the largest values are written into cells
_WRITTEN = 12  # heads of a layer up to which numbers are written into cells


def roles(
    result: xr.Dataset, *, columns: Sequence[str] = ("previous", "copying", "duplicate")
) -> go.Figure:
    """Maps of layer x head, one for each of some columns of `heads.roles`.

    Args:
        result: What `heads.roles` returns.
        columns: Which of its variables over ``layer, head``.

    Returns:
        The maps; shares of either sign are centred at zero.

    Raises:
        ValueError: The result lacks one of them.

    Example:
        >>> import mlp_interp as mi
        >>> roles(mi.heads.roles(mi.load_model("nano"))).layout.title.text.split("<br>")[0]
        'What heads do, from weights'
    """
    style.need(result, *columns, maker="heads.roles")
    titles = [f"{name} ({style.unit_of(result[name])})" for name in columns]
    figure = make_subplots(cols=len(columns), subplot_titles=titles, horizontal_spacing=0.09)
    labels = result["component"].values
    written = "%{z:.2f}" if result.sizes["head"] <= _WRITTEN else None
    for place, name in enumerate(columns, start=1):
        signed = {"colorscale": style.DIVERGING, "zmid": 0}
        look = signed if name in _SIGNED else {"colorscale": style.SEQUENTIAL}
        figure.add_heatmap(
            z=result[name].values, x=result["head"].values, y=result["layer"].values,
            customdata=labels, texttemplate=written, showscale=False, xgap=1, ygap=1, col=place,
            row=1, hovertemplate="<b>%{customdata}</b><br>" + name + " %{z:.3g}<extra></extra>",
            **look,
        )  # fmt: skip
    # Panels side by side have room for so many numbers.
    heads, layers = (max(1, -(-result.sizes[dim] // n)) for dim, n in (("head", 8), ("layer", 24)))
    figure.update_xaxes(title="head", dtick=heads, showgrid=False)
    figure.update_yaxes(autorange="reversed", dtick=layers, showgrid=False)
    figure.update_yaxes(title="layer", col=1)
    height = 220 + 40 * min(result.sizes["layer"], 12)
    return style.finish(figure, "What heads do, from weights", result, height=height)


def positions(result: xr.Dataset, *, heads: Sequence[str] | None = None) -> go.Figure:
    """Mean scores by distance, with the band in which most pairs of tokens lie.

    Args:
        result: What `heads.positions` returns.
        heads: Which of them; None for the four whose kernels are least flat.

    Returns:
        A line a head; bands are one standard deviation over pairs of tokens, not an error.

    Raises:
        ValueError: The result lacks what is drawn, or a head.
    """
    style.need(result, "score", "kernel", "spread_query", maker="heads.positions")
    known = [str(label) for label in result["head"].values]
    if heads is None:
        order = np.argsort(-result["kernel"].max("distance").values, kind="stable")[:4]
        heads = [known[i] for i in order]
    if missing := [label for label in heads if label not in known]:
        raise ValueError(f"heads={missing}; the result holds {', '.join(known)}")
    figure, x = go.Figure(), result["distance"].values
    colours = (style.BLUE, style.ORANGE, style.GREEN, style.PURPLE, style.SKY, style.AMBER)
    for i, label in enumerate(heads):
        one, colour = result.sel(head=label), colours[i % len(colours)]
        spread = sum(one[f"spread_{part}"].values ** 2 for part in ("query", "key", "both")) ** 0.5
        score = one["score"].values
        figure.add_scatter(
            x=[*x, *x[::-1]], y=[*(score + spread), *(score - spread)[::-1]], fill="toself",
            fillcolor=colour, opacity=0.15, line={"width": 0}, hoverinfo="skip", showlegend=False,
            legendgroup=label,
        )  # fmt: skip
        figure.add_scatter(
            x=x, y=score, name=label, mode="lines+markers", line={"color": colour},
            legendgroup=label, customdata=one["kernel"].values,
            hovertemplate=f"<b>{label}</b>, distance %{{x}}<br>score %{{y:.3g}}<br>"
            "attention by position alone %{customdata:.3f}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title="distance from query back to key")
    figure.update_yaxes(title="attention score")
    return style.finish(figure, "Scores by position alone; bands: ± 1 sd over tokens", result)


def compose(result: xr.Dataset, *, above: float | None = None) -> go.Figure:
    """How far each pair of heads composes beyond chance.

    Args:
        result: What `heads.compose` returns.
        above: Pairs are named whose ``z`` is larger in size; None for the bound that one in twenty
            models of random heads would pass anywhere (normal tails).

    Returns:
        Writers down, readers across, ``z`` as colour (cut at 30), the score where one points.

    Raises:
        ValueError: The result lacks what is drawn.
    """
    style.need(result, "score", "z", maker="heads.compose")
    z = result["z"].transpose("writer", "reader").values
    bound = _bound(int(np.isfinite(z).sum())) if above is None else above
    writers, readers = (list(map(str, result[name].values)) for name in ("writer", "reader"))
    figure = go.Figure(
        go.Heatmap(
            z=z, x=readers, y=writers, zmid=0, zmin=-30, zmax=30, colorscale=style.DIVERGING,
            customdata=result["score"].transpose("writer", "reader").values, hoverongaps=False,
            colorbar={"title": {"text": "z (sd)", "side": "right"}, "thickness": 14},
            hovertemplate="<b>%{y} → %{x}</b><br>z %{z:.1f}<br>score %{customdata:.3f}"
            "<extra></extra>",
        )
    )  # fmt: skip
    strong = [tuple(at) for at in np.argwhere(np.nan_to_num(np.abs(z)) > bound)]
    named = sorted(strong, key=lambda at: -abs(z[at]))[: 12 if len(readers) <= _NAMED else 0]
    for row, column in named:
        figure.add_annotation(
            x=readers[column], y=writers[row], text=f"{z[row, column]:.0f}", showarrow=False,
            font={"size": 9, "color": "white" if abs(z[row, column]) > 15 else "black"},
        )  # fmt: skip
    figure.update_xaxes(title="reader", showgrid=False)
    figure.update_yaxes(title="writer", autorange="reversed", showgrid=False)
    title = f"Composition beyond chance: {len(strong)} pairs with |z| > {bound:.1f}"
    return style.finish(figure, title, result, height=260 + 14 * min(len(writers), 40))


def _bound(pairs: int) -> float:
    """The size that the largest of so many normal draws passes once in twenty times."""
    from scipy.stats import norm

    return float(norm.isf(0.025 / max(1, pairs)))


def scores(
    result: xr.Dataset, *, key: int, prompt: int | None = None, query: int | None = None
) -> go.Figure:
    """Which pairs of components prefer one key to the others, as parts of a score.

    Args:
        result: What `heads.split_scores` returns.
        key: The position of the key.
        prompt: One prompt; None for the mean over all.
        query: The position of the query; None for the only one.

    Returns:
        Parts of the score less their means over the other keys: query's components down, key's
        across.

    Raises:
        ValueError: The result lacks what is drawn, that key or query, or has several queries and
            none is named.
    """
    style.need(result, "parts", maker="heads.split_scores")
    parts = result["parts"]
    for name, wanted in (("query", query), ("key", key)):
        known = parts[name].values.tolist()
        if wanted not in known and not (wanted is None and len(known) == 1):
            raise ValueError(f"{name}={wanted}; wanted one of {known}")
    parts = parts.isel(query=0) if query is None else parts.sel(query=query)
    margin = parts.sel(key=key) - parts.drop_sel(key=key).mean("key")
    shown: Any = margin.mean("prompt") if prompt is None else margin.isel(prompt=prompt)
    shown = shown.transpose("query_component", "key_component")
    figure = go.Figure(
        go.Heatmap(
            z=shown.values, zmid=0, colorscale=style.DIVERGING, xgap=1, ygap=1,
            x=list(map(str, shown["key_component"].values)),
            y=list(map(str, shown["query_component"].values)),
            texttemplate="%{z:.1f}" if shown.size <= 200 else None,
            colorbar={"title": {"text": "score", "side": "right"}, "thickness": 14},
            hovertemplate="query %{y}, key %{x}<br>%{z:.3g}<extra></extra>",
        )
    )  # fmt: skip
    figure.update_xaxes(title="read by the key", showgrid=False)
    figure.update_yaxes(title="read by the query", autorange="reversed", showgrid=False)
    label = style.plain(str(result.attrs.get("component", "a head")))
    title = f"Why {label} prefers key {key} to others: {float(shown.sum()):.1f} in score"
    return style.finish(figure, title, result, height=240 + 22 * min(len(shown), 25))
