"""How the normalised stream changes when something is taken out of it."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from mlp_interp.models.unembed import Unembed

__all__ = ["BothNorms", "stream_change"]


class BothNorms(NamedTuple):
    """Changes of the normalised stream ``n``, whose scale is taken anew or kept.

    ``recomputed = along * frozen + back * n``, so that one product with the vocabulary gives the
    logits of both.
    """

    recomputed: Float[Tensor, "*more_rows d_model"]
    frozen: Float[Tensor, "*more_rows d_model"]
    along: Float[Tensor, "*more_rows 1"]
    back: Float[Tensor, "*more_rows 1"]

    @classmethod
    def of(
        cls,
        unembed: Unembed,
        total: Float[Tensor, "*rows d_model"],
        removed: Float[Tensor, "*more_rows d_model"],
    ) -> "BothNorms":
        """The changes when `removed` is taken out of `total`; both as the norm keeps them.

        A small removal gives a small change to full relative precision, which the difference of
        two nearly equal streams would not.
        """
        scale = unembed.scale(total)
        fall = (removed * (2 * total - removed)).mean(-1, keepdim=True)
        new_scale, inverse_rise = unembed.norm.after(scale, fall)
        recomputed = total * inverse_rise - removed / new_scale
        back = scale * inverse_rise
        return cls(recomputed, -removed / scale, (scale / new_scale).expand_as(back), back)

    def rows(self, rows: Tensor) -> "BothNorms":
        """Those of some rows, of the last but one axis."""
        return BothNorms(*(x[..., rows, :] for x in self))


def stream_change(
    unembed: Unembed,
    total: Float[Tensor, "*rows d_model"],
    removed: Float[Tensor, "*more_rows d_model"],
    *,
    norm: str,
) -> Float[Tensor, "*more_rows d_model"]:
    """One of `BothNorms`: ``"freeze"`` keeps the scale, ``"recompute"`` takes it anew."""
    if norm == "freeze":
        return -removed / unembed.scale(total)
    return BothNorms.of(unembed, total, removed).recomputed
