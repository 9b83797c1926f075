"""The parts of the report that look at single prompts: attributions, sources, patterns."""

from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
import xarray as xr
from jaxtyping import Int
from torch import Tensor

from mlp_interp import prompts as tasks
from mlp_interp.attribution import attribute_logits, attribute_sources
from mlp_interp.models import Weights
from mlp_interp.models.protocol import Model
from mlp_interp.residual import Level, needed
from mlp_interp.results import to_numpy
from mlp_interp.sites import Site
from mlp_interp.tables import top

TASKS = {
    "ioi": "Indirect objects: who was given something?",
    "facts": "Facts: a country's capital, a landmark's city",
    "agreement": "Agreement: singular or plural verb, across a distractor?",
}
HEADS_SHOWN = 6


@dataclass(frozen=True)
class ShownExample:
    """Logit attribution of one kind of prompt.

    Attributes:
        name: Short name, such as "ioi".
        title: What the prompts ask.
        tokens: The tokens of the first prompt as text.
        answer: What should follow the first prompt.
        foil: What it is compared with, or "" where the plain logit is attributed.
        shares: For each level, shares [prompt, component] of the logit (difference).
        sources: Shares of the strongest heads by source token, [prompt, component, source].
        patterns: The same heads' attention on the first prompt, [component, dst, src].
    """

    name: str
    title: str
    tokens: list[str]
    answer: str
    foil: str
    shares: dict[str, xr.DataArray]
    sources: xr.DataArray
    patterns: xr.DataArray


def from_tasks(model: Model, count: int, seed: int) -> tuple[list[ShownExample], list[str]]:
    """One example for every task that the model's tokenizer can express, and notes on the rest."""
    examples, notes = [], []
    for name, title in TASKS.items():
        try:
            contrast = getattr(tasks, name)(model, count, seed=seed)
        except ValueError as error:
            notes.append(f"The task {name!r} is left out: {error}.")
            continue
        pieces = (contrast.clean_tokens, contrast, None)
        names = (contrast.token_text()[0], contrast.answer_text[0], contrast.foil_text[0])
        examples.append(_attribute(model, name, title, pieces, names))
    return examples, notes


def from_corpus(model: Model, corpus: Any, count: int) -> ShownExample:
    """How the corpus itself goes on: the logit of each sequence's last token."""
    tokens = corpus.tokens[:count, -min(corpus.tokens.shape[1], 64) :]
    texts = corpus.token_text(0)[-tokens.shape[1] :]
    pieces = (tokens[:, :-1], tokens[:, -1], None)
    title = "How the corpus goes on: the logit of the next token"
    return _attribute(model, "corpus", title, pieces, (texts[:-1], texts[-1], ""))


@torch.no_grad()
def _attribute(model: Model, name: str, title: str, pieces: tuple, names: tuple) -> ShownExample:
    tokens, answers, foils = pieces
    cache = _cache(model, tokens)
    shares: dict[str, xr.DataArray] = {}
    for level in get_args(Level):
        found = attribute_logits(model, cache, answers, foils, level=level)
        shares[level] = found.isel(pos=-1)
    by_head = shares["head"].isel(component=shares["head"]["kind"].values == "head")
    strongest = [str(label) for label in top(by_head, HEADS_SHOWN)["component"].values]
    heads = [Site.parse(label) for label in strongest]
    sources = attribute_sources(model, cache, answers, foils, heads=strongest)
    patterns = [cache[Site("pattern", head.layer).hook_name][0, head.head] for head in heads]
    attention = xr.DataArray(
        np.stack([to_numpy(pattern) for pattern in patterns]),
        dims=("component", "dst", "src"),
        coords={"component": strongest},
        attrs={**sources.attrs, "unit": "probability", "long_name": "attention, first prompt"},
    )
    texts, answer, foil = names
    return ShownExample(name, title, texts, answer, foil, shares, sources, attention)


def _cache(model: Model, tokens: Int[Tensor, "prompt pos"]) -> Any:
    """What all levels, and the split by source token, read: one run for all of them."""
    weights = Weights.of(model)
    sites = [Site(name, layer) for layer in range(weights.n_layers) for name in ("pattern", "v")]
    names = {site.hook_name for site in sites}
    names.update(*(needed(model, level=level) for level in get_args(Level)))
    return model.run_with_cache(tokens.to(weights.device), names_filter=sorted(names))[1]
