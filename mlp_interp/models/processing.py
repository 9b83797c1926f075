"""What processing a model's weights have had, read off the weights."""

from mlp_interp.models.weights import Weights

__all__ = ["centred", "folded"]


def centred(weights: Weights) -> bool:
    """Whether what is written to the stream has lost its mean over ``d_model``."""
    if weights.final_norm.kind != "layer":
        return False
    mean = weights.W_E.float().mean(-1).abs().max()
    return bool(mean < 1e-5 * weights.W_E.float().abs().max())


def folded(weights: Weights, layer: int) -> bool:
    """Whether what a block's MLP reads has lost the norm's scale, or the stream its mean.

    Where the norm is no LayerNorm nothing is centred, and the norm's own scale tells.
    """
    if weights.final_norm.kind == "layer":
        return centred(weights)
    return weights.block(layer).ln2.folded
