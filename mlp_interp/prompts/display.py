"""How a `Contrast` prints in a terminal and in a notebook.

Prompts are data: in HTML every piece of them is escaped.
"""

from html import escape
from typing import Any

__all__ = ["contrast_html", "contrast_text", "visible"]

_ROWS = 8
_WIDTH = 400
_MARKS = {"\n": "↵", "\t": "⇥", "\r": "␍"}


def visible(text: str) -> str:
    r"""A text with what breaks lines drawn, and what steers a terminal or turns text as escapes.

    Example:
        >>> print(visible("two\nlines, \x1b[31mred"))
        two↵lines, \x1b[31mred
    """
    if text.isprintable():
        return text
    return "".join(x if x.isprintable() else _MARKS.get(x) or _escaped(x) for x in text)


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode()


def contrast_text(contrast: Any) -> str:
    """One summary line and the first pair, with the tokens that differ in ‹ ›."""
    differs = contrast[0].differs[0].tolist()
    lines = [
        f"Contrast(task={contrast.attrs['task']!r}, prompts={len(contrast)}, "
        f"length={contrast.length_text})"
    ]
    for which in ("clean", "corrupted"):
        tokens = contrast[0].token_text(which)[0]
        shown = "".join(f"‹{t}›" if d else t for t, d in zip(tokens, differs, strict=True))
        lines.append(f"  {which + '[0]':<12} {_shortened(visible(shown))}")
    answer, foil = (_words(first)[0] for first in (contrast[0], contrast[0].swap()))
    lines.append(f"  answer {answer}, foil {foil}")
    return "\n".join(lines)


def _words(contrast: Any) -> list[str]:
    """The answers, quoted; those of several tokens with their number, for most is read of one."""
    return [
        repr(text) + (f" ({len(tokens)} tokens)" if len(tokens) > 1 else "")
        for text, tokens in zip(contrast.answer_text, contrast.answer_tokens, strict=True)
    ]


def contrast_html(contrast: Any) -> str:
    """A table of the first pairs, the tokens that differ marked."""
    first = contrast[:_ROWS]
    head = "".join(f"<th>{name}</th>" for name in ("", "clean", "corrupted", "answer", "foil"))
    columns = zip(
        first.token_text("clean"),
        first.token_text("corrupted"),
        [row[mask].tolist() for row, mask in zip(first.differs, first.real, strict=True)],
        first.answer_text,
        first.foil_text,
        strict=True,
    )
    rows = [
        f"<tr><th>{row}</th>{_cell(clean, differs)}{_cell(corrupted, differs)}"
        f"{_cell([answer], [False])}{_cell([foil], [False])}</tr>"
        for row, (clean, corrupted, differs, answer, foil) in enumerate(columns)
    ]
    left = len(contrast) - len(rows)
    more = f"; {left} more not shown" if left else ""
    caption = escape(
        f"{contrast.attrs['task']}: {len(contrast)} pairs of {contrast.length_text} tokens{more}"
    )
    return (
        f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _cell(tokens: list[str], marked: list[bool]) -> str:
    pieces = [
        f"<mark>{escape(visible(token))}</mark>" if mark else escape(visible(token))
        for token, mark in zip(tokens, marked, strict=True)
    ]
    return f'<td style="text-align:left; white-space:pre-wrap">{"".join(pieces)}</td>'


def _shortened(text: str) -> str:
    # The end of a prompt is where the question stands.
    return text if len(text) <= _WIDTH else "…" + text[-_WIDTH:]
