"""What heads write and read as Gram matrices, and how much these have in common."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mlp_interp.heads._spectra import triangular
from mlp_interp.heads._turns import Turns
from mlp_interp.models import Weights
from mlp_interp.models.heads import Heads
from mlp_interp.sites import Site

__all__ = ["Side", "compared", "sides_of"]

_NUMBERS = 2**25
"""Entries of Gram matrices at a time: 128 MiB."""
_PARTS = 8
"""Gram matrices are gone through in at least so many parts: what is below them is left out."""


@dataclass(frozen=True)
class Side:
    """Of some heads: factors whose Gram matrices say what they write, or read, and two traces.

    Attributes:
        factor: ``F`` with the Gram matrix ``F F^T``.
        trace: Of the Gram matrix.
        square: Trace of its square.
    """

    factor: Float[Tensor, "head d_model k"]
    trace: Float[Tensor, " head"]
    square: Float[Tensor, " head"]

    @classmethod
    def of(cls, matrix: Tensor, inner: Tensor, measure: str, energy: float) -> "Side":
        """Of Gram matrices ``W S W^T`` with a thin ``W`` and a small ``S``.

        For the overlap their directions of largest weight, which hold a share of it, count alike.
        """
        factor = matrix @ triangular(inner).to(matrix.dtype)
        if measure == "overlap":
            left, values, _ = torch.linalg.svd(factor, full_matrices=False)
            squares = values.square()
            before = squares.cumsum(-1) - squares
            factor = left * (before < energy * squares.sum(-1, keepdim=True))[:, None]
        gram = _gram(factor)
        return cls(factor, gram.diagonal(dim1=-2, dim2=-1).sum(-1), gram.square().sum((-2, -1)))

    @classmethod
    def together(cls, sides: Sequence["Side"], places: Sequence[int]) -> "Side":
        """Several, each head at its place."""
        order = torch.tensor(places).argsort()
        rows = zip(*((side.factor, side.trace, side.square) for side in sides), strict=True)
        return cls(*(torch.cat(row)[order.to(row[0].device)] for row in rows))


def sides_of(
    weights: Weights,
    writing: Sequence[Site],
    reading: Sequence[Site],
    *,
    measure: str,
    distance: int | None,
    energy: float,
) -> tuple[Side, Side]:
    """What some heads write, and what some queries, keys and values read, in their order."""
    scored = any(site.name != "v" for site in reading)
    turns = None
    found: tuple[list[Side], list[Side]] = [], []
    places: tuple[list[int], list[int]] = [], []
    for layer in range(weights.n_layers):
        heads = Heads.of(weights, layer, scores=scored)
        if scored and turns is None:  # the same in all layers
            turns = Turns.of(heads, distance)
        kinds = dict.fromkeys(site.name for site in (*writing, *reading) if site.layer == layer)
        for kind in kinds:
            side = int(kind != "z")
            listed = (writing, reading)[side]
            mine = [i for i, s in enumerate(listed) if s.layer == layer and s.name == kind]
            units = [listed[i].unit for i in mine]
            matrix, inner = _matrices(heads, kind, turns)
            found[side].append(Side.of(matrix[units], inner[units], measure, energy))
            places[side].extend(mine)
    first, second = (Side.together(*x) for x in zip(found, places, strict=True))
    return first, second


def _matrices(heads: Heads, kind: str, turns: Turns | None) -> tuple[Tensor, Tensor]:
    """With which matrix heads write or read, and what comes before or after that."""
    if kind == "z":
        return heads.O.mT, _gram(heads.V)
    if kind == "v" or turns is None:
        return heads.V, _gram(heads.O.mT)
    matrix, other = (heads.Q, heads.K) if kind == "q" else (heads.K, heads.Q)
    return matrix, turns.averaged(_gram(other), forward=kind == "q")


def _gram(matrix: Float[Tensor, "head d_model k"]) -> Float[Tensor, "head k k"]:
    return (matrix.mT @ matrix).double()


def compared(
    writer: Side, reader: Side, before: Sequence[int], m: int
) -> tuple[Float[Tensor, "writer reader"], Float[Tensor, "writer reader"]]:
    """Scores of all pairs, and how many deviations their squares are above the mean by chance.

    Args:
        writer: Ordered by layers.
        reader: In any order.
        before: How many of the writers write before each reader; the others have NaN.
        m: Dimensions in which the one may be rotated against the other.
    """
    together = _traces(writer.factor, reader.factor, before)
    t, u = writer.trace[:, None], reader.trace
    tt, uu = writer.square[:, None], reader.square
    variance = 2 * (m * tt - t**2) * (m * uu - u**2) / (m**2 * (m - 1) * (m + 2))
    return (together / (t * u)).sqrt(), (together - t * u / m) / variance.clamp_min(0).sqrt()


def _traces(
    first: Float[Tensor, "writer d_model k"],
    second: Float[Tensor, "reader d_model k"],
    before: Sequence[int],
) -> Float[Tensor, "writer reader"]:
    """Traces of products of Gram matrices, some rows of these at a time.

    A trace of a product is a product of all entries, which costs less than to multiply the factors
    of each pair. Entries beside the diagonal come twice, and are made once.
    """
    size, numbers = first.shape[1], torch.tensor(before, device=first.device)
    total = first.new_zeros(len(first), len(second), dtype=torch.float64)
    step = max(1, min(-(-size // _PARTS), _NUMBERS // (size * (len(first) + len(second)))))
    for start in range(0, size, step):
        w, r = (F[:, start : start + step] @ F[:, start:].mT for F in (first, second))
        w[..., w.shape[1] :] *= 2
        w, r = w.flatten(1), r.flatten(1)
        for number in set(before):
            columns = (numbers == number).nonzero()[:, 0]
            total[:number, columns] += (w[:number] @ r[columns].T).double()
    rows = torch.arange(len(first), device=first.device)[:, None]
    return total.masked_fill(rows >= numbers, torch.nan)
