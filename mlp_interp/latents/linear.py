"""The affine map with the least squared error from what a dictionary reads to what it writes."""

from collections.abc import Iterable

import torch
from torch import Tensor

from mlp_interp.dictionaries import Dictionary, Relu
from mlp_interp.latents.places import Place
from mlp_interp.latents.spliced import Batch, read_in
from mlp_interp.lens.moments import solved

__all__ = ["Linear", "linear_maps"]

_RIDGE = 1e-6


class Linear:
    """Sums over tokens of which the map is made, in double precision."""

    def __init__(self, place: Place) -> None:
        """Start with no tokens."""
        d_in, d_out = place.own.W_enc.shape[0], place.own.d_out
        self.place = place
        self.tokens = 0
        self.square = torch.zeros(d_in, d_in, dtype=torch.float64)
        self.cross = torch.zeros(d_in, d_out, dtype=torch.float64)
        self.x, self.y = self.cross[:, 0].clone(), self.cross[0].clone()
        self.lengths = torch.zeros((), dtype=torch.float64)
        self.left = torch.zeros((), dtype=torch.float64)

    def add(self, batch: Batch) -> None:
        """Sum up the tokens of a run that count, also what dictionaries leave over."""
        x, y = (side[batch.counts] for side in read_in(batch.run, self.place.own))
        rebuilt = self.place.rebuilt(batch.run, batch.counts).to(y)
        self.left += (rebuilt - y).double().square().sum().cpu()
        x, y = x.double().cpu(), y.double().cpu()
        self.tokens += len(x)
        self.square += x.T @ x
        self.cross += x.T @ y
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.lengths += y.square().sum()

    @property
    def mean(self) -> Tensor:
        """The mean of what is written."""
        return (self.y / self.tokens).float()

    @property
    def variance(self) -> Tensor:
        """Of what is written, over all tokens together."""
        return self.lengths - self.y.square().sum() / self.tokens

    @property
    def fvu(self) -> float:
        """The share of variance that dictionaries leave over."""
        return float(self.left / self.variance)

    def solved(self) -> tuple[Dictionary, float]:
        """The map as a dictionary without latents worth the name, and the variance it leaves over.

        An SAE's would be the identity; of it the mean is given instead, which leaves all over.
        """
        one, n = self.place.own, self.tokens
        weight = torch.zeros_like(self.cross)
        bias = self.y / n
        if not one.is_sae:
            weight, bias = solved(self.square / n, self.cross / n, self.x / n, self.y / n, _RIDGE)
        explained = 2 * (weight * (self.cross - torch.outer(self.x, self.y) / n)).sum()
        around = self.square - torch.outer(self.x, self.x) / n
        explained -= ((around @ weight) * weight).sum()
        like = one.W_dec
        made = Dictionary(
            torch.zeros_like(one.W_enc[:, :1]),
            torch.zeros_like(one.b_enc[:1]),
            torch.zeros_like(one.W_dec[:1]),
            bias.to(like),
            Relu(),
            layer=one.layer,
            reads=one.reads,
            writes=one.writes,
            W_skip=weight.to(like),
        )
        return made, float(1 - explained / self.variance)


def linear_maps(batches: Iterable[Batch], places: Iterable[Place]) -> list[Linear]:
    """Sums over a corpus, for each place."""
    found = [Linear(one) for one in places]
    for batch in batches:
        for one in found:
            one.add(batch)
    return found
