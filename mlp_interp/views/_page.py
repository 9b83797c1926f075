"""A view: what to draw, and the ways to put it on a page."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from mlp_interp.checkpoint import whole_file
from mlp_interp.views.bundle import MOUNT, UNPACK, circuitsvis, to_json

NEGATIVE, POSITIVE = "#B2182B", "#2166AC"  # as in the plots
DIGITS = 4
MAX_TOKENS = 2_000
STYLE = """
body { margin: 8px; font: 14px/1.5 system-ui, sans-serif; background: white; color: black; }
figure { margin: 0; } figcaption { color: #555; font-size: 13px; margin-top: 6px; }
.mlp-view[data-view=AttentionHeads] { max-width: 760px; }
"""
# Inside Jupyter the frame is as high as what it shows, with the body's margins: the document is
# never lower than its frame, so its own height could only grow. Elsewhere `frameElement` is null or
# closed.
FIT = """
const fit = () => {
  try { frameElement.style.height = document.body.offsetHeight + 20 + "px"; } catch {}
};
new ResizeObserver(() => requestAnimationFrame(fit)).observe(document.body);
"""


sharing = False  # whether `views.share` has put the scripts into the notebook


@dataclass(frozen=True)
class View:
    """One circuitsvis component with its data.

    Shows itself in Jupyter. `html` gives a page of its own, `fragment` a piece for a page that
    already has the bundle.

    Attributes:
        component: The name of the circuitsvis component, such as "AttentionHeads".
        props: Its properties, plain Python values only.
        caption: One sentence below the view; plain text.
        height: Height of the frame in a notebook before it fits itself, in pixels.
    """

    component: str
    props: dict[str, Any]
    caption: str = ""
    height: int = 160

    def fragment(self) -> str:
        """HTML without the bundle: an element to draw in and its data, both closed."""
        caption = f"<figcaption>{escape(self.caption)}</figcaption>" if self.caption else ""
        return (
            f'<figure class="mlp-view" data-view="{self.component}">'
            '<div class="mlp-view-place"></div>'
            f'<script type="application/json" class="mlp-view-data">'
            f"{to_json(self.props)}</script>{caption}</figure>"
        )

    def html(self) -> str:
        """A complete document that draws the view and asks no server for anything."""
        return self._document(circuitsvis())

    def _document(self, script: str) -> str:
        return (
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>view</title>'
            f"<style>{STYLE}</style></head><body>{self.fragment()}"
            f'<script type="text/plain" id="circuitsvis">{script}</script>'
            f'<script>{UNPACK}{MOUNT}{FIT}runPacked("circuitsvis")'
            ".then(() => mountViews(document));</script></body></html>"
        )

    def save(self, path: str | Path) -> Path:
        """Write `html` to a file, all of it or nothing.

        Raises:
            ValueError: The path does not end in ``.html``, or its folder is not there.

        Example:
            >>> from tempfile import TemporaryDirectory
            >>> from mlp_interp.views import tokens
            >>> with TemporaryDirectory() as folder:
            ...     tokens(["a", "b"], [0.5, -1.0]).save(f"{folder}/view.html").name
            'view.html'
        """
        return save_html(self.html(), path)

    def _repr_html_(self) -> str:
        """A frame, so that any number of views on one page stay out of each other's way."""
        return framed(self._document("" if sharing else circuitsvis()), self.component, self.height)

    def __repr__(self) -> str:
        """Name and size; a notebook draws the view instead."""
        size = len(self.props.get("tokens", ()))
        return f"View({self.component}, {size} tokens)"


def framed(document: str, title: str, height: int) -> str:
    """A document in a frame, which keeps its look and its scripts to itself.

    Args:
        document: A complete one.
        title: For those who hear the page; plain text.
        height: In pixels, before the document fits its frame.
    """
    return (
        f'<iframe srcdoc="{escape(document)}" title="{escape(title)}" '
        f'style="width: 100%; height: {height}px; border: 0;"></iframe>'
    )


def save_html(document: str, path: str | Path) -> Path:
    """Write a document to a file, all of it or nothing.

    Raises:
        ValueError: The path does not end in ``.html``, or its folder is not there.
    """
    path = Path(path)
    if path.suffix != ".html":
        raise ValueError(f"path must end in .html, got {str(path)!r}")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"path must lie in a folder that exists, got {str(path)!r}")
    with whole_file(path) as part:
        part.write_text(document, encoding="utf-8")
    return path


def as_numbers(name: str, values: Any, ndim: int) -> np.ndarray:
    """A finite float array with `ndim` axes, rounded to four significant digits.

    Raises:
        ValueError: If the shape is wrong or a value is not finite.
    """
    values = values.detach().cpu().float() if hasattr(values, "detach") else values
    array = np.asarray(values, dtype=float)
    if array.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} axes, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got {(~np.isfinite(array)).sum()} NaN or inf")
    with np.errstate(divide="ignore"):
        power = np.where(array == 0, 0, np.floor(np.log10(np.abs(array))))
    scale = 10.0 ** (DIGITS - 1 - np.clip(power, -300, 300))
    return np.round(array * scale) / scale


def as_texts(tokens: Sequence[str], *, limit: int) -> list[str]:
    """Tokens as a list of plain strings.

    Raises:
        ValueError: If one is no string, there are none, or more than `limit`.
    """
    if isinstance(tokens, str) or not isinstance(tokens, Iterable):
        given = repr(tokens[:40]) if isinstance(tokens, str) else type(tokens).__name__
        raise ValueError(f"tokens must be a list of strings, one per token, got {given}")
    texts = [str(token) if isinstance(token, str) else token for token in tokens]
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"tokens must be strings, got {text!r}; decode the ids first")
    if not 0 < len(texts) <= limit:
        raise ValueError(f"a view shows 1 to {limit:,} tokens, got {len(texts):,}; slice them")
    return texts
