"""What stands in for a component that is taken away."""

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from jaxtyping import Bool
from torch import Tensor

from mlp_interp.residual import Stand
from mlp_interp.sites import Site

__all__ = ["Baseline", "stand_in"]

Baseline = Literal["zero", "mean", "resample"]


def stand_in(
    baseline: str,
    batch: int,
    *,
    seed: int = 0,
    means: Mapping[Site, Tensor] | None = None,
    real: Bool[Tensor, "batch pos"] | None = None,
) -> Stand:
    """How to replace activations.

    Args:
        baseline: ``"zero"``; ``"mean"`` over batch and positions (of the clean run, or `means` if
            given); ``"resample"``: the activation at the same position of another sequence.
        batch: Number of sequences.
        seed: Which other sequence.
        means: Means over a larger corpus than the batch at hand.
        real: Where text is, not padding: means are over that; None for everywhere.

    Raises:
        ValueError: Unknown baseline, or resampling among fewer than two sequences or among texts of
            unequal length.
    """
    if baseline not in get_args(Baseline):
        raise ValueError(f"baseline={baseline!r}; wanted 'zero', 'mean' or 'resample'")
    if baseline == "zero":
        return lambda _site, x: torch.zeros_like(x)
    if baseline == "mean":
        if means is not None:
            return lambda site, x: means[site].to(x).expand_as(x)
        if real is not None:
            return lambda _site, x: x[real.to(x.device)].mean(0).expand_as(x)
        return lambda _site, x: x.mean((0, 1), keepdim=True).expand_as(x)
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
