"""Gram matrices of queries or keys, averaged over the rotations that stand between the two."""

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from mlp_interp.models.heads import Heads
from mlp_interp.models.rotary import rotary_at

__all__ = ["NEAR", "Turns", "rotations"]

NEAR = 32
"""Over how many distances, from 1 to less than this, rotations are averaged."""


def rotations(heads: Heads, distance: int | None) -> Float[Tensor, "distance d_head d_head"]:
    """What stands between query and key: at one distance, or at each of the near ones."""
    near = max(2, min(NEAR, int(heads.weights.model.cfg.n_ctx)))
    return heads.relative(range(1, near) if distance is None else [distance]).double()


@dataclass(frozen=True)
class Turns:
    """The rotations of all distances in the basis in which each is a factor for each direction.

    Rotations by halves turn pairs of entries, ``i`` and ``i + half``: all of them have the
    eigenvectors ``(e_i - j e_(i + half)) / sqrt(2)`` and their conjugates.

    Attributes:
        basis: The eigenvectors, one a column; the identity where nothing is turned.
        factors: By distance, what each eigenvector is multiplied by.
        turned: How many entries are turned; they are the first ones.
    """

    basis: Complex[Tensor, "d_head d_head"]
    factors: Complex[Tensor, "distance d_head"]
    turned: int

    @classmethod
    def of(cls, heads: Heads, distance: int | None) -> "Turns":
        """Of one distance, or of the near ones."""
        return cls.within(heads, rotations(heads, distance))

    @classmethod
    def within(cls, heads: Heads, between: Float[Tensor, "distance d_head d_head"]) -> "Turns":
        """Of the distances whose rotations these are."""
        basis = torch.eye(between.shape[-1], dtype=torch.complex128, device=between.device)
        rotary = rotary_at(
            heads.weights.model, torch.zeros(1, dtype=torch.int64, device=between.device), heads.Q
        )
        half = 0
        if rotary.cos is not None:
            half = rotary.cos.shape[-1] // 2
            first = torch.arange(half, device=between.device)
            second = first + half
            basis[first, first] = basis[first, second] = 0.5**0.5
            basis[second, first], basis[second, second] = -(0.5**0.5) * 1j, 0.5**0.5 * 1j
        factors = torch.einsum("ik,tij,jk->tk", basis.conj(), between.to(basis.dtype), basis)
        return cls(basis, factors, 2 * half)

    def averaged(
        self, gram: Float[Tensor, "head d_head d_head"], *, forward: bool
    ) -> Float[Tensor, "head d_head d_head"]:
        """The mean of ``R G R^T``, or if not `forward` of ``R^T G R``, of symmetric matrices.

        What is not turned is as it was, and what stands beside it is turned from one side only.
        """
        n, found = self.turned, gram.clone()
        basis, factors = self.basis[:n, :n], self.factors[:, :n]
        mean, alone = factors.mT @ factors.conj() / len(factors), factors.mean(0)
        if not forward:
            mean, alone = mean.conj(), alone.conj()
        inside = basis.conj().mT @ gram[..., :n, :n].to(basis.dtype) @ basis
        found[..., :n, :n] = (basis @ (inside * mean) @ basis.conj().mT).real
        found[..., :n, n:] = ((basis * alone) @ basis.conj().mT).real.to(gram) @ gram[..., :n, n:]
        found[..., n:, :n] = found[..., :n, n:].mT
        return found

    def traces(
        self,
        first: Float[Tensor, "head d_head d_head"],
        second: Float[Tensor, "head d_head d_head"],
    ) -> Float[Tensor, "head distance"]:
        """By distance, ``tr(A R B R^T)``."""
        together = self._inside(first).mT * self._inside(second)
        return torch.einsum("tk,hkl,tl->ht", self.factors, together, self.factors.conj()).real

    def _inside(self, gram: Tensor) -> Complex[Tensor, "head d_head d_head"]:
        return self.basis.conj().mT @ gram.to(self.basis.dtype) @ self.basis
