"""Several models, checkpoints, seeds or texts in one figure."""

from collections.abc import Hashable

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.colors import sample_colorscale

from mlp_interp.models import indices
from mlp_interp.plots import _style as style

FEW = (style.BLUE, style.ORANGE, style.GREEN, style.PURPLE, style.SKY, style.AMBER)
SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "star")


def compare(result: xr.Dataset, *, top: int = 30, difference: bool = False) -> go.Figure:
    """The same entries of several models, one mark for each model, with errors.

    The entries are those with the largest value in any model, or with the largest difference, in
    the order of that. Bars are one standard error; that of a difference is smaller than it looks
    from two bars where models were asked about the same texts.

    Args:
        result: What `compare` returns.
        top: How many entries to draw; the axis says how many there are.
        difference: Draw differences to the first model in place of values.

    Returns:
        A row for each entry, its label on the left. Up to six models have a colour and a shape
        each; more (training checkpoints) go from dark to light in the order given.

    Raises:
        ValueError: `result` is no comparison, or `top` is less than 1.

    Example:
        >>> from mlp_interp import ablate_total, load_model, prompts, tables
        >>> model, subs = load_model("nano"), ["1.mlp", "2.mlp"]
        >>> texts = {"ioi": prompts.ioi(model, n=4, seed=0), "facts": prompts.facts(model, n=4)}
        >>> lost = {k: ablate_total(model, x.clean_tokens, subs) for k, x in texts.items()}
        >>> [marks.name for marks in compare(tables.compare(lost)).data]
        ['ioi', 'facts']
    """
    style.need(result, "difference", "difference_se", maker=style.COMPARED)
    style.need_dims(result, "model", maker=style.COMPARED)
    indices.count("top", top)
    main = next(str(name) for name in result.data_vars if not str(name).startswith("difference"))
    shown = "difference" if difference else main
    values, errors = (_flat(result[name]) for name in (shown, f"{shown}_se"))
    labels = _labels(result[shown].isel(model=0, drop=True))
    size = np.nan_to_num(np.abs(values), nan=-1.0).max(0)
    order = np.argsort(-size, kind="stable")[:top]
    names = [style.plain(str(name)) for name in result["model"].values]
    figure = go.Figure(
        [
            _marks(names, n, values[n, order], errors[n, order], labels[order])
            for n in range(int(difference), len(names))
        ]
    )
    unit = style.unit_of(result[shown])
    what = style.plain(f"difference of {main} to {names[0]}" if difference else main)
    rest = f"; the {len(order)} largest of {labels.size:,}" if labels.size > len(order) else ""
    figure.update_xaxes(title=f"{what}{f' [{unit}]' if unit else ''}, ± 1 s.e.{rest}")
    figure.update_yaxes(type="category", autorange="reversed", automargin=True)
    figure.add_vline(0, line_color=style.GREY, line_width=1)
    note = "from dark to light: " + ", ".join(names) if len(names) > len(FEW) else ""
    title = f"{what}, {len(names)} models"
    return style.finish(figure, title, result, height=170 + 24 * len(order), note=note)


def _flat(held: xr.DataArray) -> np.ndarray:
    return held.transpose("model", ...).values.reshape(held.sizes["model"], -1)


def _labels(held: xr.DataArray) -> np.ndarray:
    """What each entry is: its component, and where else it stands."""
    named: tuple[Hashable, ...] = held["component"].dims if "component" in held.coords else ()
    parts = [held["component"].astype(object)] if named else []
    parts += [_words(held, dim) for dim in held.dims if dim not in named and held.sizes[dim] > 1]
    text = xr.full_like(held, "", dtype=object)
    for part in parts:
        text = text + part + " "
    flat = text.transpose(*held.dims).values.ravel()
    return np.array([style.plain(str(label).strip()) for label in flat])


def _words(held: xr.DataArray, dim: Hashable) -> xr.DataArray:
    values = held[dim].values if dim in held.coords else np.arange(held.sizes[dim])
    words = [str(x) if isinstance(x, str) else f"{dim} {x}" for x in values]
    return xr.DataArray(np.array(words, dtype=object), dims=[dim])


def _marks(
    names: list[str], n: int, values: np.ndarray, errors: np.ndarray, labels: np.ndarray
) -> go.Scatter:
    few, known = len(names) <= len(FEW), bool(np.isfinite(errors).any())
    scale = sample_colorscale(style.SEQUENTIAL, 0.9 * n / max(len(names) - 1, 1))[0]
    return go.Scatter(
        x=values, y=labels, name=names[n], mode="markers", showlegend=few,
        marker={
            "color": FEW[n] if few else scale, "size": 9, "symbol": SYMBOLS[n] if few else "circle",
        },
        error_x=style.bars(errors) if known else None,
        hovertemplate="<b>%{y}</b><br>%{x:.4g}"
        + (" ± %{error_x.array:.2g} (standard error)" if known else "")
        + f"<extra>{names[n]}</extra>",
    )  # fmt: skip
