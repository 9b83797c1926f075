"""Self-contained HTML pages: one head, look and way to draw figures for all of them."""

import re
from collections.abc import Callable, Mapping
from importlib import metadata, resources
from typing import Any

import plotly.graph_objects as go
from jinja2 import ChoiceLoader, DictLoader, Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from mlp_interp.views.bundle import CHOOSE, MOUNT, UNPACK, plotly, to_json

__all__ = ["environment", "render_document", "shared"]

# The browser itself refuses every request: whatever a corpus holds, a page stays by itself.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:"
)


_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def render_document(
    template: str,
    *,
    title: str,
    provenance: str,
    filters: Mapping[str, Callable[..., Any]] | None = None,
    read: Callable[[str], str | None] = lambda name: None,
    **context: Any,
) -> str:
    """A complete document without any reference to another file or server.

    Every text is escaped by the template; data for scripts goes through `script_safe`.

    Args:
        template: Jinja source that extends ``document.html`` and fills its blocks ``style``,
            ``content`` and ``footer``. A figure is an element of class ``plot`` that holds a script
            of JSON.
        title: Of the page; plain text.
        provenance: What was measured on what; plain text.
        filters: For the template, besides Jinja's own.
        read: Gives the source of other templates by their names.
        **context: What the template shows.
    """
    page = (
        environment(filters, read)
        .from_string(template)
        .render(
            title=title,
            provenance=provenance,
            policy=POLICY,
            style=Markup("".join(map(shared, ("style.css", "choice.css", "lens.css")))),
            script=Markup(UNPACK + MOUNT + CHOOSE + shared("lens.js") + shared("page.js")),
            colophon=f"mlp_interp {metadata.version('mlp-interp')}",
            plotly=plotly(),
            look=look(),
            **context,
        )
    )
    return without_controls(page)


def environment(
    filters: Mapping[str, Callable[..., Any]] | None = None,
    read: Callable[[str], str | None] = lambda name: None,
) -> Environment:
    """What templates are rendered with: all that they show is escaped.

    Args:
        filters: For the templates, besides Jinja's own.
        read: Gives the source of a template by its name, besides ``document.html``.
    """
    known = ChoiceLoader(
        [DictLoader({"document.html": shared("document.html")}), FunctionLoader(read)]
    )
    made = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, loader=known)
    made.filters |= dict(filters or {})
    return made


def without_controls(html: str) -> str:
    """A page with pictures of control characters in their place, which HTML does not allow.

    A corpus may hold any. Data for scripts have them as escapes.
    """
    return _CONTROLS.sub(lambda found: _pictured(found[0]), html)


def _pictured(control: str) -> str:
    code = ord(control)
    return chr(0x2400 + code) if code < 0x20 else "\N{REPLACEMENT CHARACTER}"


def look() -> Markup:
    """The template that all figures of a page share, once."""
    template = go.Figure(layout_template="plotly_white").to_plotly_json()["layout"]["template"]
    return Markup(to_json(template))


def shared(name: str) -> str:
    """A file that pages share: ``document.html``, ``style.css``, ``page.js``."""
    return resources.files("mlp_interp.views").joinpath(name).read_text(encoding="utf-8")
