"""Estimates beside exact values: how far a gradient can be trusted, site by site."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots
from scipy.stats import pearsonr, spearmanr

from mlp_interp.plots import _style as style
from mlp_interp.sites import Site

MOST = 4000  # points drawn in a panel
Arrays = xr.DataArray | Sequence[xr.DataArray]


def estimate(exact: Arrays, estimate: Arrays, *, worst: int = 3) -> go.Figure:
    """Scatter of estimated against exact effects, one panel a site, coloured by layer.

    Points on the diagonal are right. Correlations stand in the panels' titles: Pearson's r, and
    Spearman's, of ranks. A high correlation says that the order of the cells can be trusted, not
    their size: see how steep the cloud is. Values of several prompts are averaged first.

    Args:
        exact: Effects by ``site``, ``layer`` and what else there is, or several such arrays (of
            streams, of heads), as ``exact`` of `gradients.compare`.
        estimate: The same cells, estimated.
        worst: How many of the cells that are furthest off to label in each panel.

    Returns:
        The scatter; cells tell their name when pointed at. Of more than 4,000 cells of a site those
        nearest to 0 are not drawn, but they count in the correlation.

    Raises:
        ValueError: The arrays do not hold the same cells, or no finite ones; `worst` is negative.

    Example:
        >>> import numpy as np, xarray as xr
        >>> coords = {"site": ["z"], "layer": range(2), "head": range(3)}
        >>> exact = xr.DataArray(np.arange(6.0).reshape(1, 2, 3), coords=coords, dims=list(coords))
        >>> estimate(exact, 2 * exact).layout.annotations[0].text
        'z: r = 1.00, rank 1.00'
    """
    if worst < 0:
        raise ValueError(f"worst must not be negative, got {worst}")
    panels = _panels(exact, estimate)
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    drawn = rows * 300 + (rows - 1) * 90
    figure = make_subplots(
        rows, columns, subplot_titles=[_title(*panel) for panel in panels],
        horizontal_spacing=0.22 / columns, vertical_spacing=90 / drawn if rows > 1 else 0,
    )  # fmt: skip
    first = exact if isinstance(exact, xr.DataArray) else exact[0]
    unit = style.unit_of(first)
    for number, (site, x, y) in enumerate(panels):
        row, column = number // columns + 1, number % columns + 1
        low, high = min(x.min(), y.min()), max(x.max(), y.max())
        pad = 0.06 * (high - low) or 1.0
        ends = [float(low - pad), float(high + pad)]
        line = go.Scatter(
            x=ends, y=ends, mode="lines", hoverinfo="skip", showlegend=False,
            line={"color": style.GREY, "dash": "dot", "width": 1},
        )  # fmt: skip
        figure.add_trace(line, row, column)
        figure.add_trace(_points(site, x, y, worst, unit), row, column)
        figure.update_xaxes(range=ends, row=row, col=column)
        figure.update_yaxes(range=ends, row=row, col=column)
    bracketed = f" [{unit}]" if unit else ""
    figure.update_xaxes(title=f"exact{bracketed}", zerolinecolor="#c8c8c8")
    figure.update_yaxes(zerolinecolor="#c8c8c8")
    figure.update_yaxes(title=f"estimate{bracketed}", col=1)
    layers = np.concatenate([x["layer"].values for _, x, _ in panels])
    scale = {
        "colorscale": style.SEQUENTIAL, "cmin": int(layers.min()),
        "cmax": max(int(layers.max()), int(layers.min()) + 1),
        "colorbar": {
            "title": {"text": "layer", "side": "right"}, "thickness": 14, "lenmode": "pixels",
            "len": 300, "y": 1, "yanchor": "top", "tickformat": "d",
            "nticks": min(len(np.unique(layers)), 8),
        },
    }  # fmt: skip
    title = "Estimated effects of patching against exact ones"
    figure = style.finish(figure, title, first, coloraxis=scale, showlegend=False)
    return figure.update_layout(height=80 + drawn + 60, margin_b=60)


Panel = tuple[str, xr.DataArray, xr.DataArray]


def _panels(exact: Arrays, estimate: Arrays) -> list[Panel]:
    """For each site its exact and estimated cells along one dimension, finite ones only."""
    true, guess = (
        [given] if isinstance(given, xr.DataArray) else list(given) for given in (exact, estimate)
    )
    if len(true) != len(guess) or not true:
        raise ValueError(f"exact has {len(true)} arrays and estimate {len(guess)}; wanted as many")
    panels = []
    for a, b in zip(true, guess, strict=True):
        _check(a, b)
        b = b.transpose(*a.dims)
        if "site" not in a.dims:
            name = str(a["site"].item()) if "site" in a.coords else "effects"
            a, b = (x.drop_vars("site", errors="ignore").expand_dims(site=[name]) for x in (a, b))
        for site in a["site"].values:
            x, y = (_flat(values.sel(site=site)) for values in (a, b))
            finite = np.isfinite(x.values) & np.isfinite(y.values)
            if not finite.any():
                raise ValueError(f"site {str(site)!r} holds no cell that is finite in both arrays")
            panels.append((str(site), x[finite], y[finite]))
    return panels


def _check(exact: xr.DataArray, estimate: xr.DataArray) -> None:
    for values in (exact, estimate):
        if not isinstance(values, xr.DataArray):
            raise ValueError(f"wanted DataArrays of effects, got a {type(values).__name__}")
        style.need_dims(values, "layer", maker="gradients.compare (exact, estimate)")
    same = dict(exact.sizes) == dict(estimate.sizes) and all(
        np.array_equal(exact[dim].values, estimate[dim].values) for dim in exact.dims
    )
    if not same:
        raise ValueError(
            f"exact={dict(exact.sizes)} and estimate={dict(estimate.sizes)}; wanted the same "
            "cells, labels included: gradients.compare lines them up"
        )


def _flat(values: xr.DataArray) -> xr.DataArray:
    """Cells along one dimension, with their names; prompts are averaged."""
    if "prompt" in values.dims:
        values = values.mean("prompt")
    axes = [values[dim].values for dim in values.dims]
    grid = np.meshgrid(*axes, indexing="ij")
    layer = grid[values.dims.index("layer")].ravel()
    coords = {str(dim): ("cell", axis.ravel()) for dim, axis in zip(values.dims, grid, strict=True)}
    return xr.DataArray(
        values.values.astype(float).ravel(),
        dims="cell",
        coords={**coords, "layer": ("cell", layer)},
    )


def _names(site: str, cells: xr.DataArray) -> list[str]:
    found = []
    for cell in range(cells.size):
        at = {name: int(cells[name].values[cell]) for name in cells.coords}
        layer, position = at.pop("layer"), at.pop("pos", None)
        units = {name: at[name] for name in ("head", "neuron") if name in at}
        try:
            name = Site(site, layer, **units).label
        except ValueError:
            name = " ".join([f"{site} {layer}", *(f"{n} {i}" for n, i in units.items())])
        found.append(name if position is None else f"{name} at {position}")
    return found


def _title(site: str, x: xr.DataArray, y: xr.DataArray) -> str:
    if x.size < 2 or np.ptp(x.values) == 0 or np.ptp(y.values) == 0:
        return f"{site}: nothing varies"
    r, rank = pearsonr(x.values, y.values)[0], spearmanr(x.values, y.values)[0]
    return f"{site}: r = {r:.2f}, rank {rank:.2f}"


def _points(site: str, x: xr.DataArray, y: xr.DataArray, worst: int, unit: str) -> go.Scatter:
    if x.size > MOST:
        size = np.maximum(np.abs(x.values), np.abs(y.values))
        kept = np.sort(np.argsort(-size, kind="stable")[:MOST])
        x, y = x[kept], y[kept]
    names = _names(site, x)
    order = np.argsort(-np.abs(y.values - x.values), kind="stable")[:worst]
    labelled = {int(i) for i in order if x.values[i] != y.values[i]}
    shown = [name if i in labelled else "" for i, name in enumerate(names)]
    middle = (x.values.min() + x.values.max()) / 2
    at = dict.fromkeys(sorted(labelled, key=lambda i: float(y.values[i])), "middle")
    if len(at) > 1:  # names of cells that lie close make way for each other
        at |= {next(iter(at)): "bottom", next(reversed(at)): "top"}
    return go.Scatter(
        x=x.values, y=y.values, mode="markers+text", text=shown, customdata=names,
        textposition=[
            f"{at.get(i, 'middle')} {'right' if v < middle else 'left'}"
            for i, v in enumerate(x.values)
        ],
        textfont={"size": 10}, showlegend=False,
        marker={"color": x["layer"].values, "coloraxis": "coloraxis", "size": 6, "opacity": 0.8},
        hovertemplate="<b>%{customdata}</b><br>exact %{x:.4g} " + unit + "<br>estimate %{y:.4g} "
        + unit + f"<extra>{site}</extra>",
    )  # fmt: skip
