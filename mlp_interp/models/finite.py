"""Weights, checked before anything is computed."""

import torch
from torch import Tensor

from mlp_interp.models.protocol import Model

__all__ = ["check_finite", "check_weights"]


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
