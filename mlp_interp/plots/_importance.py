"""Direct and total importance of sub-updates: by layer, and one against the other."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from mlp_interp.models import indices
from mlp_interp.plots import _style as style
from mlp_interp.plots._labels import beside

MAKER = "ablation.subupdate_importance"
NAMES = {
    "kl": "KL(clean‖ablated)",
    "delta_loss": "Δloss",
    "top1": "share of tokens whose top-1 prediction changes",
    "perplexity_ratio": "perplexity, ablated / clean",
}
SHORT = {"top1": "changed predictions", "perplexity_ratio": "perplexity ratio"}
DEFAULT_UNITS = {"kl": "nats", "delta_loss": "nats/token", "top1": "fraction"}
NAMED = 12  # points of a scatter plot that are named, where there are more
NARROW = (330.0, 380.0)  # pixels of a plot's inside on a narrow page


def importance(
    result: xr.Dataset, *, quantity: str = "kl", top: int = 40, log: bool | None = None
) -> go.Figure:
    """What removing each sub-update does directly and in total, and how far these are apart.

    Rings change only the readout; diamonds let later layers react. The line between them is what
    goes through later layers. Error bars are one standard error over sequences.

    Args:
        result: What `ablation.subupdate_importance` returns.
        quantity: "kl", "delta_loss", "top1" or "perplexity_ratio".
        top: With more heads than this, only those with the largest total are drawn (in the model's
            order), and the title says so. Attention and MLP outputs are all drawn.
        log: Draw on a log axis, where values of zero or below cannot be shown and are named; None
            does so unless more than a quarter of the values are.

    Returns:
        For attention and MLP outputs a panel each, by layer; else one for all, in the model's
        order.

    Raises:
        ValueError: If `result` lacks the quantity, or `quantity` or `top` is wrong.
    """
    _check(result, quantity)
    indices.count("top", top)
    count, layered = result.sizes["component"], _layered(result)
    title = f"Importance of each sub-update: {NAMES[quantity]} when it is removed"
    if count > top and not layered:
        size = np.nan_to_num(np.abs(result[f"{quantity}_total"].values), nan=-1.0)
        result = result.isel(component=np.sort(np.argsort(-size, kind="stable")[:top]))
        title += f" (the {top} largest of {count})"
    both = [result[f"{quantity}_{way}"].values.astype(float) for way in ("direct", "total")]
    if log is None:
        log = float(np.mean(np.stack(both) <= 0)) <= 0.25
    kinds = np.array(style.kinds_of(result))
    panels = list(dict.fromkeys(kinds)) if layered else [""]
    names = [style.KIND_NAMES.get(kind, kind) for kind in panels]
    figure = make_subplots(rows=len(panels), cols=1, shared_xaxes=True, vertical_spacing=0.07)
    hidden: list[str] = []
    for row, kind in enumerate(panels, 1):
        chosen = np.flatnonzero(kinds == kind) if layered else np.arange(len(kinds))
        part = result.isel(component=chosen)
        places = style.whole(part, "layer") if layered else style.labels_of(part)
        hidden += _dumbbells(figure, part, quantity, places, row, log=log)
    figure.update_yaxes(type="log" if log else "linear", matches="y")
    figure.update_layout(yaxis_matches=None)
    measure = f"{SHORT.get(quantity, NAMES[quantity])} [{_unit(result, quantity)}]"
    for row, name in enumerate(names, 1):
        said = f"<b>{name}</b><br>{measure}" if layered else measure
        figure.update_yaxes(title=said, row=row, col=1)
    if log:
        figure.update_yaxes(dtick=1, minor={"ticks": "", "showgrid": False}, exponentformat="power")
    layers = len(set(style.whole(result, "layer")))
    figure.update_xaxes({"dtick": 1 if layers <= 16 else 2} if layered else {"type": "category"})
    removed = "layer whose sub-update is removed" if layered else "sub-update removed"
    figure.update_xaxes(title=removed, row=len(panels), col=1)
    style.say_hidden(figure, hidden)
    return style.finish(figure, title, result, height=300 + 140 * len(panels))


def direct_vs_total(result: xr.Dataset, *, quantity: str = "kl") -> go.Figure:
    """Scatter on log axes: direct effect across, total effect up.

    On the diagonal a sub-update acts through the readout alone. Above it, later layers build on
    what it wrote; below it, they make up for its loss. Bars are one standard error.

    Args:
        result: What `ablation.subupdate_importance` returns.
        quantity: "kl", "delta_loss" or "top1".

    Returns:
        One point per component, coloured by kind, and the diagonal. Names stand where there is
        room for them; of many points those that stand out are named.

    Raises:
        ValueError: If `result` lacks the quantity.
    """
    _check(result, quantity)
    unit = _unit(result, quantity)
    kinds, labels = np.array(style.kinds_of(result)), np.array(style.labels_of(result))
    (x, x_error), (y, y_error) = (
        _value_and_error(result, quantity, way) for way in ("direct", "total")
    )
    x_shown, y_shown = style.drawable(x, log=True), style.drawable(y, log=True)
    off = np.isnan(x_shown) | np.isnan(y_shown)
    figure = go.Figure()
    sides = np.full(len(labels), "", dtype=object)
    if (~off).any():
        ends = [min(x_shown[~off].min(), y_shown[~off].min()) / 3,
                max(x_shown[~off].max(), y_shown[~off].max()) * 3]  # fmt: skip
        figure.add_scatter(
            x=ends, y=ends, mode="lines", name="direct = total", hoverinfo="skip",
            line={"color": style.GREY, "dash": "dot", "width": 1},
        )  # fmt: skip
        spans = [_span(values[~off]) for values in (x_shown, y_shown)]
        figure.update_xaxes(range=spans[0])
        figure.update_yaxes(range=spans[1])
        for i, side in _named(x_shown, y_shown, labels, np.flatnonzero(~off), spans).items():
            sides[i] = side
    for kind in dict.fromkeys(kinds):
        chosen = (kinds == kind) & ~off
        extra = np.stack([labels, y - x], axis=-1)[chosen] if chosen.any() else None
        figure.add_scatter(
            x=x_shown[chosen], y=y_shown[chosen], name=style.KIND_NAMES.get(kind, kind),
            mode="markers+text",
            text=np.where(sides != "", labels, "")[chosen],
            textposition=[side or "top right" for side in sides[chosen]], textfont_size=10,
            marker={
                "color": style.KIND_COLOURS.get(kind), "size": 9,
                "symbol": style.KIND_SYMBOLS.get(kind),
            },
            error_x=style.bars(None if x_error is None else x_error[chosen]),
            error_y=style.bars(None if y_error is None else y_error[chosen]),
            customdata=extra,
            hovertemplate=f"<b>%{{customdata[0]}}</b><br>direct %{{x:.4g}} {unit}"
            f"<br>total %{{y:.4g}} {unit}"
            f"<br>through later layers %{{customdata[1]:.4g}} {unit}<extra></extra>",
        )  # fmt: skip
    what = SHORT.get(quantity, NAMES[quantity])
    look = {"type": "log", "dtick": 1, "exponentformat": "power"}
    figure.update_xaxes(title=f"direct {what} [{unit}]", **look)
    figure.update_yaxes(title=f"total {what} [{unit}]", **look)
    style.say_hidden(figure, labels[off].tolist())
    return style.finish(figure, "Directly, or through later layers?", result, height=540)


def _layered(result: xr.Dataset) -> bool:
    """Whether these are attention and MLP outputs, of each layer one at most."""
    places = list(zip(style.kinds_of(result), style.whole(result, "layer"), strict=True))
    return {kind for kind, _ in places} <= {"attn", "mlp"} and len({*places}) == len(places)


def _dumbbells(
    figure: go.Figure, part: xr.Dataset, quantity: str, places: list, row: int, *, log: bool
) -> list[str]:
    """A ring, a diamond and the line between them for each component; names what is not shown."""
    unit, labels = _unit(part, quantity), style.labels_of(part)
    found = {way: _value_and_error(part, quantity, way) for way in ("direct", "total")}
    shown = {way: style.drawable(value, log=log) for way, (value, _) in found.items()}
    later = found["total"][0] - found["direct"][0]
    gaps = np.stack([shown["direct"], shown["total"], np.full(len(places), np.nan)], axis=-1)
    figure.add_scatter(
        x=np.repeat(np.array(places, dtype=object), 3), y=gaps.ravel(), mode="lines",
        name="through later layers", legendgroup="later", showlegend=row == 1, hoverinfo="skip",
        line={"color": style.GREY, "width": 2.5}, row=row, col=1,
    )  # fmt: skip
    for way, (_, error) in found.items():
        figure.add_scatter(
            x=places, y=shown[way], mode="markers", name=way, legendgroup=way,
            showlegend=row == 1, error_y=style.bars(error),
            marker={
                "color": style.WAY_COLOURS[way], "symbol": style.WAY_SYMBOLS[way], "size": 9,
                "line": {"width": 2, "color": style.WAY_COLOURS[way]},
            },
            customdata=np.stack([np.array(labels, dtype=object), later], axis=-1),
            hovertemplate=f"<b>%{{customdata[0]}}</b><br>{way} %{{y:.4g}} {unit}"
            + (" ± %{error_y.array:.2g} (standard error)" if error is not None else "")
            + f"<br>through later layers %{{customdata[1]:.4g}} {unit}<extra></extra>",
            row=row, col=1,
        )  # fmt: skip
    if not log:
        return []
    return [x for x, *y in zip(labels, *shown.values(), strict=True) if np.isnan(y).any()]


def _named(
    x: np.ndarray, y: np.ndarray, labels: np.ndarray, seen: np.ndarray, spans: list[list[float]]
) -> dict[int, str]:
    """Which points to name, and on which side: all of a few, of many those that stand out.

    These have the largest totals, or are far from the others' relation of total to direct.
    """
    across, up = np.log10(x[seen]), np.log10(y[seen])
    places = np.stack([across - spans[0][0], up - spans[1][0]], axis=-1)
    places /= [spans[0][1] - spans[0][0], spans[1][1] - spans[1][0]]
    order = np.argsort(-up, kind="stable")
    if len(seen) > NAMED:
        apart = np.abs(up - across - np.median(up - across))
        odd, largest = np.argsort(-apart, kind="stable"), order[: NAMED // 2]
        order = np.array([*largest, *odd[~np.isin(odd, largest)]])[:NAMED]
    found = beside(places, labels[seen].tolist(), order.tolist(), NARROW)
    return {int(seen[i]): side for i, side in found.items()}


def _span(values: np.ndarray) -> list[float]:
    """The ends of a log axis, with room for markers and names."""
    low, high = np.log10(values.min()), np.log10(values.max())
    room = max(0.15, 0.1 * (high - low))
    return [float(low - room), float(high + room)]


def _check(result: xr.Dataset, quantity: str) -> None:
    if quantity not in NAMES:
        raise ValueError(f"quantity must be one of {', '.join(NAMES)}, got {quantity!r}")
    style.need(result, f"{quantity}_direct", f"{quantity}_total", maker=MAKER)
    style.need_dims(result, "component", maker=MAKER)


def _unit(result: xr.Dataset, quantity: str) -> str:
    default = DEFAULT_UNITS.get(quantity, "ratio")
    return style.unit_of(result[f"{quantity}_total"], default=default)


def _value_and_error(result: xr.Dataset, quantity: str, way: str):
    value = result[f"{quantity}_{way}"].values.astype(float)
    name = f"{quantity}_{way}_se"
    return value, result[name].values.astype(float) if name in result else None
