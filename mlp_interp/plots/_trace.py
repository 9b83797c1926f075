"""Causal tracing: the three panels of ROME."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from mlp_interp.plots import _style as style
from mlp_interp.plots._tokens import visible

MAKER = "patching.causal_trace"
NAMES = {
    "resid_pre": "state before the layer",
    "resid_post": "state",
    "mlp_out": "MLP",
    "attn_out": "attention",
}
WINDOWED = ("mlp_out", "attn_out")


def causal_trace(trace: xr.Dataset) -> go.Figure:
    """How much of the answer's probability each restored state brings back.

    One panel a site, tokens down (the subject's, to which noise was added, marked with a star),
    layers across. The panels share one colour scale, white at 0: blue states bring the answer back,
    red ones make it less likely still.

    Args:
        trace: What `patching.causal_trace` returns.

    Returns:
        Heat maps of the average indirect effect; the hover text has its standard error over draws
        of the noise, and the probability with the state restored. The title has the probability of
        the clean and of the corrupted run.

    Raises:
        ValueError: The result is not that of a causal trace.

    References:
        Meng et al., "Locating and Editing Factual Associations in GPT", 2022, figure 1.

    Example:
        >>> from mlp_interp import causal_trace as trace, load_model
        >>> traced = trace(load_model("nano"), "The capital of France is", "France", samples=2)
        >>> causal_trace(traced).layout.yaxis.ticktext[4]
        '·France*'
    """
    needed = ("average_indirect", "average_indirect_se", "restored", "clean", "corrupted")
    style.need(trace, *needed, "token", "subject", maker=MAKER)
    style.need_dims(trace["average_indirect"], "layer", "pos", maker=MAKER)
    cells = trace[list(needed[:3])]
    if "site" not in cells.dims:
        cells = (
            cells.expand_dims("site") if "site" in cells.coords else cells.expand_dims(site=[""])
        )
    cells = cells.transpose("site", "pos", "layer")
    effect = cells["average_indirect"].values.astype(float)
    labels = [
        visible(str(token)) + ("*" if subject else "")
        for token, subject in zip(trace["token"].values, trace["subject"].values, strict=True)
    ]
    places = [int(place) for place in trace["pos"].values]
    layers = [int(layer) for layer in trace["layer"].values]
    hover = [f"{place}: {label}" for place, label in zip(places, labels, strict=True)]
    names = np.broadcast_to(np.array(hover, dtype=object)[:, None], effect.shape[1:])
    sites = [str(site) for site in cells["site"].values]
    window = int(trace.attrs.get("window", 1))
    figure = make_subplots(
        1, len(sites), shared_yaxes=True, horizontal_spacing=0.03,
        subplot_titles=[_title(site, window) for site in sites],
    )  # fmt: skip
    errors = "average_indirect_se"
    known = bool(cells[errors].notnull().any())
    for number, site in enumerate(sites):
        custom = [names, cells[errors].values[number], cells["restored"].values[number]]
        heat = go.Heatmap(
            z=effect[number], x=layers, y=places, customdata=np.stack(custom, axis=-1),
            coloraxis="coloraxis", xgap=1, ygap=1, hoverongaps=False,
            hovertemplate="<b>layer %{x}, %{customdata[0]}</b><br>indirect effect %{z:+.4f}"
            + (" ± %{customdata[1]:.4f} (standard error)" if known else "")
            + "<br>probability %{customdata[2]:.4f} with it restored"
            + f"<extra>{NAMES.get(site, site)}</extra>",
        )  # fmt: skip
        figure.add_trace(heat, 1, number + 1)
    step = max(1, -(-len(layers) // 12))
    figure.update_xaxes(
        title="layer", showgrid=False, zeroline=False, tickmode="array", tickvals=layers[::step]
    )
    figure.update_yaxes(
        tickmode="array", tickvals=places, ticktext=labels, autorange="reversed", showgrid=False,
        zeroline=False, automargin=True,
    )  # fmt: skip
    finite = np.abs(effect[np.isfinite(effect)])
    size = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
    drawn = min(max(24 * len(places), 180), 900)
    scale = style.diverging(
        "average indirect effect<br>[probability]", size, length=min(drawn, 360)
    )
    title = f"Causal trace{_account(trace)}"
    figure = style.finish(figure, title, trace, coloraxis=scale)
    return figure.update_layout(height=80 + drawn + 60, margin_b=60)


def _title(site: str, window: int) -> str:
    windowed = f", {window} at a time" if site in WINDOWED and window > 1 else ""
    return NAMES.get(site, site) + windowed


def _account(trace: xr.Dataset) -> str:
    """The answer with its probability in the clean and in the corrupted run."""
    answer = visible(str(trace.attrs.get("answer", "")))
    corrupted = trace["corrupted"].values.astype(float).ravel()
    error = (
        f" ± {corrupted.std(ddof=1) / np.sqrt(corrupted.size):.2f}" if corrupted.size > 1 else ""
    )
    return (
        f": probability of {answer or 'the answer'} {float(trace['clean']):.2f} clean, "
        f"{corrupted.mean():.2f}{error} with noise on *"
    )
