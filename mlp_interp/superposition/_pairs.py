"""Pairs of neurons that promote some of the same tokens, and others to hold them against."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from torch import Tensor

from mlp_interp.models import Weights
from mlp_interp.models.unembed import Unembed, mean_direction
from mlp_interp.models.vectors import unit
from mlp_interp.results import single, to_numpy

__all__ = ["Pair", "controls_of", "pairs_of", "pool_of"]

_POOL = 8
"""Neurons that controls are chosen from, for each control of a pair."""

_TOGETHER = 256
"""Neurons whose products with all tokens are in memory."""


@dataclass(frozen=True)
class Pair:
    """Two neurons of a layer.

    Attributes:
        layer: Their layer.
        a: The one whose promoted tokens are more alike.
        b: The other.
        tokens: What `a` promotes.
        shared: How many of them `b` promotes, too.
        cosine_value: Cosine of what they write.
        cosine_receptor: Cosine of what they read.
    """

    layer: int
    a: int
    b: int
    tokens: Int[np.ndarray, " k"]
    shared: int
    cosine_value: float
    cosine_receptor: float


def pairs_of(
    weights: Weights, unembed: Unembed, layer: int, k: int, shared: int, top: int
) -> list[Pair]:
    """The pairs of a layer with most promoted tokens in common.

    One of the two must have a list of one kind of tokens, among the tenth that are most alike.
    """
    values = single(weights.parameter(layer, "W_out"))
    promoted, alike = _lists(weights, unembed, values, k)
    places = np.repeat(np.arange(len(values)), k), promoted.ravel()
    lists = csr_array((np.ones(promoted.size, np.int32), places), (len(values), unembed.d_vocab))
    common = (lists @ lists.T).tocoo()
    rows, columns, number = common.row, common.col, common.data
    clean = alike >= np.quantile(alike, 0.9)
    kept = (rows < columns) & (number >= shared) & (clean[rows] | clean[columns])
    rows, columns, number = rows[kept], columns[kept], number[kept]
    order = np.lexsort((columns, rows, -number))[:top]
    value, receptor = unit(values), unit(single(weights.parameter(layer, "W_in")).T)
    found = []
    for pair, n in zip(zip(rows[order], columns[order], strict=True), number[order], strict=True):
        a, b = sorted(map(int, pair), key=lambda neuron: -float(alike[neuron]))
        cosines = (float(x[a] @ x[b]) for x in (value, receptor))
        found.append(Pair(layer, a, b, promoted[a], int(n), *cosines))
    return found


def _lists(
    weights: Weights, unembed: Unembed, values: Float[Tensor, "neuron d_model"], k: int
) -> tuple[Int[np.ndarray, "neuron k"], Float[np.ndarray, " neuron"]]:
    """The tokens each neuron promotes most, and how alike these are (squared mean direction)."""
    weight, mean = single(unembed.weight), single(mean_direction(weights)[0])
    # A neuron's product with the mean direction is the same for all tokens: no order changes.
    promoted = torch.cat([(some @ weight).topk(k).indices for some in values.split(_TOGETHER)])
    alike = [unit(weight[:, row].T - mean).mean(0).square().sum() for row in promoted]
    return to_numpy(promoted), to_numpy(torch.stack(alike))


def pool_of(
    rate: Float[np.ndarray, " neuron"], controls: int, draws: np.random.Generator
) -> Int[np.ndarray, " some"]:
    """Some neurons of a layer, drawn evenly over how often they are active."""
    order = np.argsort(rate, kind="stable")
    return np.array(
        [draws.choice(part) for part in np.array_split(order, min(_POOL * controls, len(order)))]
    )


def controls_of(
    pair: Pair, rate: Float[np.ndarray, " neuron"], pool: Sequence[int] | np.ndarray, controls: int
) -> Int[np.ndarray, " control"]:
    """Of a pool those that are active about as often as a pair's B."""
    others = np.array([n for n in pool if n not in (pair.a, pair.b)])
    away = np.abs(rate[others] - rate[pair.b])
    return others[np.argsort(away, kind="stable")[:controls]]
