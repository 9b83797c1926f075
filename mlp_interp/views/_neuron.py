"""The page of one neuron."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr
from markupsafe import Markup

from mlp_interp.prompts.display import visible
from mlp_interp.views import _page
from mlp_interp.views._neuron_memory import memory
from mlp_interp.views._neuron_parts import (
    ablation,
    bands,
    figure,
    is_latent,
    sentences,
    similar,
    strongest,
    weights,
    words,
)
from mlp_interp.views._page import framed, save_html
from mlp_interp.views.bundle import plotly
from mlp_interp.views.document import render_document, shared
from mlp_interp.views.numbers import number, percent

_NEEDED = ("fraction", "histogram", "top_text", "band_text", "promoted_direct", "effect", "similar")


@dataclass(frozen=True)
class Page:
    """A complete HTML page that needs no network: shows itself in Jupyter, and saves itself.

    Attributes:
        title: What it is about.
        document: The HTML.
    """

    title: str
    document: str

    def html(self) -> str:
        """The document."""
        return self.document

    def save(self, path: str | Path) -> Path:
        """Write it to a file, all of it or nothing.

        Raises:
            ValueError: The path does not end in ``.html``, or its folder is not there.
        """
        return save_html(self.document, path)

    def _repr_html_(self) -> str:
        """A frame, so that the page's look stays its own."""
        held = self.document.replace(plotly(), "") if _page.sharing else self.document
        return framed(held, self.title, 900)

    def __repr__(self) -> str:
        """The title; a notebook shows the page instead."""
        return f"Page({self.title!r})"


def neuron(page: xr.Dataset, *, memories: xr.Dataset | None = None) -> Page:
    """Everything about one neuron, or latent, on one page: when it fires, on what, what that does.

    Args:
        page: What `mlp_interp.neurons.neuron_page` gave, or `mlp_interp.latents.page`.
        memories: What `mlp_interp.neurons.memories` found of the same model, to show the neuron as
            a memory: the texts that it answers to, what follows them, and whether its value says
            so, beside chance. None leaves that out.

    Returns:
        A page that shows itself in Jupyter; ``page.save("L3N506.html")`` writes it. Texts need no
        JavaScript, the histogram does.

    Raises:
        ValueError: It is not such a result, or `memories` has nothing of this neuron.

    Example:
        >>> from mlp_interp import load_corpus, load_model
        >>> from mlp_interp.neurons import neuron_page
        >>> model = load_model("nano")
        >>> corpus = load_corpus("nano", model, sequences=4, length=32)
        >>> neuron(neuron_page(model, "L3N506", corpus, ablate=2))
        Page('L3N506 of nano')
    """
    missing = [name for name in _NEEDED if name not in getattr(page, "variables", ())]
    if missing:
        raise ValueError(
            f"page lacks {', '.join(map(repr, missing))}; wanted the Dataset of neuron_page, or of "
            "latents.page"
        )
    attrs = page.attrs
    title = f"{page['component'].item()} of {attrs['model']}"
    limit = _limit(page)
    context: dict[str, Any] = {
        "own_style": Markup(shared("neuron.css")),
        "sentences": sentences(page),
        "weights": weights(page),
        "top": strongest(page, limit),
        "bands": bands(page, limit),
        "figure": figure(page),
        "promoted": words(page, "promoted"),
        "suppressed": words(page, "suppressed"),
        "coefficient": number(page["direct_coefficient"], page["direct_coefficient_se"]),
        "held_at": number(attrs["held_at"]),
        "sequences": int(attrs["ablated_sequences"]),
        "losses": ablation(page),
        "similar": similar(page),
        "first": int(attrs["first"]),
        "latent": is_latent(page),
        "memory": None if memories is None else memory(page, memories),
    }
    facts = [f"{attrs['processing']} weights", str(attrs["data"])]
    if "dictionary" in attrs:
        facts.insert(0, _what(str(attrs["dictionary"])))
    revision = str(attrs.get("revision", ""))
    if revision not in ("", "none", "main", "unknown"):
        facts.insert(0, f"revision {revision}")
    document = render_document(
        shared("neuron.html"),
        title=title,
        provenance=", ".join(facts),
        filters={"visible": visible, "percent": percent},
        **context,
    )
    return Page(title, document)


def _what(dictionary: str) -> str:
    """What a dictionary is; which weights it is for is said anyway."""
    return dictionary.removeprefix("Dictionary: ").split(", for ")[0]


def _limit(page: xr.Dataset) -> float:
    """The activation of full colour: the largest that is shown."""
    some = [page[name] for name in ("top_around", "band_around") if page[name].size]
    shown = [float(abs(x).max()) for x in some]
    return max([x for x in shown if x == x], default=1.0) or 1.0
