"""How large every sub-update is, layer by layer."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from mlp_interp.plots import _style as style


def norms(result: xr.Dataset) -> go.Figure:
    """Norm of every sub-update by layer, on a log axis, with the stream itself for comparison.

    Markers are medians over tokens and the bars reach from the lower to the upper quartile: they
    show how much tokens differ, not how well the median is known.

    Args:
        result: What `residual.norms` returns: `norm` [component, stat] and, if there,
            `resid_norm` [layer, stat] (at every layer's input, then at the end), both with the
            stats "q25", "median" and "q75".

    Returns:
        One line per kind of sub-update over the layers, and one for the residual stream.

    Raises:
        ValueError: If `result` is no such Dataset.
    """
    maker = "residual.norms"
    style.need(result, "norm", maker=maker)
    style.need_dims(result["norm"], "component", "stat", maker=maker)
    stats = [str(stat) for stat in result["stat"].values]
    if missing := {"q25", "median", "q75"} - set(stats):
        raise ValueError(f"result must have the stats q25, median and q75; it lacks {missing}")

    unit = style.unit_of(result["norm"], result, "L2 norm")
    figure, hidden = go.Figure(), []
    if "resid_norm" in result:
        stream = result["resid_norm"]
        last = stream.sizes[next(dim for dim in stream.dims if dim != "stat")] - 1
        places = [*map(str, range(last)), "end"]
        names = [f"stream at {'the end' if p == 'end' else 'input of layer ' + p}" for p in places]
        _line(figure, stream, places, names, "residual stream", style.GREY, "x-thin-open", unit)
    kinds, layers = np.array(style.kinds_of(result)), style.whole(result, "layer")
    labels = style.labels_of(result)
    for kind in dict.fromkeys(kinds):
        chosen = np.flatnonzero(kinds == kind)
        part = result["norm"].isel(component=chosen)
        places = ["embed" if layers[i] < 0 else str(layers[i]) for i in chosen]
        names = [labels[i] for i in chosen]
        colour, symbol = style.KIND_COLOURS.get(kind), style.KIND_SYMBOLS.get(kind)
        name = style.KIND_NAMES.get(kind, kind)
        hidden += _line(figure, part, places, names, name, colour, symbol, unit)

    order = ["embed", *map(str, sorted({layer for layer in layers if layer >= 0})), "end"]
    figure.update_xaxes(title="layer", type="category", categoryorder="array", categoryarray=order)
    figure.update_yaxes(title=f"{unit} (median, quartiles)", type="log", dtick=1)
    style.say_hidden(figure, hidden)
    return style.finish(figure, "How large each sub-update is", result, height=460)


def _line(figure, values, places, names, name, colour, symbol, unit) -> list[str]:
    """Add one line with quartile bars; return the names of the points a log axis cannot show."""
    low, middle, high = (values.sel(stat=s).values.astype(float) for s in ("q25", "median", "q75"))
    shown = style.drawable(middle, log=True)
    figure.add_scatter(
        x=places, y=shown, name=name, mode="lines+markers",
        line={"color": colour, "width": 1.5}, marker={"symbol": symbol, "size": 9},
        error_y={"array": high - middle, "arrayminus": middle - low, "width": 3, "thickness": 1},
        customdata=np.stack([np.array(names, dtype=object), low, high], axis=-1),
        hovertemplate="<b>%{customdata[0]}</b><br>median %{y:.4g} " + unit
        + "<br>quartiles %{customdata[1]:.4g} to %{customdata[2]:.4g}<extra></extra>",
    )  # fmt: skip
    return [label for label, value in zip(names, shown, strict=True) if np.isnan(value)]
