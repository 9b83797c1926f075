"""What is done to every metric's values: refusing NaN, and putting them between two runs."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mlp_interp.metrics.metric import Metric

__all__ = ["finite", "normalized"]


def finite(
    metric: Metric,
    which: str,
    values: Float[Tensor, " prompt"],
    *,
    numbers: Sequence[int] | None = None,
) -> Float[Tensor, " prompt"]:
    """The values themselves, if none is NaN or infinite.

    Args:
        metric: Whose values they are.
        which: On which prompts: ``"clean"`` or ``"corrupted"``.
        values: The metric.
        numbers: The number of each prompt; None counts from 0.

    Raises:
        ValueError: One is not a finite number.
    """
    for prompt, value in zip(numbers or range(len(values)), values.tolist(), strict=True):
        if not math.isfinite(value):
            raise ValueError(
                f"metric={metric.name!r} is {value} after the {which} prompt {prompt}; wanted a "
                "finite number: check_model says whether the weights are finite"
            )
    return values


def normalized(
    values: Float[Tensor, "*cells prompt"],
    clean: Float[Tensor, " prompt"],
    corrupted: Float[Tensor, " prompt"],
) -> Float[Tensor, "*cells prompt"]:
    """0 where the metric is the corrupted run's, 1 where it is the clean run's.

    NaN for prompts where these two are equal: there is nothing to bring back or to break.

    Example:
        >>> normalized(torch.tensor([[1.0], [3.0]]), torch.tensor([4.0]), torch.tensor([2.0]))
        tensor([[-0.5000],
                [ 0.5000]])
    """
    gap = clean - corrupted
    return (values - corrupted) / torch.where(gap == 0, torch.nan, gap)
