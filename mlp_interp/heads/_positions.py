"""How much attention a head pays to each distance, whatever the tokens are."""

from dataclasses import dataclass
from typing import Any

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mlp_interp.heads._turns import Turns
from mlp_interp.heads._vocabulary import SAMPLE, Moments, Vocabulary
from mlp_interp.heads._which import by_layer, checked_distances, head_coords, listed_heads
from mlp_interp.models import Weights, describe
from mlp_interp.models.heads import Heads
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.models.token_streams import TokenSource
from mlp_interp.results import variable

__all__ = ["Kernels", "check_rotated", "kernels", "positions"]

_SPREAD = "standard deviation of scores over {}; the squares of the three add up to the variance"


@dataclass(frozen=True)
class Kernels:
    """Of one layer's heads, by distance.

    Attributes:
        mean: Mean score over pairs of tokens.
        query: Variance of scores that the query's token alone makes.
        key: The same of the key's token.
        both: What is left: how much the two depend on each other.
        bias: Score of the biases alone.
    """

    mean: Float[Tensor, "head distance"]
    query: Float[Tensor, "head distance"]
    key: Float[Tensor, "head distance"]
    both: Float[Tensor, "head distance"]
    bias: Float[Tensor, "head distance"]


def kernels(heads: Heads, moments: Moments, distances: int) -> Kernels:
    """From the mean and covariance of what the heads read of tokens.

    With queries ``q`` and keys ``k`` of independent tokens, a score ``s q R k`` has the mean
    ``s E[q] R E[k]``, and a variance that falls into three parts: of ``q R E[k]``, of ``E[q] R k``,
    and of ``(q - E[q]) R (k - E[k])``.
    """
    between = heads.relative(range(distances)).double()
    covariance = moments.covariance.to(heads.Q)
    q = moments.mean @ heads.Q.double() + heads.b_q.double()
    k = moments.mean @ heads.K.double() + heads.b_k.double()
    of_q, of_k = ((W.mT @ (covariance @ W)).double() for W in (heads.Q, heads.K))
    scale = heads.scale
    towards = torch.einsum("tde,he->htd", between, k)  # what queries are multiplied by
    turned = torch.einsum("hd,tde->hte", q, between)
    return Kernels(
        mean=scale * torch.einsum("hd,htd->ht", q, towards),
        query=scale**2 * torch.einsum("htd,hde,hte->ht", towards, of_q, towards),
        key=scale**2 * torch.einsum("htd,hde,hte->ht", turned, of_k, turned),
        both=scale**2 * Turns.within(heads, between).traces(of_q, of_k),
        bias=scale * torch.einsum("hd,tde,he->ht", heads.b_q.double(), between, heads.b_k.double()),
    )


def check_rotated(weights: Weights, what: str) -> None:
    """Refuse a model whose scores are no functions of distances.

    Raises:
        ValueError: It adds learned positions to the embedding.
    """
    if weights.has_pos_embed:
        raise ValueError(
            f"{what}: model={weights.model.cfg.model_name!r} adds learned positions to its "
            "embedding, so that scores depend on both positions; wanted a model that rotates "
            "positions in"
        )


@own_mode()
@torch.no_grad()
def positions(
    model: Model,
    *,
    heads: Any = None,
    source: TokenSource = "extended",
    distances: int = 64,
    frequencies: Any = None,
    sample: int | None = SAMPLE,
    seed: int = 0,
) -> xr.Dataset:
    """The mean score of each head at each distance, from weights alone, and how tokens spread it.

    With a rotary embedding a score depends on the query's token, the key's token and the distance
    between them. Here both tokens are drawn independently of each other (and of the distance) from
    the vocabulary, or from a `sample` of it: ``score`` is the exact mean over these, ``kernel`` its
    softmax over the distances, the attention of a head that only sees positions. A head attends by
    position where the kernel has a peak and the spreads are smaller than its height.

    In layer 0 these are the scores of the model on random tokens. In later layers, tokens are what
    `source` says, and what heads brought before is missing: see ``attrs``. Real text has neither
    uniform nor independent tokens; `frequencies` changes the first.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        heads: Labels, one or several; None for all.
        source: What stands for the tokens: ``"embed"``, ``"extended"`` or `TokenStreams`.
        distances: From 0 (the token itself) to less than this.
        frequencies: How often each token of the vocabulary comes, ``[d_vocab]``; None for all
            alike.
        sample: How many tokens stand for a larger vocabulary, drawn by `seed`; None for all.
        seed: Of that draw.

    Returns:
        A Dataset over ``head, distance``: ``score``, ``kernel``, ``spread_query``, ``spread_key``
        and ``spread_both`` (standard deviations of the score that the query's token alone makes,
        the key's alone, and both together), and ``bias`` (the part of the score that no token
        changes). ``attrs["uniform"]`` is what the kernel of a head without preference is.

    Raises:
        ValueError: A head that the model does not have, learned positions, scores that are more
            than products of queries and keys, distances beyond the context, or an unknown source.

    References:
        Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.

    Example:
        >>> from mlp_interp import load_model
        >>> found = positions(load_model("nano"), heads=["L0H0", "L0H1"], distances=32)
        >>> found.kernel.sel(distance=1).round(2).values.tolist()
        [1.0, 0.03]
    """
    weights = Weights.of(model)
    check_rotated(weights, "positions")
    listed = listed_heads(weights, heads)
    distances = checked_distances(weights, distances)
    vocabulary = Vocabulary.of(model, source, sample=sample, frequencies=frequencies, seed=seed)
    places = by_layer(listed)
    rows = [torch.empty(0)] * len(listed)
    for layer, here in places.items():
        found = kernels(Heads.of(weights, layer), vocabulary.moments(layer), distances)
        each = torch.stack([found.mean, found.query, found.key, found.both, found.bias], dim=1)
        for place in here:
            rows[place] = each[listed[place].unit]
    score, query, key, both, bias = torch.stack(rows, dim=1)
    dims = ("head", "distance")
    variables = {
        "score": variable(dims, score, unit="score", long_name="mean score over pairs of tokens"),
        "kernel": variable(
            dims, score.softmax(-1), unit="attention", long_name="softmax of the mean scores"
        ),
        "bias": variable(dims, bias, unit="score", long_name="score of the biases alone"),
    }
    spreads = {"query": query, "key": key, "both": both}
    words = {"query": "queries' tokens", "key": "keys' tokens", "both": "pairs, less those"}
    for name, value in spreads.items():
        variables[f"spread_{name}"] = variable(
            dims,
            value.clamp_min(0).sqrt(),
            unit="score",
            long_name=_SPREAD.format(words[name]),
        )
    coords = {**head_coords(listed), "distance": range(distances)}
    attrs = {
        **describe(model),
        **vocabulary.attrs(places),
        "analysis": "positions",
        "long_name": "attention by distance, from weights",
        "unit": "see each variable",
        "uniform": 1 / distances,
        "seed": seed,
    }
    return xr.Dataset(variables, coords, attrs)
