"""What all figures share: colours, number formats, checks of the result, and honest log axes."""

import textwrap
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

# Okabe & Ito's palette: told apart with every common kind of colour blindness.
BLUE, ORANGE, GREEN, GREY, PURPLE = "#0072B2", "#D55E00", "#009E73", "#7f7f7f", "#CC79A7"
SKY, AMBER = "#56B4E9", "#E69F00"
INK = "#64748B"  # of marks that must be seen on bars, on light pages and on dark ones

# Each contrast has a pair of hues that nothing else has: the way an effect takes, the kind of a
# sub-update, and the sign (the ends of RdBu). All can be seen on white and on black.
WAY_COLOURS = {"direct": "#1FA187", "total": "#C2327F"}
WAY_SYMBOLS = {"direct": "circle-open", "total": "diamond"}
ATTENTION, MLP = "#7B5CD6", "#DB7B00"
BROWN = "#8C6D46"
KIND_COLOURS = {
    "embed": BROWN,
    "pos_embed": BROWN,
    "attn": ATTENTION,
    "head": ATTENTION,
    "mlp": MLP,
    "neuron": MLP,
    "bias": GREY,
    "edit": GREEN,
    "latent": SKY,
    "error": ORANGE,
    "skip": AMBER,
}
KIND_SYMBOLS = {
    "embed": "diamond",
    "pos_embed": "diamond-open",
    "attn": "circle",
    "head": "circle-open",
    "mlp": "square",
    "neuron": "square-open",
    "bias": "x",
    "edit": "star",
    "latent": "hexagon-open",
    "error": "cross",
    "skip": "triangle-up-open",
}
KIND_NAMES = {
    "embed": "embedding",
    "pos_embed": "position embedding",
    "attn": "attention",
    "head": "attention head",
    "mlp": "MLP",
    "neuron": "neuron",
    "bias": "bias",
    "edit": "edit",
    "latent": "latent",
    "error": "what no latent explains",
    "skip": "what passes by latents",
}
DIVERGING = "RdBu"  # red is negative, blue is positive, as in CircuitsVis
SEQUENTIAL = "Viridis"
_BAR = 40  # pixels above a title: there browsers draw plotly's tool bar
WIDEST = 120  # characters of small text on one line of a title
NEGATIVE, POSITIVE = "#B2182B", "#2166AC"  # the ends of RdBu


COMPARED = "compare"  # who makes results of several models


def need_one(result: Any, maker: str) -> None:
    """Raise a ValueError if `result` sets several models side by side, and `maker` does not."""
    if maker != COMPARED and "model" in getattr(result, "dims", ()):
        raise ValueError(
            f"result compares {result.sizes['model']} models; plots.compare draws it. This figure "
            f"draws what {maker} returns"
        )


def need(result: xr.Dataset | xr.DataArray, *names: str, maker: str) -> None:
    """Raise a ValueError unless `result` is a Dataset that holds the variables `names`."""
    need_one(result, maker)
    if not isinstance(result, xr.Dataset):
        raise ValueError(f"result must be the Dataset of {maker}, got a {type(result).__name__}")
    missing = [name for name in names if name not in result.variables]
    if missing:
        held = ", ".join(map(str, result.variables)) or "nothing"
        raise ValueError(
            f"result lacks {', '.join(map(repr, missing))}; it holds {held}. "
            f"This figure draws the Dataset of {maker}"
        )


def need_dims(result: xr.DataArray | xr.Dataset, *dims: str, maker: str) -> None:
    """Raise a ValueError unless `result` has the dimensions `dims`."""
    need_one(result, maker)
    missing = [dim for dim in dims if dim not in result.dims]
    if missing:
        raise ValueError(
            f"result has no dimension {', '.join(map(repr, missing))}; it has "
            f"{tuple(map(str, result.dims))}. This figure draws the result of {maker}"
        )


def unit_of(values: xr.DataArray, parent: xr.Dataset | None = None, default: str = "") -> str:
    """The unit a result carries, or `default`."""
    fallback = parent.attrs.get("unit", default) if parent is not None else default
    return str(values.attrs.get("unit", fallback))


def labels_of(result: xr.DataArray | xr.Dataset) -> list[str]:
    """The labels along `component`."""
    return [str(label) for label in result["component"].values]


