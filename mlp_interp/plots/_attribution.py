"""Direct logit attribution: bars of components, the grid of heads, the strongest neurons."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from mlp_interp.models import indices
from mlp_interp.plots import _style as style
from mlp_interp.plots._tokens import Axis, visible
from mlp_interp.results import mean_and_error_over

MAKER = "attribution.attribute_logits"
MOST_TEXT = 100  # cells from which on numbers drown the pattern


def attribution(result: xr.DataArray, *, top: int = 30) -> go.Figure:
    """Each component's share of a logit or logit difference, averaged over prompts.

    Chooses the figure by what the result holds: bars for components, the layer x head grid for
    heads, the strongest `top` for neurons. The shares of all components sum to the logit.

    Args:
        result: What `attribution.attribute_logits` returns: [prompt, pos, component]; `prompt` and
            `pos` may have been selected away.
        top: How many bars to draw; the axis says what the rest sums to.

    Returns:
        Bars with one standard error over prompts, or the grid of `heads`.

    Raises:
        ValueError: If `result` has no `component` dimension, or `top` is less than 1.
    """
    _check(result, top)
    kinds = style.kinds_of(result)
    if "neuron" in kinds:
        return neurons(result, top=top)
    if "head" in kinds:
        return heads(result)
    return _bars(result, "Direct logit attribution by component", top)


def neurons(result: xr.DataArray, *, top: int = 30) -> go.Figure:
    """The `top` neurons with the largest average share of the logit, either sign.

    Args:
        result: What `attribution.attribute_logits` returns at level "neuron".
        top: How many neurons to draw.

    Returns:
        Horizontal bars, strongest first, with one standard error over prompts.

    Raises:
        ValueError: If `result` holds no neurons, or `top` is less than 1.
    """
    _check(result, top)
    chosen = np.flatnonzero(np.array(style.kinds_of(result)) == "neuron")
    if not chosen.size:
        raise ValueError('result holds no neurons; attribute with level="neuron"')
    only = result.isel(component=chosen)
    title = f"Direct logit attribution of neurons: the strongest of {chosen.size:,}"
    return _bars(only, title, top)


def heads(result: xr.DataArray) -> go.Figure:
    """Grid, layer x head, of average shares of the logit; the MLPs stand beside it for comparison.

    Args:
        result: What `attribution.attribute_logits` returns at level "head" (or "neuron").

    Returns:
        A heatmap centred at zero: blue raises the answer, red lowers it.

    Raises:
        ValueError: If `result` holds no heads.
    """
    _check(result, 1)
    kinds = np.array(style.kinds_of(result))
    if not (kinds == "head").any():
        raise ValueError('result holds no heads; attribute with level="head"')
    mean, error, count = _mean_and_error(result)
    layer, head = np.array(style.whole(result, "layer")), np.array(style.whole(result, "head"))
    rows = sorted(set(layer[kinds == "head"].tolist()))
    columns = [str(h) for h in range(head.max() + 1)] + (["MLP"] if "mlp" in kinds else [])
    grid = np.full((len(rows), len(columns), 2), np.nan)
    names = np.full((len(rows), len(columns)), "", dtype=object)
    for i, label in enumerate(style.labels_of(result)):
        if kinds[i] in ("head", "mlp") and layer[i] in rows:
            column = head[i] if kinds[i] == "head" else len(columns) - 1
            grid[rows.index(layer[i]), column] = mean[i], error[i]
            names[rows.index(layer[i]), column] = label
    unit = style.unit_of(result, default="logits")
    figure = go.Figure(
        go.Heatmap(
            z=grid[..., 0], x=columns, y=[str(row) for row in rows],
            customdata=np.stack([names, grid[..., 1]], axis=-1),
            colorscale=style.DIVERGING, zmid=0, xgap=1, ygap=1, hoverongaps=False,
            texttemplate="%{z:.2g}" if grid[..., 0].size <= MOST_TEXT else None,
            colorbar={"title": {"text": unit, "side": "top"}, "thickness": 14},
            hovertemplate="<b>%{customdata[0]}</b><br>%{z:.4g} " + unit
            + (" ± %{customdata[1]:.2g} (standard error)" if count > 1 else "")
            + "<extra></extra>",
        )
    )  # fmt: skip
    figure.update_xaxes(title="head", type="category", showgrid=False)
    figure.update_yaxes(title="layer", type="category", autorange="reversed", showgrid=False)
    title = "Direct logit attribution by head"
    height = 200 + 45 * min(len(rows), 12)
    return style.finish(figure, title, result, height=height)


def sources(
    result: xr.DataArray,
    *,
    prompt: int = 0,
    tokens: Sequence[str] | None = None,
    top: int = 20,
) -> go.Figure:
    """Which source tokens the heads' shares of the logit came from, for one prompt.

    Args:
        result: What `attribution.attribute_sources` returns: [prompt, component, source].
        prompt: Which prompt to draw (tokens differ between prompts, so they are not averaged).
        tokens: That prompt's tokens as text, for the axis; None for those that the result knows,
            else positions.
        top: With more heads than this, those whose shares are largest are drawn, in the result's
            order, and the title says so.

    Returns:
        A heatmap, head x source token, centred at zero.

    Raises:
        ValueError: If dimensions are missing, there is no such prompt, or `tokens` has another
            length than the sources.
    """
    style.need_dims(result, "component", "source", maker="attribution.attribute_sources")
    if "prompt" in result.dims:
        if not 0 <= prompt < result.sizes["prompt"]:
            raise ValueError(f"prompt must be 0 to {result.sizes['prompt'] - 1}, got {prompt}")
        result = result.isel(prompt=prompt)
    indices.count("top", top)
    values = result.transpose("component", "source")
    title, count = "Heads' shares by source token", values.sizes["component"]
    if count > top:
        order = np.argsort(-np.abs(values.values).sum(1), kind="stable")
        values = values.isel(component=np.sort(order[:top]))
        title += f" (the {top} largest of {count} heads)"
    places = [int(place) for place in values["source"].values]
    if tokens is None and "source_token" in result.coords:
        tokens = [str(token) for token in result["source_token"].values]
    if tokens is not None and len(tokens) != len(places):
        raise ValueError(f"tokens must match sources: {len(tokens)} tokens, {len(places)} sources")
    shown = [str(place) for place in places] if tokens is None else [visible(t) for t in tokens]
    unit = style.unit_of(result, default="logits")
    figure = go.Figure(
        go.Heatmap(
            z=values.values.astype(float), x=places, y=style.labels_of(values),
            colorscale=style.DIVERGING, zmid=0, xgap=1, ygap=1,
            customdata=np.tile(np.array(shown, dtype=object), (values.sizes["component"], 1)),
            colorbar={"title": {"text": unit, "side": "top"}, "thickness": 14},
            hovertemplate="<b>%{y}</b> from %{customdata}<br>%{z:.4g} " + unit + "<extra></extra>",
        )
    )  # fmt: skip
    labels = Axis(places, shown, shown).ticks()
    figure.update_xaxes(title="source token", showgrid=False, **labels)
    figure.update_yaxes(title="head", type="category", autorange="reversed", showgrid=False)
    height = 240 + 26 * min(values.sizes["component"], 30)
    return style.finish(figure, title, result, height=height)


def _check(result: xr.DataArray, top: int) -> None:
    style.need_one(result, MAKER)
    if not isinstance(result, xr.DataArray):
        raise ValueError(f"result must be the DataArray of {MAKER}, got {type(result).__name__}")
    style.need_dims(result, "component", maker=MAKER)
    indices.count("top", top)


def _mean_and_error(result: xr.DataArray) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean over prompts (positions first), its standard error, and how many prompts there are."""
    others = [dim for dim in result.dims if dim not in ("prompt", "component")]
    values = result.mean(others) if others else result
    values = values if "prompt" in values.dims else values.expand_dims("prompt")
    mean, error = mean_and_error_over(values.astype(float), "prompt")
    return mean.values, error.values, values.sizes["prompt"]


