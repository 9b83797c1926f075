"""A table of tokens by tokens that can be searched, on a page of its own."""

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import xarray as xr

from mlp_interp.views._page import FIT, STYLE, as_numbers, framed, save_html
from mlp_interp.views.bundle import to_json
from mlp_interp.views.document import POLICY

__all__ = ["Table", "table"]

MAX_ROWS = 60_000
LOOK = """
.mlp-table table { border-collapse: collapse; }
.mlp-table th, .mlp-table td { text-align: left; vertical-align: top; padding: 3px 10px; }
.mlp-table th { font-weight: 600; border-bottom: 1px solid #999; }
.mlp-table td { border-bottom: 1px solid #ddd; }
.mlp-table td.mlp-number { text-align: right; font-variant-numeric: tabular-nums; color: #555; }
.mlp-table code { background: #eef2f7; border-radius: 3px; padding: 0 3px; white-space: pre; }
.mlp-table small { color: #777; margin: 0 8px 0 2px; }
.mlp-table input { font: inherit; padding: 3px 8px; width: 16em; margin-bottom: 8px; }
.mlp-table .mlp-entry { display: inline-block; }
"""
# Texts only ever become text nodes. Spaces and line breaks are drawn, as tokens begin with them.
SCRIPT = """
const place = document.querySelector(".mlp-table");
const data = JSON.parse(place.querySelector("script").textContent);
const body = place.querySelector("tbody"), said = place.querySelector("output");
const drawn = (text) => text.replaceAll("\\n", "↵").replaceAll("\\t", "⇥").replace(/^ | $/g, "·");
function add(parent, kind, text, look) {
  const element = document.createElement(kind);
  element.textContent = text;
  if (look) element.className = look;
  parent.append(element);
  return element;
}
function show(words) {
  const rows = data.rows.filter(([text, _, columns]) =>
    !words || text.includes(words) || columns.some((column) => column.includes(words)));
  body.replaceChildren();
  for (const [text, number, columns, values] of rows.slice(0, data.shown)) {
    const row = add(body, "tr", "");
    add(add(row, "td", ""), "code", drawn(text));
    add(row, "td", number, "mlp-number");
    const cell = add(row, "td", "");
    columns.forEach((column, i) => {
      const entry = add(cell, "span", "", "mlp-entry");
      add(entry, "code", drawn(column));
      add(entry, "small", values[i]);
    });
  }
  said.textContent = rows.length + " rows" +
    (rows.length > data.shown ? ", the first " + data.shown + " shown" : "");
}
place.querySelector("input").addEventListener("input", (event) => show(event.target.value));
show("");
"""


@dataclass(frozen=True)
class Table:
    """A table that can be searched.

    Attributes:
        data: What it shows: plain values only.
        title: What is in it; plain text.
        caption: One sentence below; plain text.
    """

    data: dict[str, Any]
    title: str
    caption: str

    def html(self) -> str:
        """A complete document that asks no server for anything."""
        heads = "".join(f"<th>{escape(name)}</th>" for name in self.data["heads"])
        return (
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
            f"<title>{escape(self.title)}</title><style>{STYLE}{LOOK}</style></head><body>"
            f'<figure class="mlp-table"><p><b>{escape(self.title)}</b></p>'
            '<input type="search" aria-label="search" placeholder="part of a token"> <output>'
            f"</output><table><thead><tr>{heads}</tr></thead><tbody></tbody></table>"
            f'<script type="application/json">{to_json(self.data)}</script>'
            f"<figcaption>{escape(self.caption)}</figcaption></figure>"
            f"<script>{SCRIPT}{FIT}</script></body></html>"
        )

    @property
    def height(self) -> int:
        """Pixels that it takes, as far as can be told, and at most 900."""
        return min(900, 130 + 40 * min(len(self.data["rows"]), self.data["shown"]))

    def save(self, path: str | Path) -> Path:
        """Write `html` to a file, all of it or nothing.

        Raises:
            ValueError: The path does not end in ``.html``, or its folder is not there.
        """
        return save_html(self.html(), path)

    def _repr_html_(self) -> str:
        """A frame, so that its look stays its own."""
        return framed(self.html(), "table", self.height)

    def __repr__(self) -> str:
        """Its size; a notebook draws the table instead."""
        return f"Table({self.title}, {len(self.data['rows'])} rows)"


def table(result: xr.Dataset, *, shown: int = 100) -> Table:
    """The rows of a matrix between tokens or neurons with their largest entries, to search in.

    Rows come by their largest entry, in standard deviations of the row over its mean: of a row
    that is large everywhere no entry says much.

    Args:
        result: What `weights.table` or `weights.virtual_weights` returns.
        shown: How many rows to show at a time; all are searched.

    Returns:
        A page that works offline, whatever the tokens hold.

    Raises:
        ValueError: It is no such Dataset, has more than 60,000 rows, or `shown` is below 1.

    Example:
        >>> from mlp_interp import load_model
        >>> from mlp_interp.weights import table as tabled
        >>> table(tabled(load_model("nano"), "L1H0.OV", k=3))
        Table(L1H0.OV, 2048 rows)
    """
    wanted = ("value", "column_text", "mean", "sd", "row_text")
    missing = [name for name in wanted if name not in getattr(result, "variables", ())]
    if missing:
        raise ValueError(f"result lacks {', '.join(missing)}; wanted what weights.table returns")
    if result.sizes["row"] > MAX_ROWS:
        raise ValueError(f"result has {result.sizes['row']} rows; wanted at most {MAX_ROWS}")
    if shown < 1:
        raise ValueError(f"shown={shown}; wanted at least 1")
    spread = result["sd"].where(result["sd"] > 0)
    z = (abs(result["value"].isel(rank=0) - result["mean"]) / spread).fillna(0)
    ordered = result.isel(row=(-z).argsort(kind="stable").values)
    strength = z.isel(row=(-z).argsort(kind="stable").values).values
    values = as_numbers("value", ordered["value"].values, 2)
    columns = ordered["column_text"].values
    rows = [
        [str(text), f"{number:.1f}", [*map(str, names)], [f"{x:.3g}" for x in numbers]]
        for text, number, names, numbers in zip(
            ordered["row_text"].values, strength, columns, values, strict=True
        )
    ]
    attrs = result.attrs
    title = str(attrs.get("matrix") or f"{attrs.get('writer')} to {attrs.get('reader')}")
    end = "largest" if attrs.get("side", "high") == "high" else "smallest"
    heads = ["row", "sd from the mean", f"{end} entries ({attrs.get('unit', '')})"]
    caption = ", ".join(str(attrs[key]) for key in ("model", "processing") if key in attrs)
    if attrs.get("approximation"):
        caption += f"; approximate: {attrs['approximation']}"
    return Table({"rows": rows, "shown": shown, "heads": heads}, title, caption)
