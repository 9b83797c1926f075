"""A word about models whose numbers are too coarse for parts to add up."""

import warnings

import torch

from mlp_interp.models.weights import Weights

__all__ = ["warn_of_rounding"]


def warn_of_rounding(weights: Weights, what: str) -> None:
    """Warn that a model of half precision rounds at the second or third digit.

    Args:
        weights: The model's.
        what: Who says so: a public function without gradients, which is called by the user.

    Warns:
        UserWarning: It does.
    """
    if weights.dtype not in (torch.float32, torch.float64):
        warnings.warn(
            f"{what}: model={weights.model.cfg.model_name!r} is {weights.dtype}, whose rounding is "
            "larger than many a share, and what should add up does not; load it with "
            "dtype=torch.float32",
            stacklevel=4,
        )
