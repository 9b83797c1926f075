"""The vectors of each neuron: what it reads from the stream, and what it writes to it."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mlp_interp.models.finite import check_finite
from mlp_interp.models.norm import Norm
from mlp_interp.models.weights import Affine, Weights
from mlp_interp.results import single

__all__ = ["Receptor", "Vectors", "unit"]


@dataclass(frozen=True)
class Receptor:
    """With what one layer's neurons read the stream, one neuron a row.

    The block's norm gives ``D x / sigma(x) * gamma + beta``, where ``D`` is what it keeps of a
    vector (a LayerNorm takes the mean over ``d_model`` out). So what a neuron reads is
    ``r . D x / sigma(x) + b`` with the folded receptor ``r = D diag(gamma) w`` and the folded bias
    ``b + beta . w``. These two are the same however the weights were processed.

    Attributes:
        held: Columns of the matrix, as the model holds them.
        folded: ``D diag(gamma) w``.
        bias: The bias, as the model holds it.
        bias_folded: The bias and ``beta . w``.
    """

    held: Float[Tensor, "neuron d_model"]
    folded: Float[Tensor, "neuron d_model"]
    bias: Float[Tensor, " neuron"]
    bias_folded: Float[Tensor, " neuron"]

    @classmethod
    def of(cls, matrix: Tensor, bias: Tensor, affine: Affine, norm: Norm) -> "Receptor":
        """From a matrix ``[d_model, neuron]``, its bias, and the norm before it."""
        w, b, scale, shift = (single(x) for x in (matrix.T, bias, affine.w, affine.b))
        return cls(w, norm.keep(w * scale), b, b + w @ shift)


@dataclass(frozen=True)
class Vectors:
    """Receptors and value vectors of one layer's neurons.

    Attributes:
        receptor: What pre-activations are read with: columns of ``W_in``, or of ``W_gate`` where
            the MLPs are gated.
        linear: What gated neurons multiply by is read with these, columns of ``W_in``; else None.
        value: Rows of ``W_out``, as the model holds them.
        value_folded: The same as far as any later norm lets it through.
    """

    receptor: Receptor
    linear: Receptor | None
    value: Float[Tensor, "neuron d_model"]
    value_folded: Float[Tensor, "neuron d_model"]

    @classmethod
    def of(cls, weights: Weights, layer: int) -> "Vectors":
        """Read one layer, half precisions as float32.

        Raises:
            ValueError: The weights are not finite, or the model has no neurons.
        """
        weights.check_names(["post"], argument="neurons")
        block, norm = weights.block(layer), weights.norm
        receptor, linear = Receptor.of(block.W_in, block.b_in, block.ln2, norm), None
        if block.W_gate is not None and block.b_gate is not None:
            receptor, linear = Receptor.of(block.W_gate, block.b_gate, block.ln2, norm), receptor
        value = single(block.W_out)
        for read in (receptor, linear):
            if read is not None:
                where = f"the MLP of layer {layer}"
                check_finite(where, read.folded, read.bias_folded, value)
        return cls(receptor, linear, value, norm.keep(value))


def unit(x: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_model"]:
    """Vectors of length one in the same direction; a zero vector stays zero."""
    return x / x.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
