"""What processing a model's weights have had, read off the weights."""

from typing import Literal

import torch
from torch import Tensor

from mlp_interp.models.weights import Weights

__all__ = ["centred", "processing", "without_mean"]


def without_mean(weight: Tensor) -> bool:
    """Whether the last axis has mean zero, up to rounding of the weights' own type.

    Independent numbers of root mean square r have means of about ``r / sqrt(n)``. Those of weights
    that were centred are the type's rounding of that: a half precision's is seen beside it, too.
    """
    w = weight.detach().float()
    if not w.numel():
        return True
    rms = w.norm() / w.numel() ** 0.5
    left = w.mean(-1).square().mean().sqrt()
    rounding = 4 * torch.finfo(weight.dtype).eps / w.shape[-1] ** 0.5
    return bool(left < max(1e-5, rounding) * rms)


def centred(weights: Weights) -> bool:
    """Whether what is written to the stream has lost its mean over ``d_model``."""
    if weights.final_norm.kind != "layer":
        return False
    return without_mean(weights.W_E)


def _folded(weights: Weights, layer: int) -> bool:
    """Whether the MLP's norm only standardises, for its scale and shift are in ``W_in``.

    That an untrained one does so, too. Where norms take out the mean, folding takes it out of what
    reads them, by which the two are told apart.
    """
    block = weights.block(layer)
    reads_mean = weights.final_norm.kind == "layer" and not without_mean(block.W_in.transpose(0, 1))
    return block.ln2.folded and not reads_mean


def processing(
    weights: Weights, layer: int, reads: str
) -> Literal["raw", "folded", "neither"] | None:
    """What has become of a place that is read and of the stream that is written to.

    The norm's scale and shift count where they are in what is read (``mlp_in``). The mean of the
    stream counts where norms take it out, and weights may be centred for that.

    Args:
        weights: The model's.
        layer: Of the block.
        reads: The place that is read.

    Returns:
        ``"folded"`` where scale and mean are gone, ``"raw"`` where both are there, ``"neither"`` of
        folded weights that are not centred, or the reverse; None where processing changes nothing.
    """
    gone = [_folded(weights, layer)] if reads == "mlp_in" else []
    if weights.final_norm.kind == "layer":
        gone.append(centred(weights))
    if not gone:
        return None
    return "neither" if len({*gone}) > 1 else "folded" if gone[0] else "raw"
