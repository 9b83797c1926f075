"""Where in other text a rewrite is felt: what it adds at each token, and what that does."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from mlp_interp.plots import _style as style

MAKER = "rewrites.footprint"
MOST = 5_000  # markers: the largest, and of the others as many as a browser draws at once


def footprint(result: xr.Dataset, *, named: int = 6) -> go.Figure:
    """A marker per token: how long what the rewrite adds there is, and how the prediction moves.

    The dashed line is the root mean square of what is added. Both axes are logarithmic; tokens at
    which nothing is added, or nothing moves, are left out.

    Args:
        result: What `rewrites.footprint` returns. Of several layers, what they add is summed in
            squares.
        named: How many tokens, of those whose prediction moves most, are named beside their marker.

    Returns:
        The figure.

    Raises:
        ValueError: It is no such Dataset, or `named` is below 0.
    """
    style.need(result, "added", "kl", "rms", "mean_kl", maker=MAKER)
    if named < 0:
        raise ValueError(f"named must be at least 0, got {named}")
    added = np.sqrt((result["added"].values ** 2).sum(0)).ravel()
    kl, tokens = result["kl"].values.ravel(), result["token"].values.ravel()
    seen = np.flatnonzero((added > 0) & (kl > 0))
    order = seen[np.argsort(-kl[seen])]
    shown = order if len(order) <= MOST else order[np.linspace(0, len(order) - 1, MOST).astype(int)]
    label = ["" if n >= named else style.plain(repr(str(tokens[i]))) for n, i in enumerate(shown)]
    figure = go.Figure(
        go.Scattergl(
            x=added[shown], y=kl[shown], mode="markers+text", text=label,
            textposition="middle left", showlegend=False,
            marker={"color": style.BLUE, "size": 6, "opacity": 0.5},
            customdata=[style.plain(repr(str(token))) for token in tokens[shown]],
            hovertemplate="%{customdata}<br>added %{x:.3g}<br>KL %{y:.3g} nats<extra></extra>",
        )
    )  # fmt: skip
    rms = float(np.sqrt((result["rms"].values ** 2).sum()))
    if rms > 0:
        figure.add_vline(x=rms, line_dash="dash", line_color=style.ORANGE)
    figure.update_xaxes(
        type="log",
        exponentformat="power",
        dtick=1,
        title="length of what is added to the MLP's output",
    )
    figure.update_yaxes(
        type="log", exponentformat="power", title="KL(before‖after) of the next token [nats]"
    )
    note = (
        f"mean KL {float(result['mean_kl']):.2g} ± {float(result['mean_kl_se']):.1g} nats; dashed: "
        f"root mean square of what is added, {rms:.2g}"
    )
    rewrite = str(result.attrs.get("rewrite", "a rewrite"))
    style.finish(figure, f"Where {style.plain(rewrite)} is felt", result, note=note, height=420)
    return figure
