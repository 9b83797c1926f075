"""Products of long thin matrices through their small cores: spectra, ranks, chance."""

import torch
from jaxtyping import Float
from torch import Tensor

from mlp_interp.models.norm import Norm

__all__ = ["elsewhere", "root", "signs", "singular_values", "triangular"]


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


def triangular(gram: Float[Tensor, "*any k k"]) -> Float[Tensor, "*any k k"]:
    """Any root ``L`` with ``L L^T`` the Gram matrix, the fastest there is."""
    found, wrong = torch.linalg.cholesky_ex(gram)
    return root(gram) if bool(wrong.any()) else found


def singular_values(
    left: Float[Tensor, "*any k k"], right: Float[Tensor, "*any k k"]
) -> Float[Tensor, "*any k"]:
    """Singular values of ``A B`` from the Gram matrices ``A^T A`` and ``B B^T``."""
    return torch.linalg.svdvals(root(left) @ root(right))


def elsewhere(
    norm: Norm, matrices: Float[Tensor, "head d_model k"], draws: int, generator: torch.Generator
) -> Float[Tensor, "draw d_model k"]:
    """Matrices of the same singular values that point anywhere in what norms let through.

    One for each head in turn. They depend on the basis of their k columns as the given ones do.
    """
    d_model, k = matrices.shape[1:]
    # A head as wide as the stream has a direction more than a LayerNorm lets through.
    k = min(k, d_model - (norm.kind == "layer"))
    drawn = torch.randn(draws, k, d_model, generator=generator, dtype=torch.float32)
    drawn = norm.keep(drawn).to(matrices.device, torch.float64)
    # Orthonormal through the small Gram matrix: there are many more entries than vectors.
    inside = torch.linalg.cholesky(drawn @ drawn.mT)
    frames = torch.linalg.solve_triangular(inside, drawn, upper=False).mT.to(matrices)
    values, vectors = torch.linalg.eigh((matrices.mT @ matrices).double())
    values, vectors = values[:, -k:].to(matrices), vectors[..., -k:].to(matrices)
    # Signs of eigenvectors are arbitrary: let what the matrix makes of them have one.
    images = matrices @ vectors
    largest = images.gather(1, images.abs().argmax(1, keepdim=True))
    stretched = (values.clamp_min(0).sqrt()[:, None] * largest.sign() * vectors).mT
    return frames @ stretched[torch.arange(draws) % len(matrices)]
