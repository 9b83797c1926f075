"""Many vectors against every token, a piece of the vocabulary at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.models.finite import check_finite
from mlp_interp.models.norm import Norm
from mlp_interp.models.unembed import Unembed
from mlp_interp.models.weights import Weights
from mlp_interp.results import single

__all__ = ["Best", "LogitMoments", "Ranks", "TokenDirections", "absolute"]

_TOKENS = 4096
"""Tokens at a time: their products with some hundred vectors stay in a core's cache."""
_GROUP = 16


@dataclass(frozen=True)
class TokenDirections:
    """A direction in the stream for each token, and its length.

    Attributes:
        matrix: One column a token.
        mean: Subtracted from each column before anything else.
        inverse: One over the L2 norm of what norms keep of each column less that; zero where
            nothing but rounding is left.
    """

    matrix: Float[Tensor, "d_model d_vocab"]
    mean: Float[Tensor, " d_model"]
    inverse: Float[Tensor, " d_vocab"]

    @classmethod
    def embedding(cls, weights: Weights) -> "TokenDirections":
        """Rows of ``W_E``, as the norms see them: LayerNorms without the mean over ``d_model``.

        Raises:
            ValueError: They are not finite.
        """
        matrix = weights.W_E.T
        mean = single(matrix[:, 0]).new_zeros(len(matrix))
        return cls._of(matrix, mean, "W_E", weights.norm)

    @classmethod
    def unembedding(cls, weights: Weights) -> "TokenDirections":
        """Columns of the folded readout ``W'`` less their mean over the vocabulary.

        The mean moves all logits alike, so no probability feels it; processing takes it out.

        Raises:
            ValueError: They are not finite.
        """
        unembed = Unembed.of(weights.model)
        mean = single(unembed.weight).mean(1)
        return cls._of(unembed.weight, mean, "the readout", unembed.norm)

    @classmethod
    def _of(cls, matrix: Tensor, mean: Tensor, name: str, norm: Norm) -> "TokenDirections":
        pieces = [_norms(single(piece).T, mean, norm) for piece in matrix.split(_TOKENS, dim=1)]
        norms = torch.cat(pieces)
        check_finite(name, norms)
        return cls(matrix, mean, torch.where(norms > 0, 1 / norms, 0))

    def columns(self, tokens: Int[Tensor, "*rest"]) -> Float[Tensor, "*rest d_model"]:
        """Some tokens' directions, less the mean."""
        return single(self.matrix.T[tokens]) - self.mean

    def read(
        self, vectors: Float[Tensor, "neuron d_model"]
    ) -> Iterator[tuple[slice, Float[Tensor, "neuron token"]]]:
        """Dot products of vectors without a mean with the tokens, and which tokens these are."""
        offset = -(vectors @ self.mean)[:, None]
        start = 0
        for piece in self.matrix.split(_TOKENS, dim=1):
            tokens = slice(start, start + piece.shape[1])
            yield tokens, torch.addmm(offset, vectors, single(piece))
            start = tokens.stop


def _norms(
    columns: Float[Tensor, "token d_model"], mean: Float[Tensor, " d_model"], norm: Norm
) -> Float[Tensor, " token"]:
    norms = norm.keep(columns - mean).norm(dim=-1)
    rounding = 4 * torch.finfo(norms.dtype).eps * (columns.norm(dim=-1) + mean.norm())
    return torch.where(norms <= rounding, 0, norms)


def absolute(x: Tensor) -> Tensor:
    """The size of a number: as `Best`'s key, for the largest of either sign."""
    return x.abs()


