"""Text with every token coloured by a value, or by one of several, chosen from a list."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from mlp_interp.prompts.display import visible
from mlp_interp.views._page import FIT, MAX_TOKENS, STYLE, as_numbers, as_texts, framed, save_html
from mlp_interp.views.bundle import CHOOSE, to_json
from mlp_interp.views.document import shared

__all__ = ["Choice", "token_values"]


@dataclass(frozen=True)
class Choice:
    """Tokens and one or several values of each; shows itself in Jupyter.

    Attributes:
        tokens: As text.
        rows: Values of the tokens by name.
        chosen: Whose values are shown first.
        caption: One sentence below; plain text.
        unit: Of the values.
        limit: The value of full colour; None for the largest of those shown.
    """

    tokens: list[str]
    rows: dict[str, list[float]] = field(repr=False)
    chosen: str
    caption: str = ""
    unit: str = ""
    limit: float | None = None

    def fragment(self, *, legend: bool = True) -> str:
        """HTML for a page that has the script `CHOOSE` and the style of tokens.

        Args:
            legend: Say what full colour means; of texts with one `limit`, the first may do for all.
        """
        tokens = "".join(map(_drawn, self.tokens))
        caption = f"<figcaption>{escape(self.caption)}</figcaption>" if self.caption else ""
        held = {"values": list(self.rows.values()), "unit": self.unit, "limit": self.limit}
        return (
            f'<figure class="choice">{self._head() if legend else ""}'
            f'<p class="passage">{tokens}</p>'
            f'<script type="application/json">{to_json(held)}</script>{caption}</figure>'
        )

    def _head(self) -> str:
        """Whose values are shown, and what the colours mean."""
        options = "".join(
            f"<option{' selected' if name == self.chosen else ''}>{escape(visible(name))}</option>"
            for name in self.rows
        )
        several = len(self.rows) > 1
        whose = f'<select aria-label="colour by">{options}</select> '
        return (
            f"<p>{whose if several else escape(visible(self.chosen))}"
            '<span class="legend"><span class="least"></span><span class="ramp"></span>'
            f'<span class="most"></span> {escape(self.unit)}</span></p>'
        )

    def html(self) -> str:
        """A complete document that asks no server for anything."""
        return (
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>view</title>'
            f"<style>{STYLE}{shared('choice.css')}</style></head><body>{self.fragment()}"
            f"<script>{FIT}{CHOOSE}wireChoices(document);</script></body></html>"
        )

    def save(self, path: str | Path) -> Path:
        """Write `html` to a file, all of it or nothing.

        Raises:
            ValueError: The path does not end in ``.html``, or its folder is not there.
        """
        return save_html(self.html(), path)

    def _repr_html_(self) -> str:
        """A frame, so that any number of views on one page stay out of each other's way."""
        height = 120 + 26 * (len(self.tokens) // 16)
        return framed(self.html(), "tokens coloured by value", height)

    def __repr__(self) -> str:
        """Sizes; a notebook draws the view instead."""
        values = f", {len(self.rows)} values of each" if len(self.rows) > 1 else ""
        return f"Choice({len(self.tokens)} tokens{values})"


def token_values(
    token_strs: Sequence[str],
    rows: Mapping[str, Any],
    *,
    chosen: str | None = None,
    unit: str = "",
    caption: str = "",
) -> Choice:
    """Tokens coloured by one of several values, chosen from a list above the text.

    Full colour is the largest value of either sign among those chosen: the legend says how much it
    is. Red is below zero, blue above.

    Args:
        token_strs: The tokens as text, one string each.
        rows: A name and one number per token for each kind of value.
        chosen: The name of the values to show first; None for the first.
        unit: Of the values, for the legend.
        caption: One sentence to put below.

    Returns:
        A view; hovering over a token shows its value.

    Raises:
        ValueError: If there are no rows or not the chosen one, lengths differ or a value is not
            finite.

    Example:
        >>> token_values(["The", " cat"], {"direct": [0.5, -1.0], "total": [1.0, 0.0]})
        Choice(2 tokens, 2 values of each)
    """
    texts = as_texts(token_strs, limit=MAX_TOKENS)
    if not rows:
        raise ValueError("rows must name at least one kind of value, got none")
    numbers = {str(name): as_numbers(f"rows[{name!r}]", row, 1) for name, row in rows.items()}
    for name, row in numbers.items():
        if len(row) != len(texts):
            raise ValueError(
                f"rows[{name!r}] must match tokens: {len(row)} values, {len(texts)} tokens"
            )
    first = next(iter(numbers)) if chosen is None else chosen
    if first not in numbers:
        raise ValueError(f"chosen={chosen!r}; wanted one of {', '.join(map(repr, numbers))}")
    return Choice(
        texts, {name: row.tolist() for name, row in numbers.items()}, first, caption, unit
    )


def _drawn(token: str) -> str:
    """A token of which something is seen, whatever it holds; a line ends where it ends one."""
    shown = escape(visible(token) if token else "∅")
    return f'<bdi class="token">{shown}</bdi>{"<br>" if token.endswith(chr(10)) else ""}'
