"""Products of long thin matrices through their small cores: spectra, ranks, chance."""

import torch
from jaxtyping import Float
from torch import Tensor

from mlp_interp.models.norm import Norm

__all__ = ["frames", "root", "signs", "singular_values"]


def signs(core: Float[Tensor, "*any k k"]) -> tuple[Float[Tensor, "*any"], Float[Tensor, "*any"]]:
    """Of a core's eigenvalues: their sum, and the negative real parts, over the sum of their sizes.

    The eigenvalues other than zero of ``A B``, however large, are those of the core ``B A``. The
    first is 1 where all are positive numbers.
    """
    values = torch.linalg.eigvals(core)
    total = values.abs().sum(-1).clamp_min(torch.finfo(core.dtype).tiny)
    return values.real.sum(-1) / total, (-values.real).clamp_min(0).sum(-1) / total


def root(gram: Float[Tensor, "*any k k"]) -> Float[Tensor, "*any k k"]:
    """The symmetric root of a Gram matrix."""
    values, vectors = torch.linalg.eigh(gram)
    return vectors * values.clamp_min(0).sqrt()[..., None, :] @ vectors.mT


def singular_values(
    left: Float[Tensor, "*any k k"], right: Float[Tensor, "*any k k"]
) -> Float[Tensor, "*any k"]:
    """Singular values of ``A B`` from the Gram matrices ``A^T A`` and ``B B^T``."""
    return torch.linalg.svdvals(root(left) @ root(right))


def frames(
    norm: Norm, d_model: int, k: int, draws: int, generator: torch.Generator
) -> Float[Tensor, "draw d_model k"]:
    """Random orthonormal vectors of the space that norms let through, in double precision."""
    drawn = torch.randn(draws, k, d_model, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(norm.keep(drawn).mT)[0]
