"""Tokens as labels of an axis of positions."""

from dataclasses import dataclass
from typing import Any

import xarray as xr

from mlp_interp.plots import _style as style

MANY = 30  # more labels than this side by side stand upright, and small


@dataclass(frozen=True)
class Axis:
    """Positions with the tokens that stand there.

    Attributes:
        places: Positions.
        labels: What the axis shows: the clean token, and the corrupted one where they differ.
        hover: The same with the position, and with more examples where prompts differ.
    """

    places: list[int]
    labels: list[str]
    hover: list[str]

    def ticks(self, panels: int = 1) -> dict[str, Any]:
        """The options of a plotly axis, of which so many stand side by side."""
        count = len(self.places) * panels
        dense = count > MANY
        return {
            "tickmode": "array", "tickvals": self.places, "ticktext": self.labels,
            "tickangle": -90 if dense else -60,
            "tickfont_size": 8 if count > 2 * MANY else 9 if dense else 11,
        }  # fmt: skip


def axis(result: xr.Dataset) -> Axis:
    """The axis of a result's positions, of as many prompts as it has.

    A position at which prompts have different tokens shows the first prompt's, with "…".
    """
    places = [int(place) for place in result["pos"].values]
    if {"clean_token", "corrupted_token"} <= set(result.coords):
        clean, corrupted = (
            result[f"{name}_token"].transpose("prompt", "pos").values
            for name in ("clean", "corrupted")
        )
        pairs = [
            list(
                dict.fromkeys(
                    _pair(str(a), str(b))
                    for a, b in zip(*columns, strict=True)
                    if str(a) or str(b)  # of a prompt that ends before
                )
            )
            for columns in zip(clean.T, corrupted.T, strict=True)
        ]
    elif "token" in result.coords:
        pairs = [[visible(str(token))] for token in result["token"].values]
    else:
        pairs = [[str(place)] for place in places]
    labels = [found[0] + ("…" if len(found) > 1 else "") for found in pairs]
    hover = [
        f"{place}: {', '.join(found[:4])}{', …' if len(found) > 4 else ''}"
        for place, found in zip(places, pairs, strict=True)
    ]
    return Axis(places, labels, hover)


def of_places(result: xr.Dataset) -> xr.Dataset:
    """A result by place as one by position, whose tokens are the places' names."""
    names = [str(name).replace(" ", "\N{NO-BREAK SPACE}") for name in result["place"].values]
    by_position = result.drop_vars("place").rename(place="pos")
    return by_position.assign_coords(pos=range(len(names)), token=("pos", names))


def visible(token: str) -> str:
    """A token as it can stand on an axis: spaces and line ends drawn, markup escaped."""
    return style.plain(token.replace(" ", "·").replace("\n", "⏎"))


def _pair(clean: str, corrupted: str) -> str:
    same = clean == corrupted
    return visible(clean) if same else f"{visible(clean)} → {visible(corrupted)}"
