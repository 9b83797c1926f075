"""How the normalised stream changes when something is taken out of it."""

from jaxtyping import Float
from torch import Tensor

from mlp_interp.models.unembed import Unembed

__all__ = ["stream_change", "stream_scale"]


def stream_scale(unembed: Unembed, total: Float[Tensor, "*rows d_model"]) -> Tensor:
    """The final LayerNorm's scale of a centred stream."""
    return (total.square().mean(-1, keepdim=True) + unembed.eps).sqrt()


def stream_change(
    unembed: Unembed,
    total: Float[Tensor, "*rows d_model"],
    removed: Float[Tensor, "*more_rows d_model"],
    *,
    norm: str,
) -> Float[Tensor, "*more_rows d_model"]:
    """Change of the normalised stream when `removed` is taken out; both centred.

    Computed from the change of the variance, so that a small removal gives a small change to full
    relative precision instead of the difference of two nearly equal streams.
    """
    scale = stream_scale(unembed, total)
    if norm == "freeze":
        return -removed / scale
    fall = (removed * (2 * total - removed)).mean(-1, keepdim=True)
    new_scale = (scale.square() - fall).clamp_min(unembed.eps).sqrt()
    inverse_rise = fall / (scale * new_scale * (scale + new_scale))
    return total * inverse_rise - removed / new_scale
