"""Kinds of text that other latents take over, beside exchanged decoder rows."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from mlp_interp.plots import _style as style

MAKER = "latents.absorption"

_LOOK = {"full": (style.ORANGE, 0.17), "partial": (style.BLUE, -0.17)}


def absorption(result: xr.Dataset) -> go.Figure:
    """Which share of each kind's texts another latent has taken over, fully or in part.

    A row for each kind. Of both little is better. Open markers are the same with decoder rows
    exchanged between latents: what latents that know nothing of the kind come to. The cross is the
    share that the kind's main latents miss: no more can be taken over fully. A kind whose direction
    finds few of its own texts, or many of others, says little: hovering shows both.

    Args:
        result: What `latents.absorption` returns.

    Returns:
        The figure. Error bars are one standard error over texts.

    Raises:
        ValueError: If `result` is no such Dataset.
    """
    style.need(result, "full", "partial", "full_null", "partial_null", "missed", maker=MAKER)
    style.need_dims(result["full"], "kind", maker=MAKER)
    labels = [style.plain(str(name)) for name in result["kind"].values]
    places = np.arange(len(labels))[::-1]
    told = [
        f"{label}<br>F1 of main latents {f1:.2f}<br>found {found:.0%}, false alarms {wrong:.0%}"
        for label, f1, found, wrong in zip(
            labels, *(result[name].values for name in ("f1", "found", "false_alarms")), strict=True
        )
    ]
    figure = go.Figure()
    for name, (colour, shift) in _LOOK.items():
        error = np.nan_to_num(result[f"{name}_se"].values)
        for suffix, symbol, bars in (("", "circle", error), ("_null", "circle-open", None)):
            figure.add_scatter(
                x=result[name + suffix].values, y=places + shift, mode="markers",
                name=name + (", rows exchanged" if suffix else ""), text=told,
                error_x=None if bars is None else {"array": bars, "thickness": 1, "width": 3},
                marker={
                    "color": colour, "symbol": symbol, "size": 10,
                    "line": {"width": 2, "color": colour},
                },
                hovertemplate="%{text}<br>" + name + " %{x:.1%}<extra></extra>",
            )  # fmt: skip
    figure.add_scatter(
        x=result["missed"].values, y=places, mode="markers", name="missed", text=told,
        marker={"color": style.INK, "symbol": "x-thin", "size": 9, "line_width": 2},
        hovertemplate="%{text}<br>missed %{x:.1%}<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(
        range=[-0.03, 1.03], tickformat=".0%", title="share of the texts that the direction finds"
    )
    figure.update_yaxes(
        tickvals=places, ticktext=labels, range=[-0.6, len(labels) - 0.4], title="kind"
    )
    note = "bars: one standard error over texts"
    return style.finish(
        figure,
        "Texts that other latents take over",
        result,
        note=note,
        height=250 + 44 * len(labels),
    )
