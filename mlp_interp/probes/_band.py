"""Symmetric matrices in block-tridiagonal form, in which a shifted system costs next to nothing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["Banded", "Factor"]

_WIDTH = 32  # of the blocks: wide enough for matrix products, and yet a small part of the matrix
_ROUNDING = 16 * float(np.finfo(float).eps)


@dataclass(frozen=True)
class Banded:
    """``A = Q B Qᵀ`` with orthogonal ``Q`` and a ``B`` of blocks on the diagonal and beside it.

    The first half of an eigendecomposition, and the cheap one: for every strength a,
    ``B + a = L Lᵀ`` takes a few small factors, so that the rest is not needed.

    Attributes:
        blocks: Of ``B``: those on the diagonal, each with the one below it.
        rotations: ``(first, V, T)``: Householder reflections as ``1 - V T Vᵀ`` of what is from a
            column on, in turn.
        rounding: Of its entries: eigenvalues of 0 may be that much less.
    """

    blocks: list[tuple[Tensor, Tensor]]
    rotations: list[tuple[int, Tensor, Tensor]]
    rounding: float

    @classmethod
    def of(cls, A: np.ndarray) -> "Banded":
        """Reduce a symmetric matrix, which is overwritten."""
        held, rotations, blocks = torch.from_numpy(A), [], []
        rounding = _ROUNDING * float(held.norm())
        for start in range(0, len(A), _WIDTH):
            low = start + _WIDTH
            below = held[low:, start:low]
            if len(below):
                V, T, below = _reflections(below)
                rotations.append((low, V, T))
                rest = held[low:, low:]
                Y = rest @ (V @ T)
                W = Y - V @ (T.T @ (V.T @ Y)) / 2
                rest.addmm_(torch.cat([V, W], 1), torch.cat([W, V], 1).T, alpha=-1)
            blocks.append((held[start:low, start:low].clone(), below))
        return cls(blocks, rotations, rounding)

    def turn(self, rows: np.ndarray) -> list[Tensor]:
        """Rows ``[row, d]``, which are overwritten, times ``Q``; cut as the blocks are."""
        held = torch.from_numpy(rows)
        for first, V, T in self.rotations:
            rest = held[:, first:]
            rest.addmm_(rest @ (V @ T), V.T, alpha=-1)
        # Each by itself in memory: of a whole row's length each row's share is on another page.
        return [some.contiguous() for some in held.split(_WIDTH, 1)]

    def turn_back(self, cut: Sequence[Tensor]) -> np.ndarray:
        """Rows as `turn` gives them times ``Qᵀ``."""
        found = torch.cat([*cut], 1)
        for first, V, T in reversed(self.rotations):
            rest = found[:, first:]
            rest.addmm_(rest @ (V @ T.T), V.T, alpha=-1)
        return found.numpy()

    def factor(self, alphas: Sequence[float]) -> "Factor":
        """``L`` of ``B + a = L Lᵀ`` for each strength; one below rounding is as good as that."""
        first = self.blocks[0][0]
        strengths = torch.tensor([*alphas], dtype=first.dtype, device=first.device)
        strengths = strengths.clamp_min(self.rounding)[:, None, None]
        found, before = [], first.new_zeros(len(alphas), len(first), 0)
        for block, below in self.blocks:
            eye = torch.eye(len(block)).to(block)
            L = torch.linalg.cholesky(block + strengths * eye - before @ before.mT)
            inverse = torch.linalg.solve_triangular(L, eye, upper=False)
            found.append((inverse, inverse @ before, before))
            before = below @ inverse.mT
        return Factor(found)


@dataclass(frozen=True)
class Factor:
    """Lower triangular ``L``, one for each strength.

    Attributes:
        blocks: Inverses of those on the diagonal ``[strength, own, own]``, each with its product
            with the block to the left ``[strength, own, before]``, and that block.
    """

    blocks: list[tuple[Tensor, Tensor, Tensor]]

    def forward(self, which: int, cut: Sequence[Tensor]) -> Iterator[Tensor]:
        """Rows times the inverse of ``Lᵀ``, block after block.

        Their inner products are those of the rows under ``(B + a)⁻¹``.
        """
        before = None
        for some, (inverse, left, _) in zip(cut, self.blocks, strict=True):
            own = some @ inverse[which].T
            if before is not None:
                own.addmm_(before, left[which].T, alpha=-1)
            yield own
            before = own

    def solved(self, which: int, cut: Sequence[Tensor]) -> list[Tensor]:
        """Rows times ``(B + a)⁻¹``."""
        found: list[Tensor] = []
        lefts = [left for _, _, left in self.blocks[1:]]
        half = [*self.forward(which, cut)]
        for own, (inverse, _, _), right in zip(
            reversed(half), reversed(self.blocks), [None, *reversed(lefts)], strict=True
        ):
            rest = own if right is None else own - found[-1] @ right[which]
            found.append(rest @ inverse[which])
        return found[::-1]


def _reflections(panel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``V``, ``T`` and ``R`` of ``panel = (1 - V T Vᵀ) [R; 0]``; ``R`` has as many rows as fit."""
    packed, tau = torch.geqrf(panel)
    size = len(tau)
    V = packed[:, :size].tril(-1)
    V.diagonal().fill_(1)
    # The inverse of T is known: its diagonal 1 / tau, and above it that of VᵀV.
    above = (V.T @ V).triu(1)
    T = torch.linalg.solve(torch.eye(size).to(V) + tau[:, None] * above, torch.diag(tau))
    return V, T, packed[:size].triu()
