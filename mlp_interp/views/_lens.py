"""What each layer would say, to click through."""

from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from mlp_interp.prompts.display import visible
from mlp_interp.views._page import FIT, STYLE, as_numbers, framed, save_html
from mlp_interp.views.bundle import to_json
from mlp_interp.views.document import POLICY, shared

__all__ = ["LensGrid", "lens"]

_COLOURED = ("kl_output", "kl_input", "entropy")
_MAX_CELLS = 8_000
_LONGEST = 9  # letters of a token in a cell


@dataclass(frozen=True)
class LensGrid:
    """What each layer would say of one text; shows itself in Jupyter.

    Attributes:
        data: What it shows: plain values only.
        chosen: What colours the cells at first.
        caption: One sentence below; plain text.
    """

    data: dict[str, Any] = field(repr=False)
    chosen: str
    caption: str = ""

    def fragment(self) -> str:
        """HTML for a page that has the script and the style of lenses."""
        options = "".join(
            f"<option{' selected' if name == self.chosen else ''}>{escape(name)}</option>"
            for name in self.data["values"]
        )
        caption = f"<figcaption>{escape(self.caption)}</figcaption>" if self.caption else ""
        return (
            f'<figure class="lens"><p><label>dark by <select>{options}</select></label></p>'
            '<div class="grid"><table></table></div><div class="told" aria-live="polite"></div>'
            f'<script type="application/json">{to_json(self.data)}</script>{caption}</figure>'
        )

    def html(self) -> str:
        """A complete document that asks no server for anything."""
        return (
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
            f"<title>what each layer would say</title><style>{STYLE}{shared('lens.css')}</style>"
            f"</head><body>{self.fragment()}"
            f"<script>{FIT}{shared('lens.js')}wireLenses(document);</script></body></html>"
        )

    @property
    def height(self) -> int:
        """Pixels that it takes, about."""
        return 330 + 25 * len(self.data["layers"])

    def save(self, path: str | Path) -> Path:
        """Write `html` to a file, all of it or nothing.

        Raises:
            ValueError: The path does not end in ``.html``, or its folder is not there.
        """
        return save_html(self.html(), path)

    def _repr_html_(self) -> str:
        """A frame, so that any number of views on one page stay out of each other's way."""
        return framed(self.html(), "what each layer would say", self.height)

    def __repr__(self) -> str:
        """Sizes; a notebook draws the view instead."""
        return f"LensGrid({len(self.data['layers'])} layers, {len(self.data['read'])} tokens)"


def lens(
    result: xr.Dataset, variable: str = "logp_output", *, prompt: int = 0, caption: str = ""
) -> LensGrid:
    """What each layer would say at each token of a text, to click through.

    Layers up, positions across, the likeliest token in each cell; above a column the token that
    comes next, with a star where the final layer has it right. A click on a cell shows its
    likeliest tokens and its numbers; a click on one of those tokens colours every cell by the
    probability of that token, where it is among the likeliest.

    Args:
        result: What `lens.read` returns, of one lens.
        variable: What colours the cells at first; any other is chosen from a list. Dark is what is
            like the end: a high probability, a low rank, KL or entropy.
        prompt: Which of the texts.
        caption: One sentence to put below; by default the lens and the model.

    Returns:
        A page that works offline, whatever the tokens hold.

    Raises:
        ValueError: The result is not one of `lens.read` of one lens, lacks the variable, has no
            such prompt or more than 8,000 cells.

    Example:
        >>> from mlp_interp import lens as lenses, load_model
        >>> lens(lenses.read(load_model("nano"), "The capital of France is"))
        LensGrid(5 layers, 6 tokens)
    """
    one = _one(result, prompt)
    names = [str(name) for name in one.data_vars if _drawn(one, str(name))]
    if variable not in names:
        raise ValueError(f"variable={variable!r}; wanted one of {', '.join(names)}")
    if one["entropy"].size > _MAX_CELLS:
        raise ValueError(
            f"result has {one.sizes['layer']} layers x {one.sizes['pos']} positions; wanted at "
            f"most {_MAX_CELLS:,} cells: read fewer positions"
        )
    attrs = one.attrs
    told = ", ".join(str(attrs[name]) for name in ("model", "processing") if name in attrs)
    return LensGrid(_data(one, names), variable, caption or f"{attrs.get('lens', '')} lens, {told}")


def _one(result: xr.Dataset, prompt: int) -> xr.Dataset:
    """The positions of one text that stand in it."""
    wanted = ("top_text", "top_logp", "entropy")
    missing = [name for name in wanted if name not in getattr(result, "data_vars", ())]
    if missing or "token" not in result.coords:
        raise ValueError(f"result lacks {', '.join(missing)}; wanted what lens.read returns")
    if "lens" in result.dims:
        named = ", ".join(repr(str(name)) for name in result["lens"].values)
        raise ValueError(f"result has the lenses {named}; wanted one, as result.sel(lens=...)")
    if not -result.sizes["prompt"] <= prompt < result.sizes["prompt"]:
        raise ValueError(f"prompt={prompt}; wanted one of {result.sizes['prompt']}, from 0")
    one = result.isel(prompt=prompt)
    one = one.isel(pos=(one["entropy"].notnull().any("layer") & (one["token"] != "")).values)
    return one.transpose("layer", "pos", "rank", ...)


def _drawn(one: xr.Dataset, name: str) -> bool:
    """Whether a variable has a number in each cell that a shade stands for."""
    known = name in _COLOURED or name.startswith(("logp_", "rank_"))
    return known and {*one[name].dims} == {"layer", "pos"}


def _data(one: xr.Dataset, names: list[str]) -> dict[str, Any]:
    """Plain values; every token is there once, and cells name it by its number."""
    words, at = np.unique(one["top_text"].values.astype(str), return_inverse=True)
    shown = [visible(str(word)) for word in words]
    final = one["top_text"].isel(layer=-1, rank=0).values
    return {
        "layers": [int(layer) for layer in one["layer"].values],
        "read": [visible(str(text)) for text in one["token"].values],
        "next": [visible(str(text)) for text in one["next_token"].values],
        "right": (final == one["next_token"].values).tolist(),
        "words": shown,
        "cut": {n: f"{x[: _LONGEST - 1]}…" for n, x in enumerate(shown) if len(x) > _LONGEST},
        "top": at.reshape(one["top_text"].shape).tolist(),
        "p": as_numbers("top_logp", np.exp(one["top_logp"].values), 3).tolist(),
        "values": {name: _column(one[name].values) for name in names},
        "units": {name: str(one[name].attrs.get("unit", "")) for name in names},
        "about": {name: str(one[name].attrs.get("long_name", name)) for name in names},
    }


def _column(values: np.ndarray) -> list[list[float | None]]:
    """Numbers row by row, None for those that are not there."""
    rounded = as_numbers("values", np.nan_to_num(values), 2)
    held = zip(rounded.tolist(), np.isnan(values).tolist(), strict=True)
    return [[None if no else x for x, no in zip(*row, strict=True)] for row in held]
