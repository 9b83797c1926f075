"""The most that a reader takes of what a writer writes, in any one direction, and by chance."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mlp_interp.heads._sides import Side, runs, unheard

__all__ = ["spectral"]

_DRAWS = 48
_STEPS = 12
"""Of Lanczos: where spectra fall, as trained heads' do, largest singular values are then known to a
thousandth of their spread by chance; of 64 equal ones to a tenth of it."""
_NUMBERS = 2**24
"""Of products that are held at once."""


def spectral(
    writer: Side, reader: Side, before: Sequence[int], m: int, seed: int
) -> tuple[Float[Tensor, "writer reader"], ...]:
    """Scores of all pairs, how far they are above their mean by chance, and that mean.

    There is no closed form for that chance. It is drawn: the writer's singular values and the
    reader's, with a random rotation between the two, the same ones for all pairs.

    Args:
        writer: Ordered by layers.
        reader: Alike.
        before: How many of the writers write before each reader; the others have NaN.
        m: Dimensions in which the one may be rotated against the other.
        seed: Of the rotations.
    """
    factors = [side.factor for side in (writer, reader)]
    values = [_singular_values(factor) for factor in factors]
    blocks = _rotations(m, factors[0].shape[2], seed, factors[0])
    shape = len(factors[0]), len(factors[1])
    score, mean, sd = (factors[0].new_zeros(shape, dtype=torch.float64) for _ in range(3))
    for number, columns in runs(before):
        top = _norms(factors[0][:number], factors[1][columns])
        a, b = values[0][:number], values[1][columns]
        size = torch.outer(a[:, 0], b[:, 0]).double()
        score[:number, columns] = top.double() / size
        drawn = torch.stack([_largest(a, block, b) for block in blocks]).double() / size
        mean[:number, columns], sd[:number, columns] = drawn.mean(0), drawn.std(0)
    hidden = unheard(shape[0], before).to(score.device)
    return tuple(x.masked_fill(hidden, torch.nan) for x in (score, (score - mean) / sd, mean))


def _singular_values(factor: Float[Tensor, "head d_model k"]) -> Float[Tensor, "head k"]:
    """The largest ones first."""
    gram = (factor.mT @ factor).double()
    return torch.linalg.eigvalsh(gram).flip(-1).clamp_min(0).sqrt().to(factor)


def _norms(
    first: Float[Tensor, "writer d_model k"], second: Float[Tensor, "reader d_model k"]
) -> Float[Tensor, "writer reader"]:
    """Largest singular values of the products of each pair's factors, some readers at a time."""
    k = first.shape[2]
    rows = first.mT.flatten(0, 1)
    found = []
    for some in second.split(max(1, _NUMBERS // (len(rows) * k))):
        cores = (rows @ some.transpose(0, 1).flatten(1)).view(len(first), k, len(some), k)
        found.append(torch.linalg.matrix_norm(cores.transpose(1, 2), ord=2))
    return torch.cat(found, dim=1)


def _rotations(m: int, k: int, seed: int, like: Tensor) -> list[Tensor]:
    """What random rotations of `m` dimensions have between `k` directions and `k` others."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(_DRAWS):
        Q, R = torch.linalg.qr(torch.randn(m, min(k, m), generator=generator, dtype=torch.float32))
        found.append((Q * R.diagonal().sign())[:k].to(like))
    return found


def _largest(
    a: Float[Tensor, "writer k"], block: Float[Tensor, "n n"], b: Float[Tensor, "reader k"]
) -> Float[Tensor, "writer reader"]:
    """Largest singular values of ``diag(a) block diag(b)`` of all pairs.

    Steps of Lanczos multiply the one block with a vector of each pair, all pairs at a time.
    """
    n = len(block)
    left, right = a.T[:n, :, None], b.T[:n, None]
    now = block.new_full((n, len(a), len(b)), n**-0.5)
    old, beta = torch.zeros_like(now), now.new_zeros(now.shape[1:])
    diagonal, beside = [], []
    for _ in range(min(_STEPS, n)):
        seen = left * left * torch.tensordot(block, right * now, 1)
        new = right * torch.tensordot(block.T, seen, 1) - beta * old
        diagonal.append((new * now).sum(0))
        new -= diagonal[-1] * now
        beta = new.norm(dim=0)
        beside.append(beta)
        old, now = now, new / beta.clamp_min(torch.finfo(new.dtype).tiny)
    tridiagonal = torch.diag_embed(torch.stack(diagonal, -1))
    if len(beside) > 1:
        # The lower triangle is all that is read.
        tridiagonal += torch.diag_embed(torch.stack(beside[:-1], -1), offset=-1)
    return torch.linalg.eigvalsh(tridiagonal)[..., -1].clamp_min(0).sqrt()
