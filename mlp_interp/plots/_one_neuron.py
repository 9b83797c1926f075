"""How active one neuron is."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from mlp_interp.plots import _style as style
from mlp_interp.sites import Site

MAKER = "neurons.activity or Histogram"
BARS = 60


def activation_histogram(histogram: xr.Dataset, neuron: str) -> go.Figure:
    """How the activation of one neuron is distributed, on a log axis.

    Bins differ in width, so heights are densities: positions per unit of activation. Bins narrower
    than the eye can see are joined. Where the threshold of firing lies inside a bin, nothing tells
    which part of it fires: it has a colour of its own.

    Args:
        histogram: What `neurons.activity` returns, or `Histogram`.
        neuron: Its label, as ``"L3N669"``.

    Returns:
        Bars, orange where the neuron fires, amber where it may.

    Raises:
        ValueError: If `histogram` is no such Dataset, or has no such neuron or nothing of it.
    """
    style.need(histogram, "count", "low", "high", maker=MAKER)
    style.need_dims(histogram["count"], "layer", "neuron", "bin", maker=MAKER)
    here = _of(histogram, neuron)
    counts = here["count"].values.astype(float)
    if not counts.sum():
        raise ValueError(f"histogram holds no activation of neuron={neuron!r}")
    low, high, counts, outside = _joined(here["low"].values, here["high"].values, counts)
    above = float(histogram.attrs.get("above", 0.0))
    density = style.drawable(counts / (high - low), log=True)
    figure = go.Figure()
    fires, split = low >= above, (low < above) & (high > above) & (counts > 0)
    for name, chosen, colour in (
        (f"above {above:g}: fires", fires, style.MLP),
        (f"partly above {above:g}", split, style.AMBER),
        ("below", ~fires & ~split, style.GREY),
    ):
        if name.startswith("partly") and not chosen.any():
            continue
        figure.add_bar(
            x=((low + high) / 2)[chosen], y=density[chosen], width=(high - low)[chosen], name=name,
            marker={"color": colour, "line": {"width": 0}},
            customdata=np.stack([low, high, counts], axis=-1)[chosen],
            hovertemplate="%{customdata[0]:.3g} to %{customdata[1]:.3g}<br>"
            "%{customdata[2]:,.0f} positions<extra></extra>",
        )  # fmt: skip
    parts = [f"{outside:,.0f} positions beyond the outermost bins are not drawn"] * (outside > 0)
    if "fraction" in here:
        parts.append(f"fires at {float(here['fraction']):.2%} of positions")
    figure.update_xaxes(title="activation before the nonlinearity")
    figure.update_yaxes(title="positions per unit of activation", type="log", dtick=1)
    figure.update_layout(bargap=0)
    title = f"How active {neuron} is"
    return style.finish(figure, title, histogram, note="; ".join(parts), height=400)


def _of(histogram: xr.Dataset, neuron: str) -> xr.Dataset:
    """What a result says of one neuron."""
    site = Site.parse(neuron)
    if "neuron" not in histogram.coords:
        histogram = histogram.assign_coords(neuron=np.arange(histogram.sizes["neuron"]))
    known = site.neuron in histogram["neuron"].values and site.layer in histogram["layer"].values
    if site.neuron is None or not known:
        raise ValueError(f"neuron={neuron!r} is not in the histogram; wanted one of its neurons")
    return histogram.sel(layer=site.layer, neuron=site.neuron)


def _joined(
    low: np.ndarray, high: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Bins about as wide as a bar can be seen, joined outwards from zero; what lies beyond all."""
    outside = counts[0] + counts[-1]
    low, high, counts = low[1:-1], high[1:-1], counts[1:-1]
    held = np.flatnonzero(counts)
    if not len(held):
        raise ValueError("histogram has nothing but activations beyond its bins; widen `octaves`")
    least = (high[held[-1]] - low[held[0]]) / BARS
    middle = int(np.flatnonzero((low < 0) & (high > 0))[0])
    bins = [(low[middle], high[middle], counts[middle])]
    for step, end in ((1, held[-1]), (-1, held[0])):
        a = b = bins[0][1] if step > 0 else bins[0][0]
        inside = 0.0
        for at in range(middle + step, end + step, step):
            a, b, inside = min(a, low[at]), max(b, high[at]), inside + counts[at]
            if b - a >= least or at == end:
                bins.append((a, b, inside))
                a = b = b if step > 0 else a
                inside = 0.0
    joined = np.array(sorted(bins))
    return joined[:, 0], joined[:, 1], joined[:, 2], float(outside)
