"""What heads write and read as Gram matrices, and how much these have in common."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mlp_interp.heads._spectra import triangular
from mlp_interp.heads._turns import Turns
from mlp_interp.heads._vocabulary import Vocabulary
from mlp_interp.models import Weights
from mlp_interp.models.heads import Heads
from mlp_interp.sites import Site

__all__ = ["Side", "compared", "heard", "runs", "sides_of", "unheard"]

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
        rows = zip(*((side.factor, side.trace, side.square) for side in sides), strict=True)
        found = [torch.cat(row) for row in rows]
        if [*places] != sorted(places):
            order = torch.tensor(places).argsort().to(found[0].device)
            found = [x[order] for x in found]
        return cls(*found)


def sides_of(
    weights: Weights,
    *lists: Sequence[Site],
    measure: str,
    distance: int | None,
    energy: float,
    tokens: Vocabulary | None = None,
) -> tuple[Side, ...]:
    """What heads write, or what queries, keys and values read: of each list, in its order.

    With `tokens` the other end of each is weighed by them; without, all directions count alike.
    """
    scored = any(site.name in ("q", "k") for listed in lists for site in listed)
    turns = None
    found: list[list[Side]] = [[] for _ in lists]
    places: list[list[int]] = [[] for _ in lists]
    for layer in range(weights.n_layers):
        heads = Heads.of(weights, layer, scores=scored)
        if scored and turns is None:  # the same in all layers
            turns = Turns.of(heads, distance)
        for side, listed in enumerate(lists):
            for kind in dict.fromkeys(site.name for site in listed if site.layer == layer):
                mine = [i for i, s in enumerate(listed) if s.layer == layer and s.name == kind]
                units = [listed[i].unit for i in mine]
                matrix, inner = _matrices(heads, kind, turns, tokens)
                found[side].append(Side.of(matrix[units], inner[units], measure, energy))
                places[side].extend(mine)
    return tuple(Side.together(*x) for x in zip(found, places, strict=True))


def _matrices(
    heads: Heads, kind: str, turns: Turns | None, tokens: Vocabulary | None
) -> tuple[Tensor, Tensor]:
    """With which matrix heads write or read, and what comes before or after that."""
    if kind == "z":
        return heads.O.mT, _gram(heads.V, _spread(tokens, heads.layer))
    if kind == "v" or turns is None:
        spread = None if tokens is None else tokens.directions_covariance()
        return heads.V, _gram(heads.O.mT, spread)
    matrix, other = (heads.Q, heads.K) if kind == "q" else (heads.K, heads.Q)
    gram = _gram(other, _spread(tokens, heads.layer))
    return matrix, turns.averaged(gram, forward=kind == "q")


def _spread(tokens: Vocabulary | None, layer: int) -> Float[Tensor, "d_model d_model"] | None:
    """How what a layer reads of the tokens varies."""
    return None if tokens is None else tokens.moments(layer).covariance


def _gram(
    matrix: Float[Tensor, "head d_model k"],
    spread: Float[Tensor, "d_model d_model"] | None = None,
) -> Float[Tensor, "head k k"]:
    if spread is None:
        return (matrix.mT @ matrix).double()
    return matrix.double().mT @ spread @ matrix.double()


def compared(
    writer: Side, reader: Side, before: Sequence[int], m: int
) -> tuple[Float[Tensor, "writer reader"], ...]:
    """Scores of all pairs, how many deviations their squares are above chance, and chance's root.

    Args:
        writer: Ordered by layers.
        reader: Alike.
        before: How many of the writers write before each reader; the others have NaN.
        m: Dimensions in which the one may be rotated against the other.
    """
    together = _traces(writer.factor, reader.factor, before)
    return _beside_chance(together, (writer.trace[:, None], writer.square[:, None]), reader, m)


def heard(
    rows: Float[Tensor, "writer d_model"], reader: Side, above: Bool[Tensor, " reader"], m: int
) -> tuple[Float[Tensor, "writer reader"], ...]:
    """As `compared`, of what writes along one vector each: NaN where that has no length.

    Args:
        rows: The vectors.
        reader: What reads.
        above: Which of the readers read what is written; the others have NaN.
        m: As of `compared`.
    """
    readers, _, k = reader.factor.shape
    wide = reader.factor.transpose(0, 1).flatten(1)
    unit = rows.to(wide) / rows.to(wide).norm(dim=-1, keepdim=True)
    parts = [
        (some @ wide).unflatten(1, (readers, k)).double().square().sum(-1)
        for some in unit.split(max(1, _NUMBERS // (readers * k)))
    ]
    together = torch.cat(parts).masked_fill(~above.to(wide.device), torch.nan)
    one = torch.ones_like(reader.trace[:1])
    return _beside_chance(together, (one, one), reader, m)


def _beside_chance(
    together: Float[Tensor, "writer reader"], writer: tuple[Tensor, Tensor], reader: Side, m: int
) -> tuple[Float[Tensor, "writer reader"], ...]:
    """Scores of traces of products, and these beside their mean and deviation under rotations."""
    (t, tt), u, uu = writer, reader.trace, reader.square
    variance = 2 * (m * tt - t**2) * (m * uu - u**2) / (m**2 * (m - 1) * (m + 2))
    score = (together / (t * u)).sqrt()
    z = (together - t * u / m) / variance.clamp_min(0).sqrt()
    return score, z, torch.full_like(score, m**-0.5).masked_fill(score.isnan(), torch.nan)


def _traces(
    first: Float[Tensor, "writer d_model k"],
    second: Float[Tensor, "reader d_model k"],
    before: Sequence[int],
) -> Float[Tensor, "writer reader"]:
    """Traces of products of Gram matrices, some rows of these at a time.

    A trace of a product is a product of all entries, which costs less than to multiply the factors
    of each pair. Entries beside the diagonal come twice, and are made once.
    """
    size, alike = first.shape[1], runs(before)
    total = first.new_zeros(len(first), len(second), dtype=torch.float64)
    step = max(1, min(-(-size // _PARTS), _NUMBERS // (size * (len(first) + len(second)))))
    for start in range(0, size, step):
        w, r = (F[:, start : start + step] @ F[:, start:].mT for F in (first, second))
        w[..., w.shape[1] :] *= 2
        w, r = w.flatten(1), r.flatten(1)
        for number, columns in alike:
            total[:number, columns] += (w[:number] @ r[columns].T).double()
    return total.masked_fill(unheard(len(first), before).to(first.device), torch.nan)


def runs(before: Sequence[int]) -> list[tuple[int, slice]]:
    """The numbers that are not 0, each with where it stands; equal ones stand together."""
    found, start = [], 0
    for number, some in groupby(before):
        end = start + len([*some])
        if number:
            found.append((number, slice(start, end)))
        start = end
    return found


def unheard(writers: int, before: Sequence[int]) -> Bool[Tensor, "writer reader"]:
    """Which pairs are of a reader that does not come after the writer."""
    return torch.arange(writers)[:, None] >= torch.tensor(before)
