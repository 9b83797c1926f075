"""What stands in for a component that is taken away."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool
from torch import Tensor

from mlp_interp.models.options import check_choice, checked_seed
from mlp_interp.residual import Stand
from mlp_interp.sites import Site

__all__ = ["Baseline", "StandIn", "stand_in"]

Baseline = Literal["zero", "mean", "resample"]


@dataclass(frozen=True, eq=False)
class StandIn:
    """How activations are replaced, and where.

    Attributes:
        counts: Which tokens are; elsewhere activations stay as they are.
        instead: What stands in at these.
    """

    counts: Bool[Tensor, "batch pos"]
    instead: Stand

    def __call__(self, site: Site, x: Tensor) -> Tensor:
        """The activation ``[batch, pos, ...]`` of a site, replaced."""
        return torch.where(self.at(x), self.instead(site, x), x)

    def at(self, x: Tensor) -> Bool[Tensor, "batch pos ..."]:
        """Which tokens count, as broadcasts to an activation."""
        return self.counts.to(x.device).view(*self.counts.shape, *[1] * (x.ndim - 2))


def stand_in(
    baseline: str,
    counts: Bool[Tensor, "batch pos"],
    *,
    seed: Any = 0,
    means: Mapping[Site, Tensor] | None = None,
    real: Bool[Tensor, "batch pos"] | None = None,
) -> StandIn:
    """How to replace activations; where tokens do not count they stay as they are.

    Args:
        baseline: ``"zero"``; ``"mean"`` over all tokens that count (of the clean run, or `means` if
            given); ``"resample"``: the activation at the same position of another sequence.
        counts: Which tokens do (`mlp_interp.models.padding.which_count`).
        seed: Which other sequence.
        means: Means over a larger corpus than the batch at hand.
        real: Where text is, not padding; None for everywhere.

    Raises:
        ValueError: Unknown baseline, or resampling among fewer than two sequences or among texts of
            unequal length.
    """
    checked_seed(seed)
    return StandIn(counts, _instead(baseline, counts, seed, means, real))


def _instead(
    baseline: str,
    counts: Bool[Tensor, "batch pos"],
    seed: int,
    means: Mapping[Site, Tensor] | None,
    real: Bool[Tensor, "batch pos"] | None,
) -> Stand:
    """What stands in at tokens that count."""
    check_choice("baseline", baseline, get_args(Baseline))
    if baseline == "zero":
        return lambda _site, x: torch.zeros_like(x)
    if baseline == "mean":
        if means is not None:
            return lambda site, x: means[site].to(x).expand_as(x)
        return lambda _site, x: x[counts.to(x.device)].mean(0).expand_as(x)
    batch = len(counts)
    if real is not None:
        lengths = real.sum(1)
        raise ValueError(
            f"baseline='resample' with texts of {int(lengths.min())} to {int(lengths.max())} "
            "tokens, of which the shorter have nothing at later positions; wanted one length, or "
            "baseline='mean'"
        )
    if batch < 2:
        raise ValueError(f"baseline='resample' with {batch} sequence; wanted at least 2")
    order = torch.randperm(batch, generator=torch.Generator().manual_seed(seed))
    donors = torch.empty_like(order)
    donors[order] = order.roll(1)  # one cycle: no sequence is its own donor
    return lambda _site, x: x[donors.to(x.device)]
