"""What a neuron's weights say of it: how long, in which direction, towards which tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from mlp_interp.models import Weights, describe
from mlp_interp.models.indices import indices
from mlp_interp.models.options import checked_count
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.models.vectors import Receptor, Vectors, unit
from mlp_interp.models.vocabulary import Best, LogitMoments, TokenDirections, absolute
from mlp_interp.neurons.weights.volume import activation_volume
from mlp_interp.prompts.reading import texts
from mlp_interp.results import to_numpy, variable
from mlp_interp.sites import Site, SiteLike, component_coords

__all__ = ["neuron_weights", "promoted_tokens", "tokens_along"]

_VECTORS = 256
"""Neurons at a time that are compared with the vocabulary."""

_ABOUT = {  # unit and long name of each variable
    "receptor_norm": ("L2 norm", "norm of the receptor, the column of W_in (gated: W_gate)"),
    "receptor_norm_folded": ("L2 norm", "norm of the receptor, the norm's scale folded in"),
    "value_norm": ("L2 norm", "norm of the value vector, the row of W_out"),
    "value_norm_folded": ("L2 norm", "norm of what later norms let through of the value vector"),
    "bias": ("pre-activation", "b_in (gated: b_gate)"),
    "bias_folded": ("pre-activation", "the bias and what the norm's shift adds to it"),
    "cosine": ("cosine", "receptor and value vector"),
    "cosine_folded": ("cosine", "receptor and value vector, as the norms see them"),
    "linear_norm": ("L2 norm", "norm of the linear receptor, the column of W_in"),
    "linear_norm_folded": ("L2 norm", "norm of the linear receptor, the norm's scale folded in"),
    "cosine_linear": ("cosine", "receptor and linear receptor, as the norm sees them"),
    "cosine_linear_value": ("cosine", "linear receptor and value vector, as the norms see them"),
    "activation_volume": ("fraction", "share of the stream's directions that fire the neuron"),
    "cosine_embed": ("cosine", "receptor and the embedding closest to it or its opposite"),
    "closest_embed": ("token id", "token of that embedding"),
    "cosine_linear_embed": ("cosine", "linear receptor and the embedding closest to its line"),
    "closest_linear_embed": ("token id", "token of that embedding"),
    "cosine_unembed": ("cosine", "value vector and the readout direction closest to its line"),
    "closest_unembed": ("token id", "token of that direction"),
    "promoted": ("token id", "tokens whose logits the value vector raises most"),
    "promoted_logit": ("logits", "raise of their logits over the mean, for sigma = 1"),
    "suppressed": ("token id", "tokens whose logits the value vector lowers most"),
    "suppressed_logit": ("logits", "change of their logits over the mean, for sigma = 1"),
    "logit_variance": ("logits^2", "variance over the vocabulary of the value vector's logits"),
    "logit_skew": ("1", "skew over the vocabulary of the value vector's logits"),
    "logit_kurtosis": ("1", "excess kurtosis over the vocabulary of the value vector's logits"),
}


@own_mode()
@torch.no_grad()
def neuron_weights(
    model: Model,
    *,
    layers: int | Sequence[int] | None = None,
    k: int = 10,
    tokens: bool = True,
    progress: bool = False,
) -> xr.Dataset:
    """What the weights of every neuron say: norms, angles, firing volume, promoted tokens.

    The *receptor* of a neuron is its column ``w`` of ``W_in``, its *value vector* ``v`` its row of
    ``W_out``. Numbers called ``folded``, and all that compare with tokens, are of the receptor
    ``D diag(gamma) w`` that the normalised stream is multiplied by and of ``D v``, the part of the
    value vector that later norms let through; ``D`` takes the mean over ``d_model`` out where norms
    are LayerNorms. These are the same for raw and processed weights of a model. The others are of
    the weights as they are held, which processing changes.

    A *gated* neuron writes ``act(g . y) (u . y) v``: it has two receptors. Here the receptor is the
    gate ``g``, which decides whether it fires and is what ``pre`` is read with; ``u``, its *linear*
    receptor, decides with which sign and how much it writes. Only ``g`` and the product of the
    other two mean something by themselves: ``(u, v)`` and ``(-u, -v)`` are the same neuron. So
    promoted tokens are raised where ``u . y`` is positive and lowered where it is negative, and the
    suppressed ones the other way round.

    Logits of a value vector are ``v W'`` through the folded readout, less their mean over the
    vocabulary: what an activation of 1 would add directly to the logits of a stream with ``sigma =
    1``. They say nothing of what later layers make of the vector.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        layers: Which layers; None for all.
        k: How many tokens to name for each neuron and sign.
        tokens: Whether to compare with the vocabulary, which takes nearly all of the time: two
            products of ``neurons x d_model x d_vocab``.
        progress: Show a progress bar.

    Returns:
        A Dataset over ``layer, neuron``:

        - ``receptor_norm``, ``receptor_norm_folded``, ``value_norm``, ``value_norm_folded``;
        - ``bias`` (``b_in``) and ``bias_folded`` (``b_in + beta . w``);
        - ``cosine`` and ``cosine_folded`` between receptor and value vector;
        - ``activation_volume``: the share of all directions of the stream that fire the neuron
          (pre-activation above zero), with the norm's epsilon neglected; NaN without a norm.
          Streams of a model do not point everywhere alike, so the share of tokens on which it fires
          is another number;

        for gated neurons

        - ``linear_norm``, ``linear_norm_folded``; ``cosine_linear`` between the two receptors and
          ``cosine_linear_value`` between the linear one and the value vector;

        and with `tokens`

        - ``cosine_embed``: the receptor's cosine to the row of ``W_E`` for which it is largest in
          size, and that token's ``closest_embed`` (of gated neurons also ``..._linear_embed``);
          ``cosine_unembed`` and ``closest_unembed``: the same for the value vector and the columns
          of the readout, less their mean;
        - ``promoted``, ``suppressed`` with ``promoted_logit``, ``suppressed_logit``, along a
          further ``rank``: the tokens with the largest and the smallest logits;
        - ``logit_variance``, ``logit_skew`` and ``logit_kurtosis`` (excess, 0 for a normal
          distribution): moments of the logits over the vocabulary. A large kurtosis speaks of few
          tokens, a skew of its sign;
        - for each kind of token its ``..._text``.

        Cosines with a vector of zeros are 0. A vocabulary padded with ids beyond the tokenizer's
        takes part with all of them.

    Raises:
        ValueError: Layers that the model does not have; `k` outside 1 to ``d_vocab``; weights that
            are not finite.

    References:
        Geva et al., "Transformer Feed-Forward Layers Build Predictions by Promoting Concepts in the
        Vocabulary Space", 2022; Gurnee et al., "Universal Neurons in GPT2 Language Models", 2024,
        on moments of the logits.

    Example:
        >>> from mlp_interp import load_model
        >>> found = neuron_weights(load_model("nano"), layers=[3], k=3)
        >>> found.promoted_text.dims, found.promoted.shape
        (('layer', 'neuron', 'rank'), (1, 768, 3))
        >>> bool((found.promoted_logit > found.suppressed_logit).all())
        True
    """
    weights = Weights.of(model)
    listed = indices("layers", layers, weights.n_layers)
    checked_count(k, weights.d_vocab, "tokens")
    compare = _Comparison.of(weights, k) if tokens else None
    rows = []
    for layer in tqdm(listed, desc="neurons", disable=not progress):
        vectors = Vectors.of(weights, layer)
        found = {name: to_numpy(x) for name, x in _geometry(vectors).items()}
        found["activation_volume"] = activation_volume(
            found["receptor_norm_folded"],
            found["bias_folded"],
            weights.d_model,
            weights.norm.kind,
        )
        if compare is not None:
            found |= {name: to_numpy(x) for name, x in compare(vectors).items()}
        rows.append(found)
    stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    coords = {"layer": list(listed), "neuron": np.arange(weights.d_mlp)}
    return _dataset(model, stacked, ("layer", "neuron"), coords)


@own_mode()
@torch.no_grad()
def promoted_tokens(model: Model, neuron: SiteLike, *, k: int = 10) -> xr.Dataset:
    """Tokens that one neuron's value vector raises and lowers most, read through the readout.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        neuron: A label (``"L3N669"``), a `Site`, or the pair ``(layer, neuron)``.
        k: How many tokens of each sign.

    Returns:
        A Dataset along ``rank`` with ``promoted``, ``promoted_logit``, ``promoted_text`` and the
        same of ``suppressed``: the row of this neuron in `neuron_weights`, which says what the
        numbers mean.

    Raises:
        ValueError: The model has no such neuron; `k` outside 1 to ``d_vocab``; weights that are not
            finite.

    Example:
        >>> from mlp_interp import load_model
        >>> found = promoted_tokens(load_model("nano"), "L3N669", k=3)
        >>> str(found.component.values), sorted(found.data_vars)[:3]
        ('L3N669', ['promoted', 'promoted_logit', 'promoted_text'])
    """
    weights = Weights.of(model)
    site = weights.place(neuron, kind="neuron", argument="neuron")
    checked_count(k, weights.d_vocab, "tokens")
    value = Vectors.of(weights, site.layer or 0).value_folded[site.unit]
    return tokens_along(model, site, value, k)


def tokens_along(model: Model, site: Site, value: Float[Tensor, " d_model"], k: int) -> xr.Dataset:
    """Tokens that a component raises and lowers most with what it writes, as `promoted_tokens`.

    Args:
        model: The model.
        site: Which component it is.
        value: What later norms let through of what it writes.
        k: How many tokens of each sign.
    """
    found = _read_out(TokenDirections.unembedding(Weights.of(model)), value[None], k)
    names = component_coords([site])
    coords = {name: names[name][1][0] for name in ("component", "layer", "neuron")}
    return _dataset(model, {name: to_numpy(x[0]) for name, x in found.items()}, (), coords)


def _geometry(x: Vectors) -> dict[str, Float[Tensor, " neuron"]]:
    return {
        "receptor_norm": x.receptor.held.norm(dim=-1),
        "receptor_norm_folded": x.receptor.folded.norm(dim=-1),
        "value_norm": x.value.norm(dim=-1),
        "value_norm_folded": x.value_folded.norm(dim=-1),
        "bias": x.receptor.bias,
        "bias_folded": x.receptor.bias_folded,
        "cosine": _cosine(x.receptor.held, x.value),
        "cosine_folded": _cosine(x.receptor.folded, x.value_folded),
    } | (_linear(x, x.linear) if x.linear is not None else {})


def _linear(x: Vectors, linear: Receptor) -> dict[str, Float[Tensor, " neuron"]]:
    return {
        "linear_norm": linear.held.norm(dim=-1),
        "linear_norm_folded": linear.folded.norm(dim=-1),
        "cosine_linear": _cosine(x.receptor.folded, linear.folded),
        "cosine_linear_value": _cosine(linear.folded, x.value_folded),
    }


def _cosine(
    x: Float[Tensor, "neuron d_model"], y: Float[Tensor, "neuron d_model"]
) -> Float[Tensor, " neuron"]:
    return (unit(x) * unit(y)).sum(-1)


@dataclass(frozen=True)
class _Comparison:
    """Of a layer's neurons with the vocabulary, at both of its ends."""

    embed: TokenDirections
    unembed: TokenDirections
    k: int

    @classmethod
    def of(cls, weights: Weights, k: int) -> "_Comparison":
        return cls(TokenDirections.embedding(weights), TokenDirections.unembedding(weights), k)

    def __call__(self, vectors: Vectors) -> dict[str, Tensor]:
        receptors = {"embed": vectors.receptor.folded}
        if vectors.linear is not None:
            receptors["linear_embed"] = vectors.linear.folded
        parts = []
        for rows in torch.arange(len(vectors.value)).split(_VECTORS):
            value = vectors.value_folded[rows]
            near = {name: self._embeddings(unit(x[rows])) for name, x in receptors.items()}
            near["unembed"], moments = Best(1, absolute), LogitMoments()
            part = _read_out(self.unembed, value, self.k, near["unembed"], moments)
            for name, best in near.items():
                cosine, token = best.numbers_and_tokens()
                part |= {f"cosine_{name}": cosine[:, 0], f"closest_{name}": token[:, 0]}
            variance, skew, kurtosis = moments.result()
            part["logit_variance"] = variance * value.square().sum(-1)
            part |= {"logit_skew": skew, "logit_kurtosis": kurtosis}
            parts.append(part)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _embeddings(self, receptors: Float[Tensor, "neuron d_model"]) -> Best:
        """The embedding nearest to each receptor's line."""
        near = Best(1, absolute)
        for tokens, x in self.embed.read(receptors):
            near.add(tokens, x * self.embed.inverse[tokens])
        return near


