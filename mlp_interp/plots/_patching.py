"""Activation patching: heat maps over layers, positions and heads, and the strongest neurons."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from mlp_interp.models import indices
from mlp_interp.plots import _style as style
from mlp_interp.plots import _tokens as tokens
from mlp_interp.results import change_over_gap, is_of_gaps, mean_and_error_over
from mlp_interp.sites import Site

MAKER = "patching.patch"
WIDE = 56  # columns of cells that can stand side by side


def patching(
    result: xr.Dataset,
    *,
    variable: str = "normalized",
    prompt: int | None = None,
    top: int = 30,
    limit: float | None = None,
) -> go.Figure:
    """What each patch does to the metric, over all prompts.

    Chooses the figure by what was patched: layer x position or layer x head, one panel a site; the
    strongest heads or neurons x position; bars of the strongest neurons. All panels share one
    colour scale, which is white where a patch changes nothing: at 0 for denoising, at 1 (the clean
    run) for noising and ``"normalized"``, and at the unpatched run's metric for ``"raw"``. Blue is
    toward clean, or above; red is away from it.

    Over several prompts ``"normalized"`` is the mean change over the mean gap between clean and
    corrupted, so that a prompt with hardly any gap does not carry the figure, as it could carry a
    mean of ratios; the title says so. Other variables are means over prompts.

    Args:
        result: What `patching.patch` returns, or `gradients.as_grid`, or `by_place` of either.
        variable: "normalized", "raw", or another variable with the same dimensions (centred at 0).
        prompt: Draw this prompt alone; None draws all, with the standard error in the hover
            text. Positions at which prompts have different tokens then show the first prompt's,
            with "…".
        top: How many neurons to draw, or heads where each has its positions.
        limit: Colours end this far from the centre; None ends them at the largest effect.

    Returns:
        Heat maps, or bars for neurons that were patched at all positions.

    Raises:
        ValueError: The result lacks the variable or its dimensions, or holds no finite value of it;
            there is no such prompt; `top` is less than 1 or `limit` is not above 0.

    Example:
        >>> from mlp_interp import load_model, patch, prompts
        >>> model = load_model("nano")
        >>> result = patch(model, prompts.facts(model, n=2, seed=0), sites=["attn_out", "mlp_out"])
        >>> [panel.text for panel in patching(result).layout.annotations]
        ['attn_out', 'mlp_out']
    """
    cells = _Cells.of(result, variable, prompt)
    indices.count("top", top)
    if limit is not None and not limit > 0:
        raise ValueError(f"limit must be above 0, got {limit}")
    if cells.unit == "neuron" and not cells.by_position:
        return _bars(cells, top)
    return _panels(cells, top, limit)


@dataclass(frozen=True)
class _Cells:
    """Values over prompts: dimensions site, layer, then head or neuron and pos where they are."""

    result: xr.Dataset
    variable: str
    mean: xr.DataArray
    error: xr.DataArray
    prompts: int
    average: str
    left_out: str
    changed: xr.DataArray | None
    tokens: tokens.Axis | None

    @classmethod
    def of(cls, result: xr.Dataset, variable: str, prompt: int | None) -> "_Cells":
        style.need(result, variable, maker=MAKER)
        style.need_dims(result[variable], "layer", "prompt", maker=MAKER)
        count = result.sizes["prompt"]
        if "place" in result.dims:
            result = tokens.of_places(result)
        if prompt is not None:
            if not 0 <= prompt < count:
                raise ValueError(f"prompt must be 0 to {count - 1}, got {prompt}")
            result = result.isel(prompt=[prompt])
        if "site" not in result.dims:
            site = str(result["site"].item()) if "site" in result.coords else ""
            arrays = [n for n in dict.fromkeys((variable, "raw", "changed")) if n in result]
            result = result.drop_vars("site", errors="ignore").assign(
                {name: result[name].expand_dims(site=[site]) for name in arrays}
            )
        order = ("site", "layer", "head", "neuron", "pos")
        values = result[variable]
        dims = [dim for dim in order if dim in values.dims]
        values = values.transpose(*dims, "prompt")
        values = values.where(np.isfinite(values))
        lost = int(values.isnull().all(dims).sum())
        if lost == values.sizes["prompt"]:
            raise ValueError(
                f"{variable!r} holds no finite value"
                + (f" for prompt {prompt}" if prompt is not None else "")
                + (
                    ": clean and corrupted metrics are equal; draw variable='raw'"
                    if variable == "normalized"
                    else ""
                )
            )
        if is_of_gaps(result, variable):
            mean, error = change_over_gap(result)
            mean, error = mean.transpose(*dims), error.transpose(*dims)
            average, lost = "mean change over mean gap", 0
        else:
            mean, error = mean_and_error_over(values, "prompt")
            average = "mean"
        changed = result["changed"].any("prompt") if "changed" in result else None
        left = f"{lost} of {count} prompts left out: clean and corrupted metrics are equal"
        return cls(
            result,
            variable,
            mean,
            error,
            values.sizes["prompt"],
            average,
            left if lost else "",
            None if changed is None else changed.transpose(*dims),
            tokens.axis(result) if "pos" in dims else None,
        )

    @property
    def unit(self) -> str | None:
        """Which kind of unit was patched: head, neuron or none."""
        return next((dim for dim in ("head", "neuron") if dim in self.mean.dims), None)

    @property
    def by_position(self) -> bool:
        """Whether positions were patched one at a time."""
        return "pos" in self.mean.dims

    @property
    def sites(self) -> list[str]:
        """Site names."""
        return [str(site) for site in self.mean["site"].values]

    @property
    def centre(self) -> float:
        """Where a patch changes nothing."""
        noising = self.result.attrs.get("direction") == "noising"
        if self.variable == "normalized":
            return 1.0 if noising else 0.0
        if self.variable == "raw":
            unpatched = "clean" if noising else "corrupted"
            if unpatched in self.result.variables:
                return float(self.result[unpatched].mean())
        return 0.0

    def largest(self, values: np.ndarray) -> float:
        """The largest distance from the centre, for the ends of a colour scale."""
        off = np.abs(values[np.isfinite(values)] - self.centre)
        return float(off.max()) if off.size and off.max() > 0 else 1.0

    @property
    def quantity(self) -> str:
        """What the numbers are, for a colour bar or an axis."""
        metric = str(self.result.attrs.get("metric", "metric")).replace("_", " ")
        if self.variable == "normalized":
            return f"{metric}<br>0 corrupted, 1 clean"
        name = metric if self.variable == "raw" else f"{metric}, {self.variable}"
        shown = style.unit_of(self.result[self.variable], self.result)
        return f"{name} [{shown}]" if shown else name

    @property
    def short(self) -> str:
        """What follows a number in the hover text."""
        if self.variable == "normalized":
            return " of the way from corrupted to clean"
        return " " + style.unit_of(self.result[self.variable], self.result)

    def title(self, where: str) -> str:
        """The figure's title."""
        direction = str(self.result.attrs.get("direction", "")).capitalize()
        what = {
            "Denoising": "clean activations in the corrupted run",
            "Noising": "corrupted activations in the clean run",
        }.get(direction, "activation patching")
        mean = f", {self.average} of {self.prompts} prompts" if self.prompts > 1 else ""
        return f"{direction}{': ' if direction else ''}{what}, {where}{mean}"

    def error_text(self) -> str:
        """Hover text of the standard error, which stands in customdata[1]."""
        return " ± %{customdata[1]:.2g} (standard error)" if self.prompts > 1 else ""


