"""How the normalised stream changes when something is taken out of it."""

from jaxtyping import Float
from torch import Tensor

from mlp_interp.models.unembed import Unembed

__all__ = ["stream_change"]


def stream_change(
    unembed: Unembed,
    total: Float[Tensor, "*rows d_model"],
    removed: Float[Tensor, "*more_rows d_model"],
    *,
    norm: str,
) -> Float[Tensor, "*more_rows d_model"]:
    """Change of the normalised stream when `removed` is taken out; both as the norm keeps them.

    A small removal gives a small change to full relative precision, which the difference of two
    nearly equal streams would not.
    """
    scale = unembed.scale(total)
    if norm == "freeze":
        return -removed / scale
    fall = (removed * (2 * total - removed)).mean(-1, keepdim=True)
    new_scale, inverse_rise = unembed.norm.after(scale, fall)
    return total * inverse_rise - removed / new_scale