def kinds_of(result: xr.DataArray | xr.Dataset) -> list[str]:
    """The kind of every component, "group" where the result has none."""
    if "kind" not in result.coords:
        return ["group"] * result.sizes["component"]
    return [str(kind) for kind in result["kind"].values]


def whole(result: xr.DataArray | xr.Dataset, name: str) -> list[int]:
    """An integer coordinate along `component`, -1 where the result has none."""
    if name not in result.coords:
        return [-1] * result.sizes["component"]
    return [int(number) for number in result[name].values]


def subtitle(result: xr.DataArray | xr.Dataset) -> str:
    """The model, processing and data that a result came from, on one line."""
    model = str(result.attrs.get("model", ""))
    revision = str(result.attrs.get("revision", ""))
    parts = [f"{model}@{revision}" if revision and revision != "none" else model]
    parts += [str(result.attrs.get(key, "")) for key in ("processing", "data")]
    return plain(", ".join(part for part in parts if part))


def plain(text: str) -> str:
    """Text with the characters escaped that plotly would read as markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def drawable(values: np.ndarray, *, log: bool) -> np.ndarray:
    """`values` with NaN wherever the axis cannot show them (zero or less on a log axis)."""
    values = np.asarray(values, dtype=float)
    return np.where(values > 0, values, np.nan) if log else values


def bars(error: Any) -> dict[str, Any] | None:
    """Error bars that can be seen on bars of any colour, on light pages and on dark ones."""
    look = {"width": 3, "thickness": 1.2, "color": "#8a8f98"}
    return None if error is None else {"array": error, **look}


def say_hidden(figure: go.Figure, labels: list[str]) -> None:
    """Name, below the figure, what a log axis cannot show."""
    if not labels:
        return
    names = list(dict.fromkeys(labels))
    shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    figure.add_annotation(
        text=plain(f"Not on the log axis (zero or below): {shown}"),
        xref="paper", yref="paper", x=0, y=0, yshift=-62, xanchor="left", yanchor="top",
        showarrow=False, font_size=11,
    )  # fmt: skip


def diverging(title: str, size: float, *, centre: float = 0.0, length: int = 200) -> dict[str, Any]:
    """A colour axis that several panels share: white at `centre`, as far to either side."""
    return {
        "colorscale": DIVERGING, "cmin": centre - size, "cmax": centre + size,
        "colorbar": {
            "title": {"text": title, "side": "right"}, "thickness": 14,
            "lenmode": "pixels", "len": length, "y": 1, "yanchor": "top",
        },
    }  # fmt: skip


def two_legends() -> dict[str, Any]:
    """Layout of two legends below a figure, one over the other: side by side they may not fit."""
    below = {
        "orientation": "h", "yref": "container", "x": 0, "xanchor": "left", "yanchor": "bottom",
    }  # fmt: skip
    return {"legend": {**below, "y": 0.06}, "legend2": {**below, "y": 0}}


def finish(
    figure: go.Figure,
    title: str,
    result: xr.DataArray | xr.Dataset,
    *,
    note: str = "",
    **layout: Any,
):
    """Give a figure its title, its provenance (and a note) and the look that all figures share."""
    below = "; ".join(part for part in (subtitle(result), plain(note)) if part)
    # Text in a title is cut off where the figure ends: long lines are broken.
    lines = textwrap.wrap(below, WIDEST, break_long_words=False, break_on_hyphens=False)
    noted = "annotations" in figure.to_plotly_json()["layout"]
    figure.update_layout(
        template="plotly_white",
        title={
            "text": "<br>".join([title, *(f"<sup>{line}</sup>" for line in lines)]),
            "font_size": 16, "x": 0, "xref": "paper", "y": 1, "yref": "container",
            "yanchor": "top", "pad": {"t": _BAR},
        },
        font_size=12,
        margin={
            "l": 70, "r": 30, "b": 96 if noted else 60,
            "t": _BAR + 58 + 18 * max(0, len(lines) - 1),
        },
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1.0, "yanchor": "bottom"},
        hoverlabel={"align": "left"},
    )  # fmt: skip
    return figure.update_layout(**layout)