class Best:
    """The best tokens for each vector, kept while pieces of the vocabulary come along."""

    def __init__(self, k: int, key: Callable[[Tensor], Tensor]) -> None:
        """The `k` tokens with the largest `key` of their number."""
        self.k, self.key = k, key
        self._found: list[tuple[Tensor, Tensor]] = []

    def add(self, tokens: slice, x: Float[Tensor, "neuron token"]) -> None:
        """Look at the numbers of further tokens."""
        at = _largest(self.key(x), min(self.k, x.shape[1]))
        self._found.append((x.gather(1, at), at + tokens.start))

    def numbers_and_tokens(
        self,
    ) -> tuple[Float[Tensor, "neuron rank"], Int[Tensor, "neuron rank"]]:
        """Numbers and ids of the best tokens, best first."""
        numbers, tokens = (torch.cat(pieces, dim=1) for pieces in zip(*self._found, strict=True))
        at = self.key(numbers).topk(self.k).indices
        return numbers.gather(1, at), tokens.gather(1, at)


def _largest(x: Float[Tensor, "neuron token"], k: int) -> Int[Tensor, "neuron some"]:
    """Where the `k` largest numbers of each row are, in any order.

    They are in the `k` groups with the largest maxima. A group's numbers stand apart in the row, so
    that maxima are those of whole runs of numbers, which processors find at once.
    """
    rows, size = x.shape
    groups = size // _GROUP
    if size % _GROUP or groups <= k:
        return x.topk(k, sorted=False).indices
    at = x.view(rows, _GROUP, groups).amax(1).topk(k, sorted=False).indices
    inside = torch.arange(_GROUP, device=x.device)[:, None] * groups
    places = (at[:, None] + inside).flatten(1)
    return places.gather(1, x.gather(1, places).topk(k, sorted=False).indices)


class LogitMoments:
    """Variance, skew and excess kurtosis over the vocabulary of numbers whose mean is zero."""

    def __init__(self) -> None:
        """Nothing seen yet."""
        self._sums: list[Tensor] = []
        self._count = 0

    def add(self, _tokens: slice, x: Float[Tensor, "neuron token"]) -> None:
        """Look at the numbers of further tokens."""
        square = x.square()
        powers = square.sum(1), (square * x).sum(1), square.square_().sum(1)
        self._sums.append(torch.stack(powers).double())
        self._count += x.shape[1]

    def result(self) -> Float[Tensor, "3 neuron"]:
        """The three; skew and kurtosis are NaN where all numbers are zero."""
        second, third, fourth = torch.stack(self._sums).sum(0) / self._count
        return torch.stack([second, third / second**1.5, fourth / second**2 - 3])


class Ranks:
    """How many tokens come before some that were chosen, for each vector.

    Args:
        chosen: The tokens of each vector.
        numbers: Theirs, as a product of each vector with the token.
        sign: 1 where tokens with larger numbers come before, -1 where those with smaller ones do.
    """

    def __init__(
        self,
        chosen: Int[Tensor, "neuron chosen"],
        numbers: Float[Tensor, "neuron chosen"],
        sign: Float[Tensor, "neuron chosen"],
    ) -> None:
        self.chosen, self.sign, self.numbers = chosen, sign, numbers * sign
        self.before = torch.zeros_like(self.numbers)

    def add(self, tokens: slice, x: Float[Tensor, "neuron token"]) -> None:
        """Look at the numbers of further tokens."""
        ones, larger = x.new_ones(x.shape[1]), torch.empty_like(x)
        for column, sign in enumerate(self.sign.T[:, :, None]):
            signed = x if bool((sign == 1).all()) else x * sign
            torch.gt(signed, self.numbers[:, column, None], out=larger)
            self.before[:, column] += larger @ ones
        self._leave_out_own(tokens, x)

    def _leave_out_own(self, tokens: slice, x: Float[Tensor, "neuron token"]) -> None:
        # Here its number is of another product than the one given, and may differ in the last bit.
        place = self.chosen - tokens.start
        here = (place >= 0) & (place < x.shape[1])
        own = x.gather(1, place.clamp(0, x.shape[1] - 1)) * self.sign
        self.before -= (here & (own > self.numbers)).to(x.dtype)
