"""Texts side by side, continued with edits and without, with what differs marked."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from html import escape
from pathlib import Path
from typing import Any

import xarray as xr

from mlp_interp.views._page import FIT, NEGATIVE, POSITIVE, STYLE, framed, save_html

MAX_ROWS = 200
WAYS = ("plain", "edited")
LOOK = """
.mlp-compare table { border-collapse: collapse; width: 100%; table-layout: fixed; }
.mlp-compare th, .mlp-compare td { text-align: left; vertical-align: top; padding: 4px 10px; }
.mlp-compare th { font-weight: 600; border-bottom: 1px solid #999; }
.mlp-compare td { border-bottom: 1px solid #ddd; white-space: pre-wrap; overflow-wrap: anywhere; }
.mlp-compare td.mlp-prompt { color: #555; width: 28%; }
.mlp-compare th:first-child { width: 28%; }
.mlp-compare mark { color: inherit; padding: 1px 0; border-radius: 2px; }
.mlp-compare td.mlp-plain mark { background: NEGATIVE30; border-bottom: 2px solid NEGATIVE; }
.mlp-compare td.mlp-edited mark { background: POSITIVE30; border-bottom: 2px solid POSITIVE; }
.mlp-compare small { display: block; color: #555; white-space: normal; }
""".replace("NEGATIVE", NEGATIVE).replace("POSITIVE", POSITIVE)


@dataclass(frozen=True)
class Comparison:
    """A table of texts, as HTML without scripts but one that fits its frame.

    Attributes:
        body: The table.
        rows: How many pairs of texts it shows.
    """

    body: str
    rows: int

    def fragment(self) -> str:
        """HTML for a page of your own, its look included."""
        return f'<figure class="mlp-compare"><style>{LOOK}</style>{self.body}</figure>'

    def html(self) -> str:
        """A complete document that asks no server for anything."""
        return (
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>compare</title>'
            f"<style>{STYLE}</style></head><body>{self.fragment()}<script>{FIT}</script></body>"
            "</html>"
        )

    def save(self, path: str | Path) -> Path:
        """Write `html` to a file, all of it or nothing.

        Raises:
            ValueError: The path does not end in ``.html``, or its folder is not there.
        """
        return save_html(self.html(), path)

    def _repr_html_(self) -> str:
        """A frame, so that its look stays its own."""
        return framed(self.html(), "compare", 60 + 70 * self.rows)

    def __repr__(self) -> str:
        """Its size; a notebook draws the table instead."""
        return f"Comparison({self.rows} pairs of texts)"


def compare(generations: xr.Dataset, *, rows: int = 20, caption: str = "") -> Comparison:
    """Texts with edits beside those without, from the same draws; what differs is marked.

    Marked are tokens that the other text has not at the same place of the sequence that both
    share: an inserted word does not mark all that follows it. (`differs` of the Dataset, and the
    share that is shown, go position by position.) Below each text stands its fluency, the mean
    log-probability of its tokens under the model without edits.

    Args:
        generations: What `steering.generate_compare` returns.
        rows: How many pairs to show at most; the caption says how many there are.
        caption: One sentence to put below, after the edits.

    Returns:
        A table with a row for each prompt and sample.

    Raises:
        ValueError: It is no such Dataset, or `rows` is not from 1 to 200.

    Example:
        >>> from mlp_interp import load_model
        >>> from mlp_interp.edits import Edit
        >>> from mlp_interp.steering import generate_compare
        >>> edit = Edit.scale("3.mlp", 0.0)
        >>> compare(generate_compare(load_model("nano"), ["The", "One day"], edit))
        Comparison(2 pairs of texts)
    """
    _check(generations, rows)
    pairs = [
        generations.isel(prompt=prompt, sample=sample)
        for prompt in range(generations.sizes["prompt"])
        for sample in range(generations.sizes["sample"])
    ]
    shown = "".join(_row(pair) for pair in pairs[:rows])
    head = "<tr><th>prompt</th><th>without edits</th><th>with edits</th></tr>"
    said = [str(generations.attrs.get("edits", "")).replace("\n", "; "), caption]
    if len(pairs) > rows:
        said.append(f"{rows} of {len(pairs)} pairs of texts.")
    below = escape(". ".join(part.rstrip(".") for part in said if part))
    body = f"<table><thead>{head}</thead><tbody>{shown}</tbody></table>"
    return Comparison(f"{body}<figcaption>{below}</figcaption>", min(rows, len(pairs)))


def _check(generations: Any, rows: int) -> None:
    wanted = ("token", "token_text", "length", "fluency", "share_differing", "prompt_text")
    if not isinstance(generations, xr.Dataset):
        raise ValueError(
            "generations must be the Dataset of steering.generate_compare, got a "
            f"{type(generations).__name__}"
        )
    if missing := [name for name in wanted if name not in generations.variables]:
        raise ValueError(
            f"generations lacks {', '.join(missing)}; wanted what steering.generate_compare returns"
        )
    if not 1 <= rows <= MAX_ROWS:
        raise ValueError(f"rows must be from 1 to {MAX_ROWS}, got {rows}")


def _row(pair: xr.Dataset) -> str:
    ids, texts = [], []
    for way in WAYS:
        one = pair.sel(way=way)
        length = int(one["length"])
        ids.append(one["token"].values[:length].tolist())
        texts.append([str(text) for text in one["token_text"].values[:length]])
    cells = [f'<td class="mlp-prompt">{escape(str(pair["prompt_text"].item()))}</td>']
    share = f"; differs at {_or_dash(pair['share_differing'], '.0%')} of positions"
    for way, words, marked in zip(WAYS, texts, _differing(*ids), strict=True):
        fluency = f"{_or_dash(pair['fluency'].sel(way=way), '.2f')} nats per token"
        small = fluency + (share if way == "edited" else "")
        cells.append(f'<td class="mlp-{way}">{_marked(words, marked)}<small>{small}</small></td>')
    return f"<tr>{''.join(cells)}</tr>"


def _or_dash(value: xr.DataArray, digits: str) -> str:
    """A number, or a dash where there is none: of a text without tokens, say."""
    number = float(value)
    return f"{number:z{digits}}".replace("-", "−") if math.isfinite(number) else "–"


def _differing(first: list[int], second: list[int]) -> tuple[set[int], set[int]]:
    """Which tokens of each are not in the sequence that both share."""
    shared = SequenceMatcher(None, first, second, autojunk=False).get_matching_blocks()
    kept = [{at + n for at, size in places for n in range(size)} for places in (
        [(block.a, block.size) for block in shared], [(block.b, block.size) for block in shared]
    )]  # fmt: skip
    return set(range(len(first))) - kept[0], set(range(len(second))) - kept[1]


def _marked(words: Sequence[str], marked: set[int]) -> str:
    """Tokens as text, runs of marked ones in one mark."""
    parts: list[str] = []
    for n, word in enumerate(words):
        if n in marked and n - 1 not in marked:
            parts.append("<mark>")
        parts.append(escape(word))
        if n in marked and n + 1 not in marked:
            parts.append("</mark>")
    return "".join(parts)