def _bars(result: xr.DataArray, title: str, top: int) -> go.Figure:
    """Horizontal bars of the strongest `top`; the axis says what everything else sums to."""
    mean, error, count = _mean_and_error(result)
    labels = style.labels_of(result)
    order = np.argsort(-np.abs(mean), kind="stable")
    kept = order[:top] if len(order) > top else np.arange(len(order))
    names, values, errors = [labels[i] for i in kept], mean[kept].tolist(), error[kept].tolist()
    rest = mean[order[top:]]
    others = f"<br>the other {len(rest):,} sum to {rest.sum():+.3g}" if len(rest) else ""
    unit = style.unit_of(result, default="logits")
    figure = go.Figure(
        go.Bar(
            x=values, y=names, orientation="h",
            marker_color=[style.POSITIVE if value >= 0 else style.NEGATIVE for value in values],
            error_x=style.bars(errors if count > 1 else None),
            hovertemplate="<b>%{y}</b><br>%{x:.4g} " + unit
            + (" ± %{error_x.array:.2g} (standard error)" if count > 1 else "")
            + "<extra></extra>",
        )
    )  # fmt: skip
    prompts = f", mean of {count} prompts" if count > 1 else ""
    figure.update_xaxes(title=f"{unit}{prompts}{others}", zeroline=True, zerolinecolor=style.GREY)
    figure.update_yaxes(type="category", autorange="reversed", automargin=True)
    height = 190 + 20 * len(names)
    return style.finish(figure, title, result, height=height)
