"""What processing a model's weights have had, read off the weights."""

from typing import Literal

from mlp_interp.models.weights import Weights

__all__ = ["centred", "processing"]


def centred(weights: Weights) -> bool:
    """Whether what is written to the stream has lost its mean over ``d_model``."""
    if weights.final_norm.kind != "layer":
        return False
    mean = weights.W_E.float().mean(-1).abs().max()
    return bool(mean < 1e-5 * weights.W_E.float().abs().max())


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
    gone = [weights.block(layer).ln2.folded] if reads == "mlp_in" else []
    if weights.final_norm.kind == "layer":
        gone.append(centred(weights))
    if not gone:
        return None
    return "neither" if len({*gone}) > 1 else "folded" if gone[0] else "raw"
