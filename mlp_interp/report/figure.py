"""Figures as the page carries them."""

from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from markupsafe import Markup

from mlp_interp.views.bundle import script_safe

__all__ = ["WIDE", "Drawing", "drawing"]

WIDE = 760
"""Pixels of a figure with panels side by side: on a narrow page it is scrolled, not squeezed."""


@dataclass(frozen=True)
class Drawing:
    """A figure as the page carries it."""

    json: Markup
    height: int


def drawing(figure: go.Figure, title: str = "", **layout: Any) -> Drawing:
    """A figure without what the page says already: its heading, its provenance, its template."""
    figure.update_layout(template=None, title_text=title, margin_t=56 if title else 34)
    held = figure.to_plotly_json()["layout"]
    if held.get("legend", {}).get("orientation", "h") == "h":
        # Where the figure's own heading was there is room for a legend now.
        figure.update_layout(legend={"x": 0, "xanchor": "left"})
    figure.update_layout(**layout)
    height = int(figure.to_plotly_json()["layout"].get("height", 450))
    return Drawing(Markup(script_safe(str(figure.to_json()))), height)
