"""Direct and total importance of sub-updates: bars, and one against the other."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from mlp_interp.models import indices
from mlp_interp.plots import _style as style

MAKER = "ablation.subupdate_importance"
NAMES = {
    "kl": "KL(clean‖ablated)",
    "delta_loss": "Δloss",
    "top1": "share of tokens whose top-1 prediction changes",
    "perplexity_ratio": "perplexity, ablated / clean",
}
DEFAULT_UNITS = {"kl": "nats", "delta_loss": "nats/token", "top1": "fraction"}


def importance(
    result: xr.Dataset, *, quantity: str = "kl", top: int = 40, log: bool = False
) -> go.Figure:
    """Bars: what removing each sub-update does directly, and in total.

    The direct bar changes only the readout; the total bar lets later layers react. Error bars are
    one standard error over sequences.

    Args:
        result: What `ablation.subupdate_importance` returns.
        quantity: "kl", "delta_loss", "top1" or "perplexity_ratio".
        top: With more components than this, only those with the largest total are drawn (in the
            model's order), and the title says so.
        log: Draw on a log axis. Values of zero or below cannot be shown there and are named.

    Returns:
        Two bars per component, in the model's order.

    Raises:
        ValueError: If `result` lacks the quantity, or `quantity` or `top` is wrong.
    """
    _check(result, quantity)
    indices.count("top", top)
    count = result.sizes["component"]
    title = f"Importance of each sub-update: {NAMES[quantity]} when it is removed"
    if count > top:
        size = np.nan_to_num(np.abs(result[f"{quantity}_total"].values), nan=-1.0)
        result = result.isel(component=np.sort(np.argsort(-size, kind="stable")[:top]))
        title += f" (the {top} largest of {count})"

    figure, hidden, labels = go.Figure(), [], style.labels_of(result)
    unit = _unit(result, quantity)
    for way, colour in (("direct", style.SKY), ("total", style.ORANGE)):
        value, error = _value_and_error(result, quantity, way)
        shown = style.drawable(value, log=log)
        hidden += [x for x, y in zip(labels, shown, strict=True) if log and np.isnan(y)]
        figure.add_bar(
            x=labels, y=shown, name=way, marker_color=colour,
            error_y=style.bars(error),
            hovertemplate=f"<b>%{{x}}</b><br>{way} %{{y:.4g}} {unit}"
            + (" ± %{error_y.array:.2g} (standard error)" if error is not None else "")
            + "<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title="sub-update removed", type="category")
    figure.update_yaxes(title=f"{NAMES[quantity]} [{unit}]", type="log" if log else "linear")
    style.say_hidden(figure, hidden)
    return style.finish(figure, title, result, barmode="group", height=460)


def direct_vs_total(result: xr.Dataset, *, quantity: str = "kl") -> go.Figure:
    """Scatter on log axes: direct effect across, total effect up.

    On the diagonal a sub-update acts through the readout alone. Above it, later layers build on
    what it wrote; below it, they make up for its loss. Bars are one standard error.

    Args:
        result: What `ablation.subupdate_importance` returns.
        quantity: "kl", "delta_loss" or "top1".

    Returns:
        One point per component, coloured by kind, and the diagonal.

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
    seen = np.concatenate([x_shown[~off], y_shown[~off]])
    if seen.size:
        ends = [seen.min() / 2, seen.max() * 2]
        figure.add_scatter(
            x=ends, y=ends, mode="lines", name="direct = total", hoverinfo="skip",
            line={"color": style.GREY, "dash": "dot", "width": 1},
        )  # fmt: skip
    named = len(labels) <= 40  # more names than this would cover each other
    for kind in dict.fromkeys(kinds):
        chosen = (kinds == kind) & ~off
        extra = np.stack([labels, y - x], axis=-1)[chosen] if chosen.any() else None
        figure.add_scatter(
            x=x_shown[chosen], y=y_shown[chosen], name=style.KIND_NAMES.get(kind, kind),
            mode="markers+text" if named else "markers",
            text=labels[chosen] if named else None, textposition="top right", textfont_size=10,
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
    figure.update_xaxes(title=f"direct {NAMES[quantity]} [{unit}]", type="log", dtick=1)
    figure.update_yaxes(title=f"total {NAMES[quantity]} [{unit}]", type="log", dtick=1)
    style.say_hidden(figure, labels[off].tolist())
    return style.finish(figure, "Directly, or through later layers?", result, height=560)


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
