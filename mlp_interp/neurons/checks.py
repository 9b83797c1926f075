"""Counts, the seed and the weights: checked before anything is computed."""

from typing import Any

import torch
from torch import Tensor

from mlp_interp.models.protocol import Model

__all__ = ["check_counts", "check_finite", "check_weights", "checked_count", "checked_seed"]


def check_counts(least: int = 1, **counts: Any) -> None:
    """Refuse counts that are none.

    Raises:
        ValueError: One is no integer from `least`.
    """
    for name, count in counts.items():
        if type(count) is not int or count < least:
            raise ValueError(f"{name}={count!r}; wanted an integer from {least}")


def checked_count(k: Any, size: int, of: str, *, name: str = "k") -> int:
    """How many of `size` things to give.

    Raises:
        ValueError: It is no integer from 1 to `size`; `of` says what there are so many of.
    """
    if size < 1:
        raise ValueError(f"{name}={k!r}, but the number of {of} is 0; wanted a larger model")
    if type(k) is not int or not 1 <= k <= size:
        raise ValueError(f"{name}={k!r}; wanted an integer from 1 to {size}, the number of {of}")
    return k


def checked_seed(seed: Any) -> int:
    """A seed of torch's generators.

    Raises:
        ValueError: It is none.
    """
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise ValueError(f"seed={seed!r}; wanted an integer from 0, below 2**63")
    return seed


def check_finite(name: str, *values: Tensor) -> None:
    """Refuse weights that are not finite, or what was computed of such.

    Raises:
        ValueError: They are not; `name` says what holds them.
    """
    if not all(bool(torch.isfinite(x).all()) for x in values):
        raise ValueError(
            f"{name} holds NaN or infinity; wanted finite weights: look at them with "
            "check_model(model)"
        )


def check_weights(model: Model) -> None:
    """Refuse a model with weights that are not finite: one NaN makes all that is computed NaN.

    Raises:
        ValueError: Naming the first of them.
    """
    for name, x in model.named_parameters():
        check_finite(name, x)
