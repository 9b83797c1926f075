"""Neurons that another model has as well: another seed, another revision."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from mlp_interp.corpus.tokenizers import tokenizer_digest
from mlp_interp.features.crossed import Crossed, rectangles
from mlp_interp.features.partners import Partners
from mlp_interp.models import Forward, HookForward, Weights, describe, forward_of
from mlp_interp.models.indices import count
from mlp_interp.models.options import check_choice, checked_count, checked_seed
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.padding import Padded, which_count
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.texts import padded_texts
from mlp_interp.results import variable
from mlp_interp.sites import GATED, NEURONS

__all__ = ["universal"]


@own_mode()
@torch.no_grad()
def universal(
    model: Model,
    other: Model,
    corpus: Any,
    *,
    top: int = 5,
    site: str = "post",
    first: int = 1,
    rotations: int = 1,
    seed: int = 0,
    batch_size: int = 16,
    memory: float = 2.0,
) -> xr.Dataset:
    """Which neurons does another model have, too?

    Every neuron's activation is correlated with that of every neuron of the other model over the
    tokens of a corpus. Two models of one architecture that began with other random numbers have
    their neurons in no common order; where a neuron of one has a partner in the other that fires
    where it fires, training found it twice.

    A high correlation alone says little: activations of wide layers span much of what can be said
    of a token, so *some* direction always correlates. `excess` is what the neurons of the other
    model do beyond directions of its activation space that mean nothing, its neurons turned by a
    random rotation. Above 0, the other model has the feature as a *neuron*. Excess near 0 does
    not say that the feature is absent: it may be there as a direction.

    The models run side by side. Correlations are never all held: a pass crosses as many pairs of
    layers as `memory` allows, and of each pair only the best partners and the maxima are kept.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        other: Another model that reads the same tokens; of any size.
        corpus: Texts, tokens ``[sequence, pos]``, padded or not, or a `Corpus`. Some thousand
            tokens at least: with few, noise correlates (in `rotated` as well).
        top: How many partners to keep of each neuron.
        site: ``"post"``, ``"pre"``, or ``"pre_linear"`` of gated MLPs.
        first: Position from which on tokens count: 1 leaves out the first, and BOS.
        rotations: How many random rotations to average `rotated` over; 0 leaves it out.
        seed: Of the rotations.
        batch_size: Texts that are run at once.
        memory: Gigabytes for sums of products. With less than all pairs of layers take (eight bytes
            for each pair of neurons) the corpus is run several times.

    Returns:
        A Dataset along ``layer`` and ``neuron`` of the first model; NaN for neurons that are the
        same at every token. Along ``rank``: `correlation` with the best partners, `partner_layer`
        and `partner_neuron`. Along ``other_layer``: `by_layer`, the highest with each layer of the
        other model. `mutual`: whether the best partner correlates with no other neuron more. Along
        ``draw``: `rotated`, the highest with any turned neuron. `excess`, the first
        ``correlation`` less the mean of `rotated`. ``attrs["entries"]`` is the number of tokens:
        the standard error of a correlation r is about ``(1 - r^2) / sqrt(entries)``, more where
        tokens of a text are alike.

    Raises:
        ValueError: Models of other tokenizers or vocabularies, options out of range, texts without
            tokens that count, activations that are not finite.

    References:
        Gurnee et al., "Universal Neurons in GPT2 Language Models", 2024, arXiv:2401.12181.

    Example:
        >>> from mlp_interp import load_corpus, load_model
        >>> model = load_model("nano")
        >>> corpus = load_corpus("nano", model, sequences=4, length=32)
        >>> found = universal(model, model, corpus, top=2, rotations=0)
        >>> bool((found.partner_neuron[..., 0] == found.neuron).mean() > 0.99)
        True
    """
    pair = [Weights.of(model), Weights.of(other)]
    check_choice("site", site, (*NEURONS, *GATED))
    for weights in pair:
        weights.check_names([site])
    checked_count(top, pair[1].d_mlp, "neurons in a layer of the other model", name="top")
    count("rotations", rotations, least=0)
    count("batch_size", batch_size)
    checked_seed(seed)
    if not memory > 0:
        raise ValueError(f"memory={memory}; wanted gigabytes, above 0")
    _check_tokenizers(model, other)
    texts = padded_texts(model, corpus)
    for weights in pair:
        weights.checked(torch.stack(texts.tokens.aminmax())[:, None].long())
    counts = which_count(model, texts.tokens, texts.real, first)
    first_layers, other_layers = (range(weights.n_layers) for weights in pair)
    sizes = pair[0].d_mlp, pair[1].d_mlp
    partners = Partners(first_layers, other_layers, sizes, top=top, rotations=rotations, seed=seed)
    bytes_of_pair = 8 * sizes[1] * max(sizes)
    passes = rectangles(first_layers, other_layers, bytes_of_pair, memory * 1e9)
    forwards = forward_of(model), forward_of(other)
    for ours, theirs in passes:
        crossed = Crossed(
            dict.fromkeys(ours, sizes[0]), dict.fromkeys(theirs, sizes[1]), within=rotations > 0
        )
        for tokens, counted in _batches(texts, counts, batch_size):
            seen = [
                _activations(forward, tokens, counted, site, chosen)
                for forward, chosen in zip(forwards, (ours, theirs), strict=True)
            ]
            crossed.add(seen[0], seen[1])
        partners.see(crossed)
    return _result(partners, texts, int(counts.sum())).assign_attrs(
        {
            **{f"other_{name}": value for name, value in describe(other).items()},
            **describe(model),
            "seed": seed,
            "site": site,
            "passes": len(passes),
            "engine": forwards[0].engine,
        }
    )


def _check_tokenizers(model: Any, other: Any) -> None:
    digests = [tokenizer_digest(getattr(m, "tokenizer", None)) for m in (model, other)]
    if all(digests) and digests[0] != digests[1]:
        raise ValueError(
            f"other={other.cfg.model_name!r} has another tokenizer than {model.cfg.model_name!r}; "
            "wanted models that read the same tokens"
        )


def _batches(texts: Padded, counts: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(texts.tokens.split(size), counts.split(size), strict=True)


def _activations(
    forward: Forward | HookForward,
    tokens: Tensor,
    counted: Tensor,
    site: str,
    layers: Sequence[int],
) -> dict[int, Tensor]:
    """What some layers' neurons do at the tokens that count ``[token, neuron]``."""
    seen: dict[int, Tensor] = {}

    def observe(name: str, layer: int, x: Tensor) -> Tensor:
        if name == site and layer in layers:
            seen[layer] = x[counted.to(x.device)]
        return x

    embedded = forward.embed(tokens.long().to(forward.weights.device))
    forward.run(embedded, stop=max(layers) + 1, observe=observe)
    for layer, x in seen.items():
        if not bool(x.isfinite().all()):
            raise ValueError(f"activations of layer {layer} are not finite: check_model says why")
    return seen


