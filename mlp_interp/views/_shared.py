"""The scripts that draw views and figures, once in a notebook instead of once in each of them."""

from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import plotly.io as pio
from plotly.io.base_renderers import MimetypeRenderer

from mlp_interp.views import _page
from mlp_interp.views.bundle import UNPACK, circuitsvis, plotly, script_safe

__all__ = ["Shared", "share"]

_RENDERER = "mlp_interp"
# Figures stand in the notebook's own page, which has to keep its names: one is enough.
_START = f"""
window.mlpInterpPlotly ??= (() => {{ {UNPACK}
  let held;
  return () => (held ??= runText(document.getElementById("mlp-interp-plotly").textContent));
}})();
"""


@dataclass(frozen=True)
class Shared:
    """The scripts as hidden elements of the notebook, and one sentence that says so."""

    def _repr_html_(self) -> str:
        return (
            f'<div hidden id="mlp-interp-circuitsvis">{circuitsvis()}</div>'
            f'<div hidden id="mlp-interp-plotly">{plotly()}</div><script>{_START}</script>'
            "<small>Views and figures below take the scripts that draw them from here.</small>"
        )

    def __repr__(self) -> str:
        return "the scripts of views and figures; shows itself in a notebook"


class _Figures(MimetypeRenderer):
    """Figures of plotly as HTML without its script, for pages that are exported."""

    def to_mimebundle(self, fig_dict: dict[str, Any]) -> dict[str, str]:
        name, height = f"figure-{uuid4().hex}", fig_dict["layout"].get("height", 450)
        held = {key: fig_dict.get(key, {}) for key in ("data", "layout")}
        figure = script_safe(str(pio.json.to_json_plotly(held)))
        options = '{"responsive": true, "displaylogo": false}'
        script = f"""(window.mlpInterpPlotly?.() ?? Promise.reject()).then(() => {{
            const figure = {figure};
            Plotly.newPlot("{name}", figure.data, figure.layout, {options});
        }}, () => {{
            document.getElementById("{name}").textContent =
                "To draw this, run the cell with mi.views.share() again, above.";
        }});"""
        place = f'<div id="{name}" style="height: {height}px"></div>'
        return {"text/html": f"{place}<script>{script}</script>"}


def share() -> Shared:
    """Put the scripts that draw views and figures into a notebook once.

    Make it the last line of a cell above them. From then on views and pages, which bring half a MB
    or more each, and all figures of plotly show themselves without their scripts and take them
    from there. So that cell has to keep its output; what does not find it says so. A notebook that
    ``jupyter nbconvert --to html`` exports then shows all of them, offline. What `save`, `html`
    and ``write_html`` give is complete as ever.

    Sets plotly's default renderer, ``plotly.io.renderers.default``.

    Example:
        >>> from mlp_interp.views import tokens
        >>> share()
        the scripts of views and figures; shows itself in a notebook
        >>> len(tokens(["The", " cat"], [0.5, -1.0])._repr_html_()) < 10_000
        True
    """
    _page.sharing = True
    pio.renderers[_RENDERER] = _Figures()
    pio.renderers.default = f"plotly_mimetype+{_RENDERER}"
    return Shared()
