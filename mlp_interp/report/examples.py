"""The parts of the report that look at single prompts: attributions, sources, patterns."""

from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
import xarray as xr
from jaxtyping import Int
from torch import Tensor

from mlp_interp import prompts as tasks
from mlp_interp.ablation import ablate_direct
from mlp_interp.attribution import attribute_logits, attribute_sources
from mlp_interp.models import Weights
from mlp_interp.models.protocol import Model
from mlp_interp.residual import Level, cache_for, needed
from mlp_interp.results import to_numpy
from mlp_interp.sites import Site
from mlp_interp.tables import top

TASKS = {
    "ioi": "Indirect objects: who was given something?",
    "facts": "Facts: a country's capital, a landmark's city",
    "agreement": "Agreement: singular or plural verb, across a distractor?",
}
HEADS_SHOWN = 6
EXCERPT_ROWS = 3
EXCERPT_TOKENS = 160


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


@dataclass(frozen=True)
class Excerpt:
    """A piece of the corpus with the effect of sub-updates on the prediction of each token.

    Attributes:
        tokens: The tokens as text.
        effects: Rise of the loss at each token when a sub-update is removed, [component, pos]; the
            first token is never predicted and has 0.
    """

    tokens: list[str]
    effects: xr.DataArray


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


def excerpt(model: Model, corpus: Any, importance: xr.Dataset) -> Excerpt:
    """The first sequence, and what removing each of the strongest sub-updates does to its tokens.

    Direct effects: later layers do not react. Aligned with the token that is predicted, not with
    the position that predicts it.
    """
    tokens = corpus.tokens[:1, :EXCERPT_TOKENS]
    chosen = importance.isel(component=np.isin(importance["kind"].values, ("attn", "mlp")))
    strongest = top(chosen["kl_direct"], EXCERPT_ROWS)["component"].values
    cache = cache_for(model, tokens)
    result = ablate_direct(model, cache, [str(label) for label in strongest])
    effects = result["delta_loss"].isel(prompt=0).transpose("component", "pos")
    length = tokens.shape[1]
    aligned = np.zeros((len(strongest), length))
    aligned[:, 1:] = effects.values[:, : length - 1]
    return Excerpt(
        corpus.token_text(0)[:length],
        xr.DataArray(
            aligned,
            dims=("component", "pos"),
            coords={"component": list(map(str, strongest)), "pos": np.arange(length)},
            attrs={**effects.attrs, "unit": "nats", "long_name": "rise of the token's loss"},
        ),
    )
