"""The tokens of the vocabulary as heads read them, summed up by what every head is asked about."""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.models import Unembed, Weights
from mlp_interp.models.indices import count
from mlp_interp.models.options import checked_seed, checked_tensor
from mlp_interp.models.protocol import Model
from mlp_interp.models.token_streams import TokenStreams, streams_of
from mlp_interp.results import single

__all__ = ["SAMPLE", "Moments", "Vocabulary"]

SAMPLE = 2**14
"""Tokens that stand for a larger vocabulary: MLP 0 and covariances of 50,000 take half a minute."""

_ROWS = 2048
"""Tokens at a time."""


@dataclass(frozen=True)
class Moments:
    """Of the normalised streams of tokens: double precision, which differences of them need.

    Attributes:
        mean: Their mean.
        covariance: Of their entries.
        readout: Covariance of the entries of each token's direction in the readout with those of
            its stream: what makes heads copy.
    """

    mean: Float[Tensor, " d_model"]
    covariance: Float[Tensor, "d_model d_model"]
    readout: Float[Tensor, "d_model d_model"]


@dataclass
class Vocabulary:
    """What stands for each token, layer by layer, normalised as the layer reads it.

    Attributes:
        weights: The model's.
        streams: The tokens' streams.
        share: How often each token is taken to come; sums to one.
        unembed: The readout.
        known: What has been summed up, by the memory of the streams.
    """

    weights: Weights
    streams: TokenStreams
    share: Float[Tensor, " token"]
    unembed: Unembed
    known: dict[Any, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: Model,
        source: Any,
        *,
        sample: int | None = None,
        frequencies: Any = None,
        seed: int = 0,
    ) -> "Vocabulary":
        """The tokens that somebody asked for.

        Args:
            model: The model.
            source: As of `streams_of`.
            sample: How many tokens, drawn from the vocabulary; None for all. Streams of a corpus
                have tokens of their own.
            frequencies: How often each token of the vocabulary comes; None for all alike.
            seed: Of the draw.

        Raises:
            ValueError: As `streams_of`; streams of tokens that the readout does not have; a sample
                of less than two; frequencies that are not one a token, or negative.
        """
        weights = Weights.of(model)
        some, generator = None, torch.Generator().manual_seed(checked_seed(seed))
        # Tokens that can stand in a text and be predicted: copying is from one to itself.
        size = min(len(weights.W_E), weights.d_vocab)
        if size < len(weights.W_E):
            some = torch.arange(size, device=weights.device)
        if sample is not None:
            count("sample", sample, least=2)
            if sample < size:
                order = torch.randperm(size, generator=generator)
                some = order[:sample].sort().values.to(weights.device)
        streams = streams_of(model, source, tokens=some)
        if int(streams.tokens.max()) >= size:
            raise ValueError(
                f"source={streams.name!r} has token {int(streams.tokens.max())}; wanted tokens "
                f"below {size}, which model={model.cfg.model_name!r} can predict"
            )
        share = _shares(weights, streams.tokens, frequencies)
        return cls(weights, streams, share, Unembed.of(model))

    def rows(self, layer: int, which: Any = slice(None)) -> Float[Tensor, "token d_model"]:
        """Some tokens as a layer's matrices read them."""
        return self.weights.norm.standardize(self.streams.stream(layer)[which])

    def directions(self, which: Any = slice(None)) -> Float[Tensor, "token d_model"]:
        """What the readout has of some of the tokens, less its mean over the vocabulary."""
        return single(self.unembed.weight.T[self.streams.tokens[which]]) - self._mean_direction

    @property
    def _mean_direction(self) -> Float[Tensor, " d_model"]:
        if "mean" not in self.known:
            self.known["mean"] = single(self.unembed.weight).mean(1)
        return self.known["mean"]

    def moments(self, layer: int) -> Moments:
        """Sums over the tokens, once for all layers that read the same streams."""
        key = self._key(layer)
        if key not in self.known:
            self.known[key] = self._summed(layer)
        return self.known[key]

    def cross(self, first: int, second: int) -> Float[Tensor, "d_model d_model"]:
        """Covariance over tokens of what two layers read of them."""
        if self._key(first) == self._key(second):
            return self.moments(first).covariance
        key = self._key(first), self._key(second)
        if key not in self.known:
            total = self.moments(first).mean.new_zeros(*self.moments(first).covariance.shape)
            for some in self._blocks():
                left = self.rows(first, some) * self.share[some, None]
                total += (left.T @ self.rows(second, some)).double()
            total -= torch.outer(self.moments(first).mean, self.moments(second).mean)
            self.known[key] = total
        return self.known[key]

    def directions_covariance(self) -> Float[Tensor, "d_model d_model"]:
        """Covariance over the tokens of their directions in the readout."""
        if "directions" not in self.known:
            size = self.weights.d_model
            total = self.share.new_zeros(size, size, dtype=torch.float64)
            mean = self.share.new_zeros(size, dtype=torch.float64)
            for some in self._blocks():
                rows, share = self.directions(some), self.share[some, None]
                total += ((rows * share).T @ rows).double()
                mean += (rows * share).sum(0).double()
            self.known["directions"] = total - torch.outer(mean, mean), mean
        return self.known["directions"][0]

    def directions_mean(self) -> Float[Tensor, " d_model"]:
        """Mean over the tokens of their directions."""
        self.directions_covariance()
        return self.known["directions"][1]

    def directions_of(self, some: Tensor, seed: int) -> Float[Tensor, "token d_model"]:
        """The same of tokens that were `drawn` with a seed, looked up once for all layers."""
        if ("drawn", seed) not in self.known:
            self.known["drawn", seed] = self.directions(some)
        return self.known["drawn", seed]

    def drawn(self, number: int, seed: int) -> Int[Tensor, " token"]:
        """Places of some tokens, all of them where there are no more."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.streams.tokens), generator=generator)[:number]
        return order.to(self.share.device)

    def _summed(self, layer: int) -> Moments:
        size = self.weights.d_model
        mean, written = (self.share.new_zeros(size, dtype=torch.float64) for _ in range(2))
        second, readout = (self.share.new_zeros(size, size, dtype=torch.float64) for _ in range(2))
        for some in self._blocks():
            rows = self.rows(layer, some)
            weighed, directions = rows * self.share[some, None], self.directions(some)
            mean += weighed.sum(0).double()
            written += (directions * self.share[some, None]).sum(0).double()
            second += (weighed.T @ rows).double()
            readout += (directions.T @ weighed).double()
        return Moments(mean, second - torch.outer(mean, mean), readout - torch.outer(written, mean))

    def _blocks(self) -> list[slice]:
        return [slice(i, i + _ROWS) for i in range(0, len(self.share), _ROWS)]

    def _key(self, layer: int) -> int:
        return self.streams.stream(layer).data_ptr()

    @property
    def whole(self) -> bool:
        """Whether it is more than a sample."""
        return len(self.share) >= self.weights.d_vocab

    def attrs(self, layers: Any) -> dict[str, Any]:
        """What results say of it."""
        found = {"data": "the weights alone", **self.streams.attrs(layers)}
        if self.whole:
            return found
        some = f"{len(self.share)} tokens of the vocabulary"
        about = [found[x] for x in ("approximation",) if x in found]
        about = "; ".join([*about, f"{some} stand for all {self.weights.d_vocab}"])
        return found | {"data": f"{found['data']}, {some}", "exact": 0, "approximation": about}


def _shares(weights: Weights, tokens: Tensor, frequencies: Any) -> Float[Tensor, " token"]:
    if frequencies is None:
        even = 1 / len(tokens)
        return torch.full((len(tokens),), even, dtype=torch.float32, device=tokens.device)
    wanted = f"one finite number from 0 for each of the {weights.d_vocab} tokens, some above"
    given = checked_tensor("frequencies", frequencies, wanted).cpu()
    if given.shape != (weights.d_vocab,) or given.is_complex():
        raise ValueError(f"frequencies={tuple(given.shape)} of {given.dtype}; wanted {wanted}")
    some = given.double()[tokens.cpu()]
    if not bool(((given >= 0) & given.isfinite()).all() & (some > 0).any()):
        least, most = float(given.min()), float(given.max())
        raise ValueError(f"frequencies has numbers from {least} to {most}; wanted {wanted}")
    return (some / some.sum()).to(tokens.device, torch.float32)