@dataclass(frozen=True)
class _Panel:
    title: str
    x: list[Any]
    y: list[str]
    z: np.ndarray
    custom: np.ndarray  # label, standard error, note


def _panels(cells: _Cells, top: int, limit: float | None) -> go.Figure:
    panels, across, down = _laid_out(cells, top)
    wide, tall = len(panels[0].x), len(panels[0].y)
    columns = max(1, min(len(panels), WIDE // wide))
    rows = -(-len(panels) // columns)
    each, below = min(max(26 * tall, 180), 700), 60 if cells.tokens is None else 110
    drawn = rows * each + (rows - 1) * (below + 30)
    figure = make_subplots(
        rows, columns, shared_yaxes=True, subplot_titles=[panel.title for panel in panels],
        horizontal_spacing=0.02, vertical_spacing=(below + 30) / drawn if rows > 1 else 0,
    )  # fmt: skip
    written = wide * columns <= 24
    for number, panel in enumerate(panels):
        heat = go.Heatmap(
            z=panel.z, x=panel.x, y=panel.y, customdata=panel.custom, coloraxis="coloraxis",
            xgap=1, ygap=1, hoverongaps=False, texttemplate="%{z:.2f}" if written else None,
            hovertemplate="<b>%{customdata[0]}</b><br>%{z:.4g}" + cells.short + cells.error_text()
            + "%{customdata[2]}<extra>" + panel.title + "</extra>",
        )  # fmt: skip
        figure.add_trace(heat, number // columns + 1, number % columns + 1)
    if cells.tokens is not None:
        figure.update_xaxes(**cells.tokens.ticks(columns), title=None)
    else:
        figure.update_xaxes(type="category", tickangle=0, title=across)
    figure.update_xaxes(showgrid=False, automargin=True)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    figure.update_yaxes(title=down, automargin=True, col=1)
    size = limit or max(cells.largest(panel.z) for panel in panels)
    where = {
        "layer": "by layer and position" if cells.by_position else f"by layer and {across}",
    }.get(down, f"the {tall} strongest {cells.unit}s by position")
    scale = style.diverging(cells.quantity, size, centre=cells.centre, length=min(drawn, 360))
    figure = style.finish(
        figure, cells.title(where), cells.result, note=cells.left_out, coloraxis=scale
    )
    return figure.update_layout(height=80 + drawn + below, margin_b=below)


def _laid_out(cells: _Cells, top: int) -> tuple[list[_Panel], str, str]:
    """Panels, and what stands across and down."""
    if cells.unit is not None and cells.by_position:
        return _unit_panels(cells, top), "position", ""
    layers = [str(layer) for layer in cells.mean["layer"].values]
    if cells.unit is None and not cells.by_position:
        names = _custom(cells, lambda site, layer: f"{_label(site, layer)}, all positions")
        z, custom = cells.mean.values.T, names.transpose(1, 0, 2)
        return [_Panel("all positions at once", cells.sites, layers, z, custom)], "site", "layer"
    if cells.by_position:
        axis = cells.tokens
        at = dict(zip(axis.places, axis.hover, strict=True)) if axis else {}
        custom = _custom(cells, lambda s, layer, p: f"{_label(s, layer)} at {at[int(p)]}")
        x: list[Any] = list(at)
        across = "position"
    else:
        custom = _custom(cells, lambda s, layer, h: _label(s, layer, head=int(h)))
        x, across = [str(h) for h in cells.mean["head"].values], "head"
    panels = [
        _Panel(site, x, layers, cells.mean.values[i], custom[i])
        for i, site in enumerate(cells.sites)
    ]
    return panels, across, "layer"


def _unit_panels(cells: _Cells, top: int) -> list[_Panel]:
    """Heads or neurons down, the strongest of all sites, in the model's order; positions across."""
    unit, axis = str(cells.unit), cells.tokens
    at = dict(zip(axis.places, axis.hover, strict=True)) if axis else {}
    custom = _custom(
        cells, lambda s, layer, u, p: f"{_label(s, layer, **{unit: int(u)})} at {at[int(p)]}"
    )
    off = np.nan_to_num(np.abs(cells.mean.values - cells.centre), nan=-1.0)
    size = off.max(axis=(0, 3))
    chosen = np.sort(np.argsort(-size.ravel(), kind="stable")[:top])
    layers, units = np.unravel_index(chosen, size.shape)
    letter = {"head": "H", "neuron": "N"}[unit]
    rows = [
        f"L{cells.mean['layer'].values[i]}{letter}{cells.mean[unit].values[j]}"
        for i, j in zip(layers, units, strict=True)
    ]
    return [
        _Panel(site, list(at), rows, cells.mean.values[i][layers, units], custom[i, layers, units])
        for i, site in enumerate(cells.sites)
    ]


def _custom(cells: _Cells, label: Any) -> np.ndarray:
    """Hover data of every cell: its name, the standard error, a note where nothing was changed."""
    found = np.empty((*cells.mean.shape, 3), dtype=object)
    axes = [cells.mean[dim].values for dim in cells.mean.dims]
    for where in np.ndindex(cells.mean.shape):
        found[where][0] = label(*(axis[i] for axis, i in zip(axes, where, strict=True)))
        found[where][1] = float(cells.error.values[where])
        same = cells.changed is not None and not cells.changed.values[where]
        found[where][2] = "<br>the same in both runs" if same else ""
    return found


def _label(site: Any, layer: Any, **unit: int) -> str:
    return Site(str(site), int(layer), **unit).label if site else f"layer {layer}"


def _bars(cells: _Cells, top: int) -> go.Figure:
    mean, error = cells.mean.values, cells.error.values
    off = np.nan_to_num(np.abs(mean - cells.centre), nan=-1.0)
    order = np.argsort(-off.ravel(), kind="stable")
    kept = [np.unravel_index(i, mean.shape) for i in order[:top]]
    layers, units = cells.mean["layer"].values, cells.mean["neuron"].values
    names = [_label(cells.sites[s], layers[i], neuron=int(units[j])) for s, i, j in kept]
    values, errors = [float(mean[at]) for at in kept], [float(error[at]) for at in kept]
    figure = go.Figure(
        go.Bar(
            x=[value - cells.centre for value in values], base=cells.centre, y=names,
            orientation="h", customdata=list(zip(values, errors, strict=True)),
            marker_color=[
                style.POSITIVE if value >= cells.centre else style.NEGATIVE for value in values
            ],
            error_x=style.bars(errors if cells.prompts > 1 else None),
            hovertemplate="<b>%{y}</b><br>%{customdata[0]:.4g}" + cells.short
            + cells.error_text() + "<extra></extra>",
        )
    )  # fmt: skip
    rest = off.ravel()[order[top:]]
    others = f"; the other {rest.size:,} differ by at most {rest.max():.2g}" if rest.size else ""
    figure.add_vline(cells.centre, line_color=style.GREY, line_width=1)
    figure.update_xaxes(title=cells.quantity.replace("<br>", ": ") + others, zeroline=False)
    figure.update_yaxes(type="category", autorange="reversed", automargin=True)
    title = cells.title(f"the strongest of {mean.size:,} neurons")
    return style.finish(
        figure, title, cells.result, height=190 + 20 * len(names), note=cells.left_out
    )
