"""Gram matrices of queries or keys, averaged over the rotations that stand between the two."""

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from mlp_interp.heads._circuits import rotations
from mlp_interp.models.heads import Heads
from mlp_interp.models.rotary import rotary_at

__all__ = ["Turns"]


@dataclass(frozen=True)
class Turns:
    """The rotations of all distances in the basis in which each is a factor for each direction.

    Rotations by halves turn pairs of entries, ``i`` and ``i + half``: all of them have the
    eigenvectors ``(e_i - j e_(i + half)) / sqrt(2)`` and their conjugates.

    Attributes:
        basis: The eigenvectors, one a column; the identity where nothing is turned.
        mean: Mean over the distances of the products of each two factors.
    """

    basis: Complex[Tensor, "d_head d_head"]
    mean: Complex[Tensor, "d_head d_head"]

    @classmethod
    def of(cls, heads: Heads, distance: int | None) -> "Turns":
        """Of one distance, or of the near ones."""
        between = rotations(heads, distance)
        basis = torch.eye(between.shape[-1], dtype=torch.complex128, device=between.device)
        rotary = rotary_at(
            heads.weights.model, torch.zeros(1, dtype=torch.int64, device=between.device), heads.Q
        )
        if rotary.cos is not None:
            half = rotary.cos.shape[-1] // 2
            first = torch.arange(half, device=between.device)
            second = first + half
            basis[first, first] = basis[first, second] = 0.5**0.5
            basis[second, first], basis[second, second] = -(0.5**0.5) * 1j, 0.5**0.5 * 1j
        factors = torch.einsum("ik,tij,jk->tk", basis.conj(), between.to(basis.dtype), basis)
        return cls(basis, factors.mT @ factors.conj() / len(factors))

    def averaged(
        self, gram: Float[Tensor, "head d_head d_head"], *, forward: bool
    ) -> Float[Tensor, "head d_head d_head"]:
        """The mean of ``R G R^T``, or if not `forward` of ``R^T G R``."""
        inside = self.basis.conj().mT @ gram.to(self.basis.dtype) @ self.basis
        mean = self.mean if forward else self.mean.conj()
        return (self.basis @ (inside * mean) @ self.basis.conj().mT).real
