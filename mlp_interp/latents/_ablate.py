"""`ablate`: what the prediction loses without single latents, or without what none explains."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor

from mlp_interp.ablation.effects import account
from mlp_interp.dictionaries import Dictionary, Latents
from mlp_interp.dictionaries.naming import Latent
from mlp_interp.edits import Edit
from mlp_interp.latents.named import named
from mlp_interp.latents.spliced import check_one_layer, read_in, sites_of
from mlp_interp.metrics import Effects
from mlp_interp.metrics.rows import chunks, joined, next_tokens, of_text, read_changes
from mlp_interp.metrics.stream import stream_change
from mlp_interp.models import Weights, describe
from mlp_interp.models.options import check_choice
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.padding import which_count
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.texts import padded_texts
from mlp_interp.residual.dictionaries import summed
from mlp_interp.runs import Run, Runner
from mlp_interp.runs.effects import edit_effects
from mlp_interp.sites import Site

__all__ = ["ablate"]

Path = Literal["total", "direct"]


@own_mode()
@torch.no_grad()
def ablate(
    model: Model,
    tokens: Any,
    dictionary: Dictionary,
    latents: Latent | Sequence[Latent] | None = None,
    *,
    path: Path = "total",
    attention_mask: Any = None,
    first: int = 1,
) -> xr.Dataset:
    """What the prediction loses when single latents are set to zero, or the error is left out.

    Each alone; what the others write, and the error unless it is what is left out, stay as they
    are. Of a TopK no other latent takes the place of the one that is gone.

    A small effect does not say that a latent is idle: others that read the same may do its work
    again, and what it writes may matter to later tokens only. Compare with the error's, which is a
    component like they are, and is often the largest.

    Args:
        model: The model.
        tokens: As of `mlp_interp.ablate_total`.
        dictionary: An SAE or transcoder for it, of one layer. With ``path="direct"`` also one of a
            cross-layer transcoder, whose latents are taken out with all that they write to all
            layers.
        latents: Which, each alone, one or several: numbers, labels as ``"L2F17"``, or
            ``"2.error"``. None for the error and all latents that are active at a token that
            counts, each a pass of its own. Of a cross-layer transcoder there is no error: what is
            left over at a place is that of all the dictionaries that write there.
        path: ``"total"`` lets later layers read the stream without it; ``"direct"`` takes it out of
            the final stream, whose norm is recomputed.
        attention_mask: As of `mlp_interp.ablate_total`.
        first: Position of each text from which on latents are taken away, and count in means.

    Returns:
        A Dataset as of `mlp_interp.ablate_total`; of a single text, errors are NaN.

    Raises:
        ValueError: Latents that it does not have, or twice; a dictionary of several layers or of
            another model; unknown options.

    Example:
        >>> from mlp_interp import load_corpus, load_model
        >>> from mlp_interp.latents import train
        >>> model = load_model("nano")
        >>> corpus = load_corpus("nano", model, sequences=8, length=64)
        >>> sae = train(model, corpus, "2.mlp", n_latents=64, k=8, steps=3, batch_size=64)
        >>> found = ablate(model, corpus[:2], sae, [3, "L2F17", "2.error"])
        >>> found.component.values.tolist(), bool((found.kl_mean >= 0).all())
        (['L2F3', 'L2F17', '2.error'], True)
    """
    check_choice("path", path, get_args(Path))
    runner = Runner.of(model)
    given, (dictionary, others) = dictionary, _checked(runner.weights, dictionary, path)
    sites = None if latents is None else named([dictionary], latents, others=others)
    texts = padded_texts(model, tokens, attention_mask)
    counts = which_count(model, texts.tokens, texts.real, first)
    clean = runner.run(texts.tokens.long(), sites=sites_of(runner.weights, [dictionary]))
    read, written = read_in(clean, dictionary)
    rebuilt, active = dictionary(read)
    if sites is None:
        sites = [*_active(dictionary, active, counts), *others.values()]
    if not sites:
        raise ValueError(f"no latent of {given!r} is active at a token that counts; wanted others")
    if path == "total":
        edits = ([_without(dictionary, site, counts)] for site in sites)
        effects = joined([*edit_effects(runner, clean, edits, real=texts.real)])
    else:
        parts = _Parts(dictionary, active, written - rebuilt.to(written), counts)
        effects = _direct(runner, clean, (parts(site) for site in sites), texts.real)
    return account(
        effects,
        {site.label: (site,) for site in sites},
        positions=range(texts.tokens.shape[1]),
        counts=counts,
        attrs={
            **texts.attrs,
            **describe(model),
            "analysis": f"{path} ablation of latents",
            "dictionary": repr(given),
            "baseline": "zero",
            "first": first,
            "exact": 1,
        },
    )


def _checked(
    weights: Weights, dictionary: Dictionary, path: Path
) -> tuple[Dictionary, dict[str, Site]]:
    """What writes to the final stream all that a dictionary writes; and its error, if it has one.

    Raises:
        ValueError: It is of several layers and later ones shall react. Their MLPs would, to what is
            gone before them, and lose what the latent writes there, too: the same part, twice.
    """
    if path == "direct" and isinstance(dictionary, Dictionary) and dictionary.spans > 1:
        dictionary.check(weights)
        return summed(dictionary, dictionary.sites), {}
    check_one_layer(weights, dictionary)
    return dictionary, {"error": Site("error", dictionary.layer)}


def _active(
    dictionary: Dictionary, active: Latents, counts: Bool[Tensor, "batch pos"]
) -> list[Site]:
    """Latents that are active at a token that counts."""
    on = active.active & counts.to(active.values.device)[..., None]
    chosen = active.indices[on].unique().tolist()
    return [Site("latents", dictionary.layer, neuron=n) for n in chosen]


def _without(dictionary: Dictionary, site: Site, counts: Bool[Tensor, "batch pos"]) -> Edit:
    if site.name == "error":
        return Edit.latents(dictionary, {}, error="drop", where=counts)
    return Edit.latents(dictionary, {site.unit: ("set", 0.0)}, where=counts)


class _Parts:
    """What latents, or the error, write to the stream at the tokens that count."""

    def __init__(
        self, dictionary: Dictionary, active: Latents, error: Tensor, counts: Tensor
    ) -> None:
        self.dictionary, self.active, self.error = dictionary, active, error
        self.counts = counts.to(error.device)[..., None]

    def __call__(self, site: Site) -> Float[Tensor, "batch pos d_model"]:
        if site.name == "error":
            return self.error * self.counts
        strength = self.active.written(self.active.of([site.unit]))
        return (strength * self.dictionary.W_dec[site.unit]).to(self.error) * self.counts


def _direct(
    runner: Runner,
    clean: Run,
    removed: Iterator[Float[Tensor, "batch pos d_model"]],
    real: Bool[Tensor, "batch pos"] | None,
) -> Effects:
    """Effects of taking vectors out of the final stream."""
    unembed, targets = runner.unembed, next_tokens(clean.tokens, real)
    total, normalized = unembed.norm.keep(clean.final), unembed.normalize(clean.final)
    pieces = []
    for some in chunks(removed, total.numel()):
        kept = unembed.norm.keep(torch.stack(some))
        change = stream_change(unembed, total, kept, norm="recompute")
        pieces.append(read_changes(unembed, normalized, targets, change))
    return of_text(joined(pieces), real)
