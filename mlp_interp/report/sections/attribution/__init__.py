"""What makes the model give its answers?"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup

from mlp_interp import plots, views
from mlp_interp.report.figure import drawing
from mlp_interp.report.section import Section, Work
from mlp_interp.report.sections.attribution.compute import ShownExample as ShownExample
from mlp_interp.report.sections.attribution.compute import from_corpus, from_tasks
from mlp_interp.report.store import Part
from mlp_interp.tables import top

__all__ = ["ATTRIBUTION", "ShownExample"]


def _compute(work: Work) -> list[ShownExample]:
    examples, notes = from_tasks(work.model, work.prompts, work.seed)
    work.notes.extend(notes)
    return examples or [from_corpus(work.model, work.corpus, work.prompts)]


def _parts(examples: list[ShownExample]) -> Mapping[str, Part]:
    return {
        f"{example.name}/{name}": part
        for example in examples
        for name, part in (
            *example.shares.items(),
            ("sources", example.sources),
            ("patterns", example.patterns),
        )
    }


def _sentences(examples: list[ShownExample]) -> list[str]:
    return [_sentence(example) for example in examples]


def _sentence(example: ShownExample) -> str:
    found = _strongest(example)
    what = "logit(answer) - logit(foil)" if example.foil else "logit(answer)"
    (component, c), (head, h), (neuron, n) = (found[level] for level in example.shares)
    return (
        f"On {found['prompts']} prompts of “{example.name}”, {what} is {found['logits']:+.2f} on "
        f"average; the largest direct shares are those of {component} ({c:+.2f}), head {head} "
        f"({h:+.2f}) and neuron {neuron} ({n:+.2f})."
    )


def _strongest(example: ShownExample) -> dict[str, Any]:
    """The logit attributed, and the strongest component, head and neuron of an example."""
    found: dict[str, Any] = {
        "prompts": int(example.shares["component"].sizes["prompt"]),
        "logits": float(example.shares["component"].sum("component").mean()),
    }
    for level, shares in example.shares.items():
        kinds = ("attn", "mlp") if level == "component" else (level,)
        first = top(shares.isel(component=np.isin(shares["kind"].values, kinds)), 1)
        found[level] = (str(first["component"].values[0]), float(first.values[0]))
    return found


def _show(examples: list[ShownExample]) -> dict[str, Any]:
    return {
        "heading": "What makes the model give its answers?",
        "intro": "Shares of one logit difference (or logit): blue speaks for the answer, red "
        "against it, and all shares together are the model's own number.",
        "examples": [_example(example) for example in examples],
    }


def _example(example: ShownExample) -> dict[str, Any]:
    shares = example.shares
    total = float(shares["component"].sum("component").mean())
    what = "logit difference" if example.foil else "logit"
    by_token = example.sources.isel(prompt=0).sum("component").values
    heads = [str(label) for label in example.sources["component"].values]
    text = views.tokens(
        example.tokens, by_token, caption=f"Logits, summed over {', '.join(heads)}."
    )
    attention = views.attention(example.tokens, example.patterns.values, names=heads)
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
        "tokens": Markup(text.fragment()),
        "attention": Markup(attention.fragment()),
    }


ATTRIBUTION = Section(
    name="attribution",
    title="Logit attribution",
    compute=_compute,
    show=_show,
    parts=_parts,
    sentences=_sentences,
    numbers=lambda examples: {example.name: _strongest(example) for example in examples},
    template="attribution/attribution.html",
)
