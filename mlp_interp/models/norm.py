"""What a model's norms see of its residual stream, whichever of the three kinds they are."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = ["Norm", "NormKind"]

NormKind = Literal["layer", "rms", "none"]


@dataclass(frozen=True)
class Norm:
    """How a stream is normalised, apart from the scale and shift that follow (an `Affine`).

    With ``D`` the identity, except that a LayerNorm's subtracts the mean over ``d_model``, a norm
    gives ``D x / sigma(x)`` with ``sigma(x) = sqrt(|D x|^2 / d_model + eps)``; where a model has no
    norms, ``sigma`` is 1.

    Attributes:
        kind: ``"layer"`` (LayerNorm: GPT-NeoX, GPT-2), ``"rms"`` (RMSNorm: Llama and its kin) or
            ``"none"``.
        eps: What is added to the mean square.

    References:
        Ba et al., "Layer Normalization", 2016; Zhang and Sennrich, "Root Mean Square Layer
        Normalization", 2019.

    Example:
        >>> Norm("layer", 0.0).standardize(torch.tensor([1.0, 3.0]))
        tensor([-1.,  1.])
        >>> Norm("rms", 0.0).keep(torch.tensor([1.0, 3.0]))
        tensor([1., 3.])
    """

    kind: NormKind
    eps: float

    def keep(self, x: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_model"]:
        """``D x``: what the norm lets through of a vector, before it is divided."""
        return x - x.mean(-1, keepdim=True) if self.kind == "layer" else x

    def scale(self, x: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest 1"]:
        """``sigma(x)``: what a stream is divided by."""
        if self.kind == "none":
            return torch.ones_like(x[..., :1])
        return (self.keep(x).square().mean(-1, keepdim=True) + self.eps).sqrt()

    def after(self, scale: Tensor, fall: Tensor) -> tuple[Tensor, Tensor]:
        """When the mean square of ``D x`` falls: the new scale, and the rise of one over it.

        The rise is computed from the fall, so that a small one keeps full relative precision.

        Args:
            scale: ``sigma(x)``.
            fall: By how much the mean square falls.
        """
        if self.kind == "none":
            return scale, torch.zeros_like(fall)
        new = (scale.square() - fall).clamp_min(self.eps).sqrt()
        return new, fall / (scale * new * (scale + new))

    def standardize(self, x: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_model"]:
        """``D x / sigma(x)``: what the matrices after the norm read, without scale and shift."""
        if self.kind == "layer":
            return F.layer_norm(x, (x.shape[-1],), eps=self.eps)
        return F.rms_norm(x, (x.shape[-1],), eps=self.eps) if self.kind == "rms" else x
