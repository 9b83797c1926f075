"""How large a list can be: the share of sets that can be had, and how far they can lead."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from mlp_interp.plots import _style as style

MAKER = "reach.reachable_share"
_BANDS = ((0, -1, 0.15), (1, -2, 0.25))  # outer and inner quantiles, and how opaque


def reachable(result: xr.Dataset) -> go.Figure:
    """Which share of random sets of `k` tokens can be the top of the ranking, and by how much.

    Above the share with its error, a bar up to it where sets are undecided, and the share by the
    law for Gaussian rows. Below the margins of random sets and, with a corpus, the gaps by which
    the model's own lists lead, as medians in bands of quantiles; margins of zero, of sets that
    cannot be had, are not on its logarithmic axis.

    Args:
        result: What `reach.reachable_share` returns.

    Returns:
        Two panels over the size of the set.

    Raises:
        ValueError: It is no such Dataset.

    Example:
        >>> from mlp_interp import load_model, reach
        >>> found = reach.reachable_share(load_model("nano"), [1, 5], n=2)
        >>> [line.name for line in reachable(found).data if line.name]
        ['random sets', 'by the law', 'random sets could lead by']
    """
    names = ("share", "share_se", "undecided", "law", "margin_quantile", "own_gap_quantile")
    style.need(result, *names, maker=MAKER)
    style.need_dims(result["margin_quantile"], "k", "quantile", maker=MAKER)
    figure = make_subplots(2, 1, shared_xaxes=True, vertical_spacing=0.09)
    _add_shares(figure, result)
    _add_band(figure, result, "margin_quantile", "random sets could lead by", style.BLUE)
    if result["own_gap_quantile"].notnull().any():
        _add_band(figure, result, "own_gap_quantile", "the model's own lists lead by", style.GREEN)
    figure.update_xaxes(title="tokens of the set", row=2)
    figure.update_yaxes(title="share that can be had", range=[-0.05, 1.08], row=1)
    figure.update_yaxes(title="lead [logits]", type="log", exponentformat="power", row=2)
    points = result["quantile"].values
    note = (
        f"{result.sizes['set']} sets of each size; bars: standard deviation over draws; bands: "
        f"{points[0]:.0%} to {points[-1]:.0%} and {points[1]:.0%} to {points[-2]:.0%}"
    )
    title = "How large a list the readout can put on top"
    style.finish(figure, title, result, note=note, height=560)
    return figure.update_layout(
        legend={"x": 0, "xanchor": "left", "y": -0.13, "yanchor": "top"}, margin_b=100
    )


def _add_shares(figure: go.Figure, result: xr.Dataset) -> None:
    k, share, undecided = (result[name].values for name in ("k", "share", "undecided"))
    error = result["share_se"].values
    ends = {"arrayminus": np.minimum(error, share), "symmetric": False}  # a share is from 0 to 1
    if undecided.any():
        figure.add_bar(
            x=k, y=np.where(undecided > 0, undecided, np.nan), base=share, name="undecided",
            marker_color=style.GREY, opacity=0.5, width=0.6,
            hovertemplate="%{y:.0%} of sets of %{x} undecided<extra></extra>", row=1, col=1,
        )  # fmt: skip
    figure.add_scatter(
        x=k, y=share, name="random sets", mode="markers", marker={"color": style.BLUE, "size": 8},
        error_y={**(style.bars(np.minimum(error, 1 - share)) or {}), **ends}, customdata=error,
        hovertemplate="%{y:.0%} ± %{customdata:.0%} of sets of %{x}<extra></extra>", row=1, col=1,
    )  # fmt: skip
    figure.add_scatter(
        x=k, y=result["law"].values, name="by the law", mode="lines",
        line={"color": style.ORANGE, "dash": "dash"},
        hovertemplate="%{y:.0%} of sets of %{x} by the law<extra></extra>", row=1, col=1,
    )  # fmt: skip


def _add_band(figure: go.Figure, result: xr.Dataset, name: str, label: str, colour: str) -> None:
    """A median in bands of quantiles; a band ends where the axis cannot show its lower end."""
    k, values = result["k"].values, result[name].transpose("k", "quantile").values
    for low, high, opacity in _BANDS:
        seen = values[:, low] > 0
        edge = [*values[seen, high], *values[seen, low][::-1]]
        figure.add_scatter(
            x=[*k[seen], *k[seen][::-1]], y=edge, fill="toself", fillcolor=colour, opacity=opacity,
            mode="lines", line_width=0, hoverinfo="skip", showlegend=False, row=2, col=1,
        )  # fmt: skip
    median = style.drawable(values[:, values.shape[1] // 2], log=True)
    figure.add_scatter(
        x=k, y=median, name=label, mode="lines+markers", line_color=colour,
        hovertemplate="%{y:.3g} logits, sets of %{x}<extra></extra>", row=2, col=1,
    )  # fmt: skip
