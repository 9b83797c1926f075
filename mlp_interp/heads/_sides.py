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

_NUMBERS = 2**24
"""Entries of Gram matrices at a time: 64 MiB."""
_PARTS = 8
"""Gram matrices are gone through in at least so many parts: what is below them is left out."""


@dataclass(frozen=True)
class Side:
    """Of some heads: Gram matrices ``W S W^T``, which say what they write, or read; two traces.

    Attributes:
        matrix: The thin ``W``.
        inner: The small ``S``.
        trace: Of the Gram matrix.
        square: Trace of its square.
    """

    matrix: Float[Tensor, "head d_model k"]
    inner: Float[Tensor, "head k k"]
    trace: Float[Tensor, " head"]
    square: Float[Tensor, " head"]

    @classmethod
    def of(
        cls, matrix: Tensor, inner: Tensor, measure: str, energy: float, own: Tensor | None = None
    ) -> "Side":
        """Of a thin and a small matrix.

        For the overlap the Gram matrix's directions of largest weight, which hold a share of it,
        count alike. The Gram matrix of the thin one's columns may be given, where it is known.
        """
        if measure == "overlap":
            left, values, _ = torch.linalg.svd(_factor(matrix, inner), full_matrices=False)
            squares = values.square()
            before = squares.cumsum(-1) - squares
            matrix = left * (before < energy * squares.sum(-1, keepdim=True))[:, None]
            inner, own = torch.eye(matrix.shape[-1]).to(inner).expand(len(inner), -1, -1), None
        core = inner @ (_gram(matrix) if own is None else own)
        trace, square = core.diagonal(dim1=-2, dim2=-1).sum(-1), (core * core.mT).sum((-2, -1))
        return cls(matrix, inner.to(matrix.dtype), trace, square)

    @property
    def factor(self) -> Float[Tensor, "head d_model k"]:
        """``F`` with the Gram matrix ``F F^T``."""
        return _factor(self.matrix, self.inner.double())

    def rows(self, heads: slice, rows: slice, held: Tensor) -> Float[Tensor, "head row column"]:
        """Some rows of some heads' Gram matrices, from the diagonal on.

        They are written where others were, since memory that is new each time costs as much again.
        """
        matrix = self.matrix[heads]
        left, right = matrix[:, rows] @ self.inner[heads], matrix[:, rows.start :].mT
        shape = (*left.shape[:2], right.shape[2])
        return torch.bmm(left, right, out=held[: torch.Size(shape).numel()].view(shape))

    def put(self, into: "Side | None", heads: int, places: Sequence[int]) -> "Side":
        """Each head at its place among so many: in large models there is no room for two copies."""
        parts = self.matrix, self.inner, self.trace, self.square
        if into is None:
            into = Side(*(x.new_empty(heads, *x.shape[1:]) for x in parts))
        at = torch.tensor(places, device=self.trace.device)
        wholes = into.matrix, into.inner, into.trace, into.square
        for whole, part in zip(wholes, parts, strict=True):
            whole.index_copy_(0, at, part)
        return into


def sides_of(
    weights: Weights,
    *lists: Sequence[Site],
    measure: str,
    distance: int | None,
    energy: float,
    tokens: Vocabulary | None = None,
) -> tuple[Side, ...]:
    """What some heads write, or queries, keys and values read: of each list, in its order.

    With `tokens` the other end of each is weighed by them; without, all directions count alike.
    """
    scored = any(site.name in ("q", "k") for listed in lists for site in listed)
    turns = None
    found: list[Side | None] = [None for _ in lists]
    for layer in sorted({site.layer or 0 for listed in lists for site in listed}):
        heads = Heads.of(weights, layer, scores=scored)
        if scored and turns is None:  # the same in all layers
            turns = Turns.of(heads, distance)
        made = _Grams(heads, tokens)
        for side, listed in enumerate(lists):
            for kind in dict.fromkeys(site.name for site in listed if site.layer == layer):
                mine = [i for i, s in enumerate(listed) if s.layer == layer and s.name == kind]
                units = [listed[i].unit for i in mine]
                parts = made.of(kind, turns)
                if units != [*range(weights.n_heads)]:  # else all as they are, without copies
                    parts = (x[units] for x in parts)
                matrix, inner, own = parts
                part = Side.of(matrix, inner, measure, energy, own)
                found[side] = part.put(found[side], len(listed), mine)
    return tuple(side for side in found if side is not None)


class _Grams:
    """With which matrices a layer's heads write and read, and what comes before or after them."""

    def __init__(self, heads: Heads, tokens: Vocabulary | None) -> None:
        self.heads, self.tokens, self._own = heads, tokens, {}

    def of(self, kind: str, turns: Turns | None) -> tuple[Tensor, Tensor, Tensor]:
        """The thin matrix, the small one between it and itself, and its columns' Gram matrix."""
        name = {"z": "O", "q": "Q", "k": "K", "v": "V"}[kind]
        other = {"z": "V", "q": "K", "k": "Q", "v": "O"}[kind]
        inner = self.own(other) if self.tokens is None else self._weighed(other, self.tokens)
        if kind in "qk" and turns is not None:
            inner = turns.averaged(inner, forward=kind == "q")
        return self._thin(name), inner, self.own(name)

    def own(self, name: str) -> Float[Tensor, "head k k"]:
        """Of columns, made once: what is read with the one matrix is written with the other."""
        if name not in self._own:
            self._own[name] = _gram(self._thin(name))
        return self._own[name]

    def _thin(self, name: str) -> Float[Tensor, "head d_model k"]:
        matrix = getattr(self.heads, name)
        return matrix.mT if name == "O" else matrix

    def _weighed(self, name: str, tokens: Vocabulary) -> Float[Tensor, "head k k"]:
        """By how the tokens at this end vary: their logits, or what the layer reads of them."""
        if name == "O":
            spread = tokens.directions_covariance()
        else:
            spread = tokens.moments(self.heads.layer).covariance
        matrix = self._thin(name).double()
        return matrix.mT @ spread @ matrix


def _gram(matrix: Float[Tensor, "head d_model k"]) -> Float[Tensor, "head k k"]:
    return (matrix.mT @ matrix).double()


def _factor(matrix: Tensor, inner: Tensor) -> Float[Tensor, "head d_model k"]:
    return matrix @ triangular(inner).to(matrix.dtype)


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
    together = _traces(writer, reader, before)
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
    readers, _, k = reader.matrix.shape
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


def _traces(writer: Side, reader: Side, before: Sequence[int]) -> Float[Tensor, "writer reader"]:
    """Traces of products of Gram matrices, some rows of these at a time.

    A trace of a product is a product of all entries, which costs less than to multiply the factors
    of each pair. Entries beside the diagonal come twice, and are made once.
    """
    (writers, size, _), alike = writer.matrix.shape, runs(before)
    total = writer.trace.new_zeros(writers, len(reader.matrix))
    most = max((number for number, _ in alike), default=0)
    together = max((some.stop - some.start for _, some in alike), default=0)
    step = max(1, min(-(-size // _PARTS), _NUMBERS // (size * max(1, most + together))))
    held = [writer.matrix.new_empty(heads * step * size) for heads in (most, together)]
    for start in range(0, size, step):
        rows = slice(start, min(start + step, size))
        w = writer.rows(slice(most), rows, held[0])
        w[..., w.shape[1] :] *= 2
        for number, columns in alike:
            r = reader.rows(columns, rows, held[1])
            total[:number, columns] += (w[:number].flatten(1) @ r.flatten(1).T).double()
    return total.masked_fill(unheard(writers, before).to(total.device), torch.nan)


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
