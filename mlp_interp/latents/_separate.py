"""`separate`: single latents that tell kinds of text apart, beside the controls that do it, too."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mlp_interp.dictionaries import Dictionary, TopK
from mlp_interp.dictionaries.reading import check_given
from mlp_interp.latents.kinds import halves, kinds_of, of_all_kinds
from mlp_interp.latents.spliced import Batch, read_in, runs_of, sites_of
from mlp_interp.metrics.separation import auroc
from mlp_interp.models import describe
from mlp_interp.models.indices import count
from mlp_interp.models.options import check_choice, checked_seed
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.padding import Padded, which_count
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.texts import Prompts
from mlp_interp.results import single, variable
from mlp_interp.runs import Runner
from mlp_interp.sites import Site

__all__ = ["random_like", "separate"]

Pooling = Literal["max", "mean"]
Units = Callable[[Batch], Float[Tensor, "batch pos unit"]]


@own_mode()
@torch.no_grad()
def separate(
    model: Model,
    dictionary: Dictionary,
    texts: Mapping[str, Prompts],
    *,
    pooling: Pooling = "max",
    first: int = 1,
    batch_size: int = 32,
    seed: int = 0,
) -> xr.Dataset:
    """How well the best single latent tells each kind of text from all the others.

    The latent is chosen on one half of the texts, and what is told is its AUROC on the other half.
    Many directions separate kinds of text: so beside it stands the best of a dictionary of as many
    random directions with as many active, and the best neuron of the layer. A latent "found" says
    something only above these.

    Args:
        model: The model.
        dictionary: An SAE or transcoder for it.
        texts: At least two kinds by name, each with four texts (or lists of token ids) or more.
        pooling: What stands for a text: the ``"max"`` over its tokens, or the ``"mean"``.
        first: Position of each text from which on tokens count.
        batch_size: Texts that are run at a time.
        seed: Of the halves and of the random directions.

    Returns:
        A Dataset along ``source`` (latents, random, neurons) and ``kind``: ``auroc`` on the other
        half, ``auroc_chosen`` on the half that chose, ``best``, which latent or neuron.

    Raises:
        ValueError: Fewer kinds or texts, a text without tokens that count, another model.

    References:
        Gurnee et al., "Finding Neurons in a Haystack", 2023; Kantamneni et al., "Are Sparse
        Autoencoders Useful? A Case Study in Sparse Probing", 2025, on baselines.

    Example:
        >>> from mlp_interp import load_corpus, load_model
        >>> from mlp_interp.latents import train
        >>> model = load_model("nano")
        >>> corpus = load_corpus("nano", model, sequences=8, length=64)
        >>> sae = train(model, corpus, "2.mlp", n_latents=64, k=8, steps=3, batch_size=64)
        >>> kinds = {"numbers": ["1 2 3", "4 5 6", "7 8 9", "2 4 6"]}
        >>> kinds["words"] = ["the cat sat", "a dog ran", "the sun was hot", "he was sad"]
        >>> separate(model, sae, kinds).auroc.dims
        ('source', 'kind')
    """
    check_choice("pooling", pooling, get_args(Pooling))
    count("batch_size", batch_size)
    seed = checked_seed(seed)
    runner = Runner.of(model)
    check_given(runner.weights, dictionary)
    kinds = kinds_of(texts)
    padded, _ = of_all_kinds(model, texts)
    counts = which_count(model, padded.tokens, padded.real, first)
    if not bool(counts.any(1).all()):
        text = int((~counts.any(1)).nonzero()[0])
        raise ValueError(f"text {text} has no token that counts from first={first} on; wanted one")
    sources = _sources(runner, dictionary, padded, counts, batch_size, seed)
    sites = [*sites_of(runner.weights, [dictionary])]
    sites += [Site("post", dictionary.layer)] if "neurons" in sources else []
    pooled: dict[str, list[Tensor]] = {name: [] for name in sources}
    for batch in runs_of(runner, padded, counts, sites, batch_size):
        for name, units in sources.items():
            pooled[name].append(single(_pooled(units(batch), batch, pooling)).cpu())
    chooses = halves(kinds, seed)
    found = {
        name: _best(torch.cat(parts).numpy(), kinds, chooses) for name, parts in pooled.items()
    }
    told = {
        "auroc": ("auroc", "of the half that did not choose"),
        "auroc_chosen": ("auroc", "of the half that chose"),
        "best": ("index", "which latent or neuron"),
    }
    return xr.Dataset(
        {
            name: variable(
                ("source", "kind"),
                np.stack([some[n] for some in found.values()]),
                unit=unit,
                long_name=about,
            )
            for n, (name, (unit, about)) in enumerate(told.items())
        },
        coords={"source": list(found), "kind": list(texts)},
        attrs={
            **padded.attrs,
            **describe(model),
            "analysis": "kinds of text told apart",
            "dictionary": repr(dictionary),
            "unit": "auroc",
            "pooling": pooling,
            "first": first,
            "seed": seed,
        },
    )


def random_like(dictionary: Dictionary, mean: Tensor, k: int, seed: int) -> Dictionary:
    """A dictionary of random directions: as many latents, and `k` of them active.

    Args:
        dictionary: What it is the control of.
        mean: Of what is read, which is taken out first: else the directions nearest to it would be
            active everywhere.
        k: How many are active at a token.
        seed: Of the directions.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(dictionary.W_enc.shape, generator=generator, dtype=torch.float32)
    W_enc = F.normalize(directions, dim=0).to(dictionary.W_enc)
    return replace(
        dictionary,
        W_enc=W_enc,
        b_enc=torch.zeros_like(dictionary.b_enc),
        b_in=mean.to(W_enc),
        activation=TopK(k),
        normalize=None,
        attrs={},
    )


