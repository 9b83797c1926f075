"""One self-contained HTML page from the results of a report."""

import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

import numpy as np
from jinja2 import Environment
from markupsafe import Markup

from mlp_interp import plots
from mlp_interp.report.content import Content
from mlp_interp.report.figure import Drawing, drawing
from mlp_interp.report.format import number, percent, with_error
from mlp_interp.report.section import Section
from mlp_interp.report.summary import Summary
from mlp_interp.report.units import commands, linked
from mlp_interp.views.bundle import circuitsvis
from mlp_interp.views.document import environment, render_document


def render(content: Content, summary: Summary, *, made: Mapping[str, str] | None = None) -> str:
    """The page as HTML.

    Every text is escaped by the templates, and all data goes through `script_safe`: what a corpus
    or a tokenizer holds is shown and never run.

    Args:
        content: The results.
        summary: The answer at a glance.
        made: By what, when and in what time the page was made.

    Returns:
        A complete document without any reference to another file or server.
    """
    filters = {
        "with_error": with_error,
        "signed": _signed,
        "share": _share,
        "number": number,
        "percent": percent,
        "linked": linked,
    }
    templates = environment(filters, _template)
    attrs = content.check.attrs
    sections = {
        section.name: _section(templates, section, found) for section, found in content.sections()
    }
    titles = {section.name: section.title for section, _ in content.sections()}
    return render_document(
        _text("template.html"),
        title=f"What does each sub-update of {attrs['model']} do?",
        provenance=", ".join([*_named(attrs), str(content.corpus.get("data", "corpus"))]),
        filters=filters,
        read=_template,
        own_style=Markup(_text("style.css")),
        summary=summary,
        largest={
            way: max((getattr(row, way) for row in summary.rows), default=1.0)
            for way in ("direct", "total", "later")
        },
        main=_main(content),
        contents=titles | {"card": "Model and data"},
        sections=sections,
        cards=_cards(content),
        notes=content.notes,
        circuitsvis=circuitsvis(),
        more=commands(attrs),
        made=made or {},
    )


def _main(content: Content) -> Drawing | None:
    """The figure that stands beside the summary."""
    if "importance" not in content.found:
        return None
    return drawing(plots.importance(content.found["importance"]))


def _section(templates: Environment, section: Section, found: Any) -> Markup:
    known = {"name": section.name, "intro": "", "blocks": ()}
    shown = known | {"sentences": section.sentences(found)} | dict(section.show(found))
    return Markup(templates.get_template(section.template).render(shown))


def _template(name: str) -> str:
    """The source of a section's template: it lies beside the section's module."""
    return _text(f"sections/{name}")


def _cards(content: Content) -> dict[str, tuple[dict[str, str], dict[str, str]]]:
    """Facts by name, and those that are folded away."""
    check, attrs = content.check, content.check.attrs
    blocks = "parallel" if attrs["parallel"] else "sequential"
    error = float(check["log_prob_error"])
    against = "not known here" if np.isnan(error) else f"within {error:.1e} nats"
    model = {
        "model": attrs["model"],
        "revision": attrs["revision"],
        "shape": f"{attrs['n_layers']} layers, {attrs['n_heads']} heads, d_model "
        f"{attrs['d_model']}, d_mlp {attrs['d_mlp']}",
        "vocabulary": f"{attrs['d_vocab']:,} tokens",
        "blocks": f"{blocks} attention and MLP",
        "processing": attrs["processing"],
        "numbers": f"{attrs['dtype']} on {attrs['device']}",
        "class": attrs["backend"],
        "check": "passed" if bool(check["ok"]) else "FAILED",
        "Hugging Face's forward": against,
        "components sum to stream": f"within {float(check['residual_error']):.1e} of its size",
    }
    described = {"description": str(content.corpus.get("data", ""))}
    data = {key.replace("_", " "): value for key, value in content.corpus.items() if key != "data"}
    folded = {key: str(value) for key, value in data.items() if key != "seed" and _dull(value)}
    told = {key: str(value) for key, value in data.items() if key not in folded}
    known = {key: str(value) for key, value in model.items()}
    return {
        "Model": (known, {}),
        "Data": (described | told, folded),
    }


def _dull(value: Any) -> bool:
    """Whether this is a count of nothing, or the digest of something."""
    return (isinstance(value, int | np.integer) and int(value) == 0) or (
        isinstance(value, str) and re.fullmatch(r"[0-9a-f]{32,}", value) is not None
    )


def _named(attrs: dict[str, Any]) -> list[str]:
    named = [str(attrs["model"])]
    if attrs.get("revision") not in (None, "main", "unknown"):
        named.append(f"revision {attrs['revision']}")
    return [*named, f"{attrs['processing']} weights"]


def _text(name: str) -> str:
    return resources.files("mlp_interp.report").joinpath(name).read_text(encoding="utf-8")


def _signed(value: float, error: float) -> str:
    if value == 0:
        return "0"
    return ("−" if value < 0 else "+") + with_error(abs(value), error)


def _share(value: float, largest: float) -> str:
    """Width of a bar in per cent."""
    return f"{100 * max(0.0, value) / largest:.1f}" if largest > 0 and value == value else "0"
