"""The two vectors of each neuron: what it reads from the stream, and what it writes to it."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mlp_interp.models import Weights
from mlp_interp.neurons.checks import check_finite
from mlp_interp.results import single

__all__ = ["Vectors", "centred", "unit"]


@dataclass(frozen=True)
class Vectors:
    """Receptors, biases and value vectors of one layer's neurons, one neuron a row.

    The block's LayerNorm gives ``D x / sigma(x) * gamma + beta``, where ``D`` takes the mean over
    ``d_model`` out. So a neuron's pre-activation is ``r . D x / sigma(x) + b`` with the folded
    receptor ``r = D diag(gamma) w`` and the folded bias ``b = b_in + beta . w``. These two are the
    same however the weights were processed, and so is the value vector less its mean, which is all
    that any later LayerNorm lets through.

    Attributes:
        receptor: Columns of ``W_in``, as the model holds them.
        folded: ``D diag(gamma) w``.
        bias: ``b_in``, as the model holds it.
        bias_folded: ``b_in + beta . w``.
        value: Rows of ``W_out``, as the model holds them.
        value_folded: The same less their mean over ``d_model``.
    """

    receptor: Float[Tensor, "neuron d_model"]
    folded: Float[Tensor, "neuron d_model"]
    bias: Float[Tensor, " neuron"]
    bias_folded: Float[Tensor, " neuron"]
    value: Float[Tensor, "neuron d_model"]
    value_folded: Float[Tensor, "neuron d_model"]

    @classmethod
    def of(cls, weights: Weights, layer: int) -> "Vectors":
        """Read one layer, half precisions as float32.

        Raises:
            ValueError: The weights are not finite, or the MLPs are gated: a gated neuron has two
                receptors, and neither alone is what drives it.
        """
        if getattr(weights.model.cfg, "gated_mlp", False):
            raise ValueError(
                f"model={weights.model.cfg.model_name!r} has gated MLPs, whose neurons have two "
                "receptors; wanted MLPs without gates"
            )
        block = weights.block(layer)
        receptor, value = single(block.W_in.T), single(block.W_out)
        bias, scale, shift = (single(x) for x in (block.b_in, block.ln2.w, block.ln2.b))
        folded = centred(receptor * scale)
        bias_folded = bias + receptor @ shift
        check_finite(f"the MLP of layer {layer}", folded, bias_folded, value)
        return cls(receptor, folded, bias, bias_folded, value, centred(value))


def centred(x: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_model"]:
    """``D x``: less the mean over ``d_model``."""
    return x - x.mean(-1, keepdim=True)


def unit(x: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_model"]:
    """Vectors of length one in the same direction; a zero vector stays zero."""
    return x / x.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
