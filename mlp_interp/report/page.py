"""One self-contained HTML page from the results of a report."""

from importlib import metadata, resources
from typing import Any

import numpy as np
import plotly.offline
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from mlp_interp import plots, views
from mlp_interp.report import neurons
from mlp_interp.report.content import Content
from mlp_interp.report.examples import ShownExample
from mlp_interp.report.figure import drawing
from mlp_interp.report.format import percent, with_error
from mlp_interp.report.summary import Summary
from mlp_interp.views.bundle import MOUNT, UNPACK, circuitsvis, pack
from mlp_interp.views.document import POLICY, look, shared, without_controls

WHAT = {"mlp": "MLPs", "attn": "attention", "both": "both"}
CONTENTS = [
    ("card", "Model and data"),
    ("norms", "Norms"),
    ("importance", "Importance"),
    ("scatter", "Direct or later"),
    ("ranges", "Several layers"),
    ("excerpt", "In the text"),
    ("attribution", "Logit attribution"),
    ("neurons", "Neurons"),
]


def render(content: Content, summary: Summary, *, made: str = "") -> str:
    """The page as HTML.

    Every text is escaped by the template, and all data goes through `script_safe`: what a corpus or
    a tokenizer holds is shown and never run.

    Args:
        content: The results.
        summary: The answer at a glance.
        made: A word on when and by what the page was made.

    Returns:
        A complete document without any reference to another file or server.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {
        "with_error": with_error,
        "signed": _signed,
        "share": _share,
        "percent": percent,
    }
    template = environment.from_string(_text("template.html"))
    attrs = content.check.attrs
    largest = max((max(row.direct, row.total) for row in summary.rows), default=1.0)
    page = template.render(
        title=f"What does each sub-update of {attrs['model']} do?",
        provenance=", ".join([*_named(attrs), str(content.corpus.get("data", "corpus"))]),
        policy=POLICY,
        style=Markup(shared("style.css") + _text("style.css")),
        script=Markup(UNPACK + MOUNT + shared("page.js")),
        summary=summary,
        largest=largest,
        contents=CONTENTS,
        cards=_cards(content),
        notes=content.notes,
        figures=_figures(content),
        excerpt=Markup(_excerpt(content).fragment()),
        examples=[_example(example) for example in content.examples],
        neurons=neurons.shown(content.neurons),
        colophon=f"mlp_interp {metadata.version('mlp-interp')}. {made}".strip(),
        plotly=pack(plotly.offline.get_plotlyjs()),
        circuitsvis=circuitsvis(),
        look=look(),
    )
    return without_controls(page)


def _figures(content: Content) -> dict[str, Any]:
    drawn: dict[str, Any] = {
        "norms": drawing(plots.norms(content.norms)),
        "scatter": drawing(plots.direct_vs_total(content.importance)),
        "ranges": [
            drawing(
                plots.ranges(result), f"Perplexity without {WHAT[kind]}", width=None, height=380
            )
            for kind, result in content.ranges.items()
        ],
    }
    for quantity in ("kl", "delta_loss", "top1"):
        drawn[quantity] = drawing(plots.importance(content.importance, quantity=quantity))
    drawn["kl_log"] = drawing(plots.importance(content.importance, log=True))
    return drawn


def _excerpt(content: Content) -> views.View:
    effects = content.excerpt.effects
    rows = {
        f"without {label}": effects.sel(component=label).values
        for label in effects["component"].values
    }
    return views.token_values(content.excerpt.tokens, rows, caption="Rise of the loss, in nats.")


def _example(example: ShownExample) -> dict[str, Any]:
    shares = example.shares
    total = float(shares["component"].sum("component").mean())
    what = "logit difference" if example.foil else "logit"
    by_token = example.sources.isel(prompt=0).sum("component").values
    heads = ", ".join(map(str, example.sources["component"].values))
    return {
        "title": example.title,
        "headline": f"mean {what} {total:+.2f}",
        "prompt": "".join(example.tokens),
        "answer": example.answer,
        "foil": example.foil,
        "count": shares["component"].sizes["prompt"],
        "component": drawing(plots.attribution(shares["component"])),
        "head": drawing(plots.heads(shares["head"])),
        "neurons": f"{int((shares['neuron']['kind'] == 'neuron').sum()):,}",
        "neuron": drawing(plots.neurons(shares["neuron"], top=20)),
        "sources": drawing(plots.sources(example.sources, tokens=example.tokens)),
        "tokens": Markup(
            views.tokens(
                example.tokens, by_token, caption=f"Logits, summed over {heads}."
            ).fragment()
        ),
        "attention": Markup(
            views.attention(
                example.tokens,
                example.patterns.values,
                names=[str(label) for label in example.patterns["component"].values],
            ).fragment()
        ),
    }


def _cards(content: Content) -> dict[str, dict[str, str]]:
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
    hidden = ("data",)
    data = {key.replace("_", " "): str(value) for key, value in content.corpus.items()}
    described = {"description": str(content.corpus.get("data", ""))}
    return {
        "Model": {key: str(value) for key, value in model.items()},
        "Data": described | {key: value for key, value in data.items() if key not in hidden},
    }


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