def _result(partners: Partners, texts: Padded, entries: int) -> xr.Dataset:
    dims, unit = ("layer", "neuron"), "correlation"
    dead = partners.constant.numpy()
    value = np.where(dead[..., None], np.nan, partners.value.numpy())
    rotated = np.where(dead, np.nan, partners.rotated.numpy())
    mutual = partners.mutual().numpy() & ~dead
    excess = value[..., 0] - (rotated.mean(0) if len(rotated) else np.nan)
    ranked = (*dims, "rank")
    return xr.Dataset(
        {
            "correlation": variable(ranked, value, unit=unit, long_name="with the best partners"),
            "partner_layer": (ranked, partners.layer.numpy()),
            "partner_neuron": (ranked, partners.neuron.numpy()),
            "by_layer": variable(
                (*dims, "other_layer"),
                np.where(dead[..., None], np.nan, partners.by_layer.numpy()),
                unit=unit,
                long_name="the highest with each layer",
            ),
            "mutual": variable(dims, mutual, unit="truth", long_name="best partner of each other"),
            "rotated": variable(
                ("draw", *dims), rotated, unit=unit, long_name="the highest with turned neurons"
            ),
            "excess": variable(dims, excess, unit=unit, long_name="beyond turned neurons"),
        },
        coords={
            "layer": list(partners.ours),
            "neuron": np.arange(value.shape[1]),
            "rank": np.arange(1, value.shape[2] + 1),
            "other_layer": list(partners.theirs_layers),
        },
        attrs={
            **texts.attrs,
            "analysis": "universal neurons",
            "long_name": "how alike neurons of two models are",
            "unit": unit,
            "exact": 1,
            "entries": entries,
        },
    )
