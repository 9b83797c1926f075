"""Train toy models of superposition, all sparsities and restarts at once."""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mlp_interp.models.indices import count
from mlp_interp.models.options import (
    check_choice,
    checked_number,
    checked_numbers,
    checked_seed,
)
from mlp_interp.models.own_mode import own_mode
from mlp_interp.results import to_numpy, variable

__all__ = ["dimensionality", "toy_models", "trained"]

Activation = Literal["relu", "linear"]


def toy_models(
    n_features: int,
    d: int,
    probability: float | Sequence[float],
    importance: Sequence[float] | None = None,
    *,
    activation: Activation = "relu",
    steps: int = 3000,
    batch_size: int = 512,
    rate: float = 1e-2,
    restarts: int = 1,
    seed: int = 0,
) -> xr.Dataset:
    """Models ``relu(x W W^T + b)`` trained to give back sparse features through few dimensions.

    Each feature is active with the same probability, independently, and then uniform between 0 and
    1. Where features are dense the model keeps the `d` most important ones; where they are sparse
    it keeps more, at angles, and pays with interference. What is found is a minimum that gradient
    descent reached, not the best one: `restarts` gives the best of several.

    Args:
        n_features: How many features there are.
        d: Dimensions that they must pass.
        probability: That a feature is active; one model for each.
        importance: Weight of each feature in the loss; None for equal ones.
        activation: ``"relu"``, or ``"linear"``, whose best solution is that of a principal
            component analysis.
        steps: Of Adam, whose rate falls to 0 along a cosine.
        batch_size: Samples a step.
        rate: Of learning, at the start.
        restarts: Trainings of each model from other weights, of which the best is given.
        seed: Of weights and samples. torch's own random state is neither read nor changed.

    Returns:
        A Dataset over ``instance`` (coordinate ``probability``), ``feature`` and ``d``: ``W``,
        ``b``, ``loss`` (importance-weighted mean squared error a feature, on samples not trained
        on), ``norm`` of each feature's row, ``dimensionality`` ``|W_i|^2 / sum_j (W_i/|W_i| .
        W_j)^2``, the share of a dimension that a feature has, ``gram`` (``feature other``) and
        ``frobenius_per_d``, ``|W|^2 / d``, which counts features a dimension.

    Raises:
        ValueError: Counts below 1, probabilities that are none, an importance for each feature that
            is not there or is negative, or an unknown activation.

    References:
        Elhage et al., "Toy models of superposition", 2022, arXiv:2209.10652.

    Example:
        >>> found = toy_models(5, 2, [0.05], steps=300, batch_size=256)
        >>> found["W"].dims, float(found["dimensionality"].sum()) <= 2.001
        (('instance', 'feature', 'd'), True)
    """
    count("n_features", n_features)
    count("d", d)
    for name, number in {"steps": steps, "batch_size": batch_size, "restarts": restarts}.items():
        count(name, number)
    check_choice("activation", activation, get_args(Activation))
    checked_seed(seed)
    rate = checked_number("rate", rate, lambda x: 0 < x < math.inf, "a positive number")
    wanted = "numbers above 0 and at most 1"
    found = checked_numbers("probability", probability, lambda x: (x > 0) & (x <= 1), wanted)
    shares = torch.from_numpy(found).float()
    weight = _importance(importance, n_features)
    W, b, loss = trained(
        shares.repeat_interleave(restarts),
        weight.expand(len(shares) * restarts, -1),
        d,
        relu=activation == "relu",
        steps=steps,
        batch_size=batch_size,
        rate=rate,
        seed=seed,
    )
    best = loss.view(-1, restarts).argmin(1) + torch.arange(len(shares)) * restarts
    return _dataset(W[best], b[best], loss[best], shares).assign_attrs(
        activation=activation, steps=steps, batch_size=batch_size, restarts=restarts, seed=seed
    )


def _importance(given: Sequence[float] | None, n_features: int) -> Float[Tensor, " feature"]:
    if given is None:
        return torch.ones(n_features)
    wanted = f"{n_features} numbers from 0, one for each feature"
    found = checked_numbers("importance", given, lambda x: (x >= 0) & np.isfinite(x), wanted)
    if len(found) != n_features:
        raise ValueError(f"importance={given}; wanted {wanted}")
    return torch.from_numpy(found).float()


def trained(
    probability: Float[Tensor, " instance"],
    importance: Float[Tensor, "instance feature"],
    d: int,
    *,
    relu: bool = True,
    steps: int,
    batch_size: int = 512,
    rate: float = 1e-2,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """``W``, ``b`` and the loss of models trained side by side, in one product a step."""
    generator = torch.Generator().manual_seed(seed)
    shape = len(probability), batch_size, importance.shape[1]
    with own_mode(), torch.enable_grad():
        W = torch.randn((shape[0], shape[2], d), generator=generator, dtype=torch.float32)
        W = (W / shape[2] ** 0.5).requires_grad_()
        b = torch.zeros(shape[0], 1, shape[2], dtype=torch.float32, requires_grad=True)
        optimizer = torch.optim.Adam([W, b], lr=rate)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
            x = _samples(probability, shape, generator)
            loss = _losses(x, W, b, importance, relu)
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
    W, b = W.detach(), b.detach()
    held_out = [
        _losses(_samples(probability, shape, generator), W, b, importance, relu) for _ in range(20)
    ]
    return W, b[:, 0], torch.stack(held_out).mean(0)


def _samples(
    probability: Tensor, shape: tuple[int, int, int], generator: torch.Generator
) -> Float[Tensor, "instance sample feature"]:
    active, sizes = (torch.rand(shape, generator=generator, dtype=torch.float32) for _ in range(2))
    return (active < probability[:, None, None]) * sizes


def _losses(x: Tensor, W: Tensor, b: Tensor, importance: Tensor, relu: bool) -> Tensor:
    """Of every instance: mean over samples and features."""
    out = x @ W @ W.mT + b
    out = out.relu() if relu else out
    return (importance[:, None] * (x - out).square()).mean((1, 2))


def dimensionality(W: Float[Tensor, "*instance feature d"]) -> Float[Tensor, "*instance feature"]:
    """The share of a dimension that each feature has; 0 for one that is not stored."""
    size = W.square().sum(-1)
    shared = (W @ W.mT).square().sum(-1)
    return torch.where(shared > 1e-12, size.square() / shared.clamp_min(1e-12), 0)


def _dataset(W: Tensor, b: Tensor, loss: Tensor, probability: Tensor) -> xr.Dataset:
    of_feature = ("instance", "feature")
    return xr.Dataset(
        {
            "W": variable((*of_feature, "d"), W, unit="none"),
            "b": variable(of_feature, b, unit="activation"),
            "loss": variable("instance", loss, unit="activation squared"),
            "norm": variable(of_feature, W.norm(dim=-1), unit="none"),
            "dimensionality": variable(of_feature, dimensionality(W), unit="dimensions"),
            "gram": variable((*of_feature, "other"), W @ W.mT, unit="none"),
            "frobenius_per_d": variable(
                "instance", W.square().sum((1, 2)) / W.shape[-1], unit="features per dimension"
            ),
        },
        coords={
            "probability": ("instance", to_numpy(probability)),
            "feature": np.arange(W.shape[1]),
        },
        attrs={
            "analysis": "toy_models",
            "long_name": "toy models of superposition",
            "unit": "see each variable",
            "exact": 0,
            "approximation": "the models that training found",
        },
    )
