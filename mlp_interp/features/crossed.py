"""Correlations of two sets of units that are seen together, a block of tokens at a time."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Crossed", "rotation"]

Layers = Mapping[int, Tensor]
_CONSTANT = 1e-6
"""A spread below this share of a mean is rounding: the unit is the same everywhere."""


class Crossed:
    """Centred sums of two models' units, some layers of each.

    Each block is centred by its own means in double precision and multiplied in single; blocks are
    put together in double by the formula of Chan. So a large mean beside a small spread costs
    nothing, where sums of raw products would lose it.

    Args:
        ours: Layers of the first model, with how many units each has.
        theirs: Layers of the second.
        within: Also sum products of the second's units of one layer, for `rotated`.
    """

    def __init__(
        self, ours: Mapping[int, int], theirs: Mapping[int, int], *, within: bool = True
    ) -> None:
        self.entries = 0
        sides = {"ours": ours, "theirs": theirs}
        self.mean = {s: {n: _zeros(size) for n, size in side.items()} for s, side in sides.items()}
        self.squares = {
            s: {n: _zeros(size) for n, size in side.items()} for s, side in sides.items()
        }
        self.cross = {(a, b): _zeros(n, m) for a, n in ours.items() for b, m in theirs.items()}
        self.within = {b: _zeros(m, m) for b, m in theirs.items()} if within else {}

    def add(self, ours: Layers, theirs: Layers) -> None:
        """Add a block: by layer, activations ``[token, unit]``, the same tokens in all."""
        size = len(next(iter(ours.values())))
        if not size:
            return
        found = {"ours": _centred(ours), "theirs": _centred(theirs)}
        weight = self.entries * size / (self.entries + size)
        moved: dict[str, dict[int, Tensor]] = {}
        for side, blocks in found.items():
            moved[side] = {n: block.mean - self.mean[side][n] for n, block in blocks.items()}
            for n, block in blocks.items():
                self.squares[side][n] += block.squares + weight * moved[side][n].square()
                self.mean[side][n] += moved[side][n] * (size / (self.entries + size))
        for (a, b), total in self.cross.items():
            total += found["ours"][a].rows.T @ found["theirs"][b].rows
            total.addr_(moved["ours"][a], moved["theirs"][b], alpha=weight)
        for b, total in self.within.items():
            rows, shift = found["theirs"][b].rows, moved["theirs"][b]
            total += rows.T @ rows
            total.addr_(shift, shift, alpha=weight)
        self.entries += size

    def constant(self, side: str, layer: int) -> Tensor:
        """Which units are the same at every token."""
        spread = (self.squares[side][layer] / max(1, self.entries)).sqrt()
        return spread <= _CONSTANT * self.mean[side][layer].abs()

    def correlation(self, a: int, b: int) -> Float[Tensor, "ours theirs"]:
        """Of every unit with every other; 0 where one is constant."""
        return self.cross[a, b] * self._inverse("ours", a)[:, None] * self._inverse("theirs", b)

    def rotated(
        self, a: int, b: int, turn: Float[Tensor, "new theirs"]
    ) -> Float[Tensor, "ours new"]:
        """Of every unit with every one of the second model's, when those are turned.

        Nothing is run again: the covariance with a turned set is the turned covariance.
        """
        spread = torch.einsum("ij,ij->i", turn @ self.within[b], turn).clamp_min(0)
        inverse = torch.where(spread > 0, spread, torch.inf).rsqrt()
        return (self.cross[a, b] @ turn.T) * self._inverse("ours", a)[:, None] * inverse

    def _inverse(self, side: str, layer: int) -> Tensor:
        squares = self.squares[side][layer]
        return squares.rsqrt().masked_fill(self.constant(side, layer), 0.0)


class _Block:
    def __init__(self, x: Tensor) -> None:
        exact = x.double()
        self.mean = exact.mean(0)
        exact = exact - self.mean
        self.squares = exact.square().sum(0)
        self.rows = exact.float()


def _centred(layers: Layers) -> dict[int, _Block]:
    return {n: _Block(x.cpu()) for n, x in layers.items()}


def _zeros(*size: int) -> Tensor:
    return torch.zeros(*size, dtype=torch.float64)


def rotation(size: int, seed: int) -> Float[Tensor, "new old"]:
    """A random rotation, uniform over all (or reflections).

    References:
        Mezzadri, "How to generate random matrices from the classical compact groups", 2007.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(size, size, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(draws)
    return q * r.diagonal().sign()


def rectangles(
    ours: Sequence[int], theirs: Sequence[int], size: int, most: float
) -> list[tuple[Sequence[int], Sequence[int]]]:
    """Layers of both models that are crossed in one pass, so that sums stay within memory.

    Args:
        ours: Layers of the first model.
        theirs: Layers of the second.
        size: Bytes that one pair of layers takes.
        most: Bytes that there are; a single pair is crossed in any case.
    """
    pairs = int(most // size)
    wide = min(len(ours), max(1, pairs - 1))
    deep = max(1, pairs // (wide + 1))
    return [
        (ours[i : i + wide], theirs[j : j + deep])
        for j in range(0, len(theirs), deep)
        for i in range(0, len(ours), wide)
    ]