def _read_out(
    unembed: TokenDirections,
    value: Float[Tensor, "neuron d_model"],
    k: int,
    near: Best | None = None,
    moments: LogitMoments | None = None,
) -> dict[str, Tensor]:
    """Promoted and suppressed tokens of value vectors; more is observed where it is wanted."""
    # Directions alone: powers of the logits of a tiny vector would underflow.
    direction, length = unit(value), value.norm(dim=-1, keepdim=True)
    best = {"promoted": Best(k, torch.positive), "suppressed": Best(k, torch.neg)}
    for tokens, x in unembed.read(direction):
        for seen in best.values():
            seen.add(tokens, x)
        if moments is not None:
            moments.add(tokens, x)
        if near is not None:
            near.add(tokens, x * unembed.inverse[tokens])
    result = {}
    for name, seen in best.items():
        logits, ids = seen.numbers_and_tokens()
        result |= {name: ids, f"{name}_logit": logits * length}
    return result


def _dataset(
    model: Model, found: Mapping[str, np.ndarray], dims: tuple[str, ...], coords: Mapping[str, Any]
) -> xr.Dataset:
    variables = {}
    for name, (unit_name, long_name) in _ABOUT.items():
        if name not in found:
            continue
        values = found[name]
        own = (*dims, "rank")[: values.ndim]
        variables[name] = variable(own, values, unit=unit_name, long_name=long_name)
        if unit_name == "token id":
            variables[f"{name}_text"] = variable(
                own, texts(model, values), unit="text", long_name=f"{long_name}, as text"
            )
    ranks = found["promoted"].shape[-1] if "promoted" in found else 0
    return xr.Dataset(
        variables,
        coords={**coords, **({"rank": np.arange(ranks)} if ranks else {})},
        attrs={
            **describe(model),
            "unit": "see each variable",
            "long_name": "what the weights of neurons say",
            "exact": 1,
            "data": "the weights alone",
        },
    )
