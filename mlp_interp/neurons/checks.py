"""Counts, the seed and the weights: checked before anything is computed."""

from typing import Any

import torch

from mlp_interp.models.protocol import Model

__all__ = ["check_counts", "checked_count", "checked_seed", "checked_weights"]


def check_counts(least: int = 1, **counts: Any) -> None:
    """Refuse counts that are none.

    Raises:
        ValueError: One is no integer from `least`.
    """
    for name, count in counts.items():
        if type(count) is not int or count < least:
            raise ValueError(f"{name}={count!r}; wanted an integer from {least}")


def checked_count(k: Any, size: int, of: str) -> int:
    """How many of `size` things to give.

    Raises:
        ValueError: It is no integer from 1 to `size`; `of` says what there are so many of.
    """
    if size < 1:
        raise ValueError(f"k={k!r}, but the number of {of} is 0; wanted a larger model")
    if type(k) is not int or not 1 <= k <= size:
        raise ValueError(f"k={k!r}; wanted an integer from 1 to {size}, the number of {of}")
    return k


def checked_seed(seed: Any) -> int:
    """A seed of torch's generators.

    Raises:
        ValueError: It is none.
    """
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise ValueError(f"seed={seed!r}; wanted an integer from 0, below 2**63")
    return seed


def checked_weights(model: Model) -> None:
    """All weights of a model, which must be finite: one NaN makes all that is computed NaN.

    Raises:
        ValueError: They are not.
    """
    for name, x in model.named_parameters():
        if not bool(torch.isfinite(x).all()):
            raise ValueError(
                f"{name} holds NaN or infinity; wanted finite weights: look at them with "
                "check_model(model)"
            )
