"""What is lost when places of a model are replaced by dictionaries, and by less than these."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from mlp_interp.plots import _style as style

MAKER = "latents.replace"
_LOOK = {  # colour and marker; what has latents is drawn last, over the others
    "zero": (style.GREY, "line-ns-open"),
    "mean": (style.AMBER, "square-open"),
    "linear": (style.ORANGE, "diamond-open"),
    "dictionary": (style.BLUE, "circle"),
}
_NAMES = {"linear": "linear map"}


def replacement(result: xr.Dataset) -> go.Figure:
    """KL of each replaced place, beside the linear map, the mean and zero there.

    A row for each place, and for all at once; the axis is logarithmic. Where the linear map is as
    good as the dictionary, the place needs no latents to be described; but it was fitted on the
    very texts, so give `latents.replace` many more tokens than ``d_model``. The dictionary with its
    clean error is left out: it is the model itself.

    Args:
        result: What `latents.replace` returns.

    Returns:
        The figure. Error bars are one standard error over sequences.

    Raises:
        ValueError: If `result` is no such Dataset.
    """
    style.need(result, "kl", "kl_se", maker=MAKER)
    style.need_dims(result["kl"], "replaced", "by", maker=MAKER)
    labels = [style.plain(str(name)) for name in result["replaced"].values]
    figure = go.Figure()
    for by, (colour, symbol) in _LOOK.items():
        if by not in result["by"].values:
            continue
        one = result[["kl", "kl_se"]].sel(by=by).transpose("replaced")
        kl, error = one["kl"].values, np.nan_to_num(one["kl_se"].values)
        seen = kl > 0
        figure.add_scatter(
            x=kl[seen], y=np.array(labels, dtype=object)[seen], mode="markers",
            name=_NAMES.get(by, by), customdata=error[seen],
            # Bars that would reach to zero or below, where there is no logarithm, end above it.
            error_x={
                "type": "data", "symmetric": False, "array": error[seen],
                "arrayminus": np.minimum(error, kl * 0.9)[seen], "thickness": 1, "width": 3,
            },
            marker={"color": colour, "symbol": symbol, "size": 10, "line_width": 2},
            hovertemplate="%{y} by " + _NAMES.get(by, by)
            + "<br>KL %{x:.3g} ± %{customdata:.1g} nats<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(
        type="log", exponentformat="power", dtick=1, title="KL(clean‖replaced) [nats]"
    )
    figure.update_yaxes(
        type="category", categoryorder="array", categoryarray=labels[::-1], title="replaced",
        showgrid=True,
    )  # fmt: skip
    note = "linear map fitted in-sample; bars: one standard error over sequences"
    title = "What is lost with dictionaries in their places"
    height = 230 + 34 * len(labels)
    figure = style.finish(figure, title, result, note=note, height=height)
    return figure.update_layout(legend_traceorder="reversed")