def _sources(
    runner: Runner,
    dictionary: Dictionary,
    padded: Padded,
    counts: Tensor,
    batch_size: int,
    seed: int,
) -> dict[str, Units]:
    """What gives each source's activations in a run."""
    sites, active, tokens = sites_of(runner.weights, [dictionary]), 0.0, 0
    mean = torch.zeros(dictionary.W_enc.shape[0], dtype=torch.float64)
    for batch in runs_of(runner, padded, counts, sites, batch_size):
        read = read_in(batch.run, dictionary)[0][batch.counts]
        mean += read.double().sum(0).cpu()
        active += float(dictionary.encode(read).active.sum())
        tokens += len(read)
    k = max(1, round(active / tokens))
    control = random_like(dictionary, mean / tokens, k, seed)
    sources: dict[str, Units] = {"latents": _of(dictionary), "random": _of(control)}
    return sources | ({"neurons": _neurons(dictionary.layer)} if runner.weights.has_mlps else {})


def _of(dictionary: Dictionary) -> Units:
    return lambda batch: dictionary.encode(read_in(batch.run, dictionary)[0]).dense()


def _neurons(layer: int) -> Units:
    return lambda batch: batch.run.at(Site("post", layer))


def _pooled(
    x: Float[Tensor, "batch pos unit"], batch: Batch, pooling: str
) -> Float[Tensor, "batch unit"]:
    counts = batch.counts[..., None].to(x.device)
    if pooling == "max":
        return x.masked_fill(~counts, -torch.inf).amax(1)
    return (x * counts).sum(1) / counts.sum(1)


def _best(
    values: np.ndarray, kinds: np.ndarray, chooses: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """AUROC of each kind's best unit on the other half and on its own, and which it is."""
    ranked = []
    for kind in np.unique(kinds):
        own = kinds == kind
        scores = np.asarray(auroc(values[chooses & own], values[chooses & ~own]))
        best = int(scores.argmax())
        one = values[:, best]
        other = float(auroc(one[~chooses & own], one[~chooses & ~own]))
        ranked.append((other, float(scores[best]), best))
    other, chosen, best = zip(*ranked, strict=True)
    return np.array(other), np.array(chosen), np.array(best)
