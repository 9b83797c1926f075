"""The directions along which a matrix between tokens does most, read at both of its ends."""

from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.models import Weights, describe
from mlp_interp.models.options import checked_count
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.results import to_numpy, variable
from mlp_interp.sites import Site
from mlp_interp.weights.factors import Ends
from mlp_interp.weights.matrices import factors_of, label_of

__all__ = ["singular"]

_SAME = 1e-3
"""Singular values closer than this, as a share, are one group: their directions are anybody's."""


@own_mode()
@torch.no_grad()
def singular(
    model: Model,
    matrix: str | Site,
    *,
    k: int = 8,
    tokens: int = 10,
    source: Any = "extended",
    distance: int | None = None,
) -> xr.Dataset:
    """The largest singular directions of a matrix, each as what it reads and what it writes.

    Of the matrix between tokens (or neurons) less the means of its rows and columns, found from its
    factors: a decomposition of a small core. Bases of heads' own space mean nothing, any invertible
    map moves them; these directions do not depend on one, nor on how weights were processed.

    The sign of a pair is set so that the entry largest in size, at either end, is positive. Where
    singular values are within a thousandth of each other any rotation among their directions is as
    good: these are one ``group``, and no tokens are given.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        matrix: As in `table`.
        k: How many directions.
        tokens: How many entries of each end and sign to name.
        source: As in `table`.
        distance: As in `table`.

    Returns:
        A Dataset along ``direction``: ``singular_value``; ``share`` of the sum of squares, beside
        ``share_even``, what each would have if all were equal; ``group``; and with ``end``
        (``reads``: rows, ``writes``: columns), ``sign`` and ``place``: ``entry`` of the singular
        vector, of length 1, ``id`` and ``text`` of whose it is. ``attrs["rank"]`` is the
        participation ratio, ``(sum s^2)^2 / sum s^4``: how many directions there are in effect.

    Raises:
        ValueError: As `table`; more directions than the matrix has.

    References:
        Millidge & Black, "The Singular Value Decompositions of Transformer Weight Matrices are
        Highly Interpretable", 2022.

    Example:
        >>> from mlp_interp import load_model
        >>> found = singular(load_model("nano"), "L1H0.OV", k=4, tokens=3)
        >>> found["text"].dims, bool((found["singular_value"].diff("direction") <= 0).all())
        (('direction', 'end', 'sign', 'place'), True)
    """
    weights = Weights.of(model)
    matrix = label_of(weights, matrix)
    factors = factors_of(weights, matrix, source, distance).centred
    left, right = factors.left.double(), factors.right.double()
    most = min(*left.shape, *right.shape)
    checked_count(k, most, "directions")
    checked_count(tokens, min(len(left), len(right)), "entries", name="tokens")
    bases = [torch.linalg.qr(x) for x in (left, right)]
    u, s, vh = torch.linalg.svd(bases[0].R @ bases[1].R.T)
    ends = bases[0].Q @ u[:, :k], bases[1].Q @ vh[:k].T
    group = _groups(s)
    alone = np.array([int((group == g).sum()) == 1 for g in group[:k]])
    read = [
        _read(model, x, kind, tokens)
        for x, kind in zip(_signed(*ends), (factors.rows, factors.columns), strict=True)
    ]
    entry, ids, text = (np.stack(part, axis=1) for part in zip(*read, strict=True))
    square = s.square()
    dims = ("direction", "end", "sign", "place")
    even = np.full(k, 1 / most)
    variables = {
        "singular_value": variable("direction", s[:k], unit=factors.attrs["unit"]),
        "share": variable(
            "direction", square[:k] / square.sum(), unit="fraction", long_name="of the square"
        ),
        "share_even": variable(
            "direction", even, unit="fraction", long_name="share if all were equal"
        ),
        "group": variable("direction", group[:k], unit="number", long_name="of equal values"),
        "entry": variable(dims, _where(alone, entry, np.nan), unit="of a vector of length 1"),
        "id": variable(dims, _where(alone, ids, -1), unit="token or neuron id"),
        "text": (dims, _where(alone, text, ""), {"unit": "text"}),
    }
    coords = {"end": ["reads", "writes"], "sign": [1, -1]}
    attrs = {"analysis": "singular", "matrix": matrix, "data": "the weights alone"}
    attrs |= {
        "long_name": "singular directions",
        "rank": float(square.sum() ** 2 / square.square().sum()),
    }
    return xr.Dataset(variables, coords, {**describe(model), **factors.attrs, **attrs})


def _groups(s: Float[Tensor, " direction"]) -> np.ndarray:
    """The number of the group of equal values that each belongs to."""
    values = to_numpy(s)
    apart = values[:-1] - values[1:] > _SAME * values[:-1]
    return np.concatenate([[0], np.cumsum(apart)])


def _signed(
    left: Float[Tensor, "row direction"], right: Float[Tensor, "column direction"]
) -> tuple[Tensor, Tensor]:
    """Both turned so that the entry largest in size is positive."""
    both = torch.cat([left, right])
    largest = both.gather(0, both.abs().argmax(0, keepdim=True))
    return left * largest.sign(), right * largest.sign()


def _read(
    model: Model, vectors: Float[Tensor, "end direction"], ends: Ends, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The largest entries of either sign, ``[direction, sign, place]``: numbers, ids, texts."""
    at: Int[Tensor, "sign place direction"] = torch.stack(
        [(sign * vectors).topk(k, dim=0).indices for sign in (1, -1)]
    )
    entry = vectors.expand(2, -1, -1).gather(1, at).permute(2, 0, 1)
    ids = to_numpy(ends.ids[at.permute(2, 0, 1)])
    return to_numpy(entry), ids, ends.labels(model, ids)


def _where(kept: np.ndarray, values: np.ndarray, otherwise: Any) -> np.ndarray:
    return np.where(kept[:, None, None, None], values, otherwise)
