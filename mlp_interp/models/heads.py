"""The matrices of each head: what it reads queries, keys and values with, and what it writes."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.models.attention import attention_scale, attention_unsupported
from mlp_interp.models.engine import forward_of
from mlp_interp.models.finite import check_finite
from mlp_interp.models.norm import Norm
from mlp_interp.models.rotary import rotary_at
from mlp_interp.models.weights import Affine, Weights
from mlp_interp.results import single

__all__ = ["Heads", "check_scores"]


@dataclass(frozen=True)
class Heads:
    """One layer's heads as maps of the normalised stream, one head a row.

    With ``x' = D x / sigma(x)`` the stream as the block's norm gives it before scale and shift, a
    head's query is ``x' Q + b_q``, its key ``x' K + b_k``, its value ``x' V + b_v``, and what it
    writes for a mix of values ``z`` is ``z O``. The norm's scale, shift and ``D`` are in the
    matrices and biases, and of what it writes only the part is there that later norms let through.
    So all of them are the same for raw and processed weights, but for value biases: processing may
    fold what they add, which is constant, into ``b_O``.

    Where heads share keys and values, each has a copy.

    Attributes:
        Q: ``D diag(gamma) W_Q``.
        b_q: ``b_Q + beta W_Q``.
        K: As `Q`, of keys.
        b_k: As `b_q`.
        V: As `Q`, of values.
        b_v: As `b_q`.
        O: ``W_O D``.
        scale: What products of queries and keys are multiplied by.
        layer: Of which layer.
        weights: The model's.

    References:
        Elhage et al., "A Mathematical Framework for Transformer Circuits", 2021.

    Example:
        >>> from mlp_interp import load_model
        >>> heads = Heads.of(Weights.of(load_model("nano")), 1)
        >>> heads.Q.shape, heads.O.shape, heads.relative([0, 5]).shape
        (torch.Size([6, 192, 32]), torch.Size([6, 32, 192]), torch.Size([2, 32, 32]))
    """

    Q: Float[Tensor, "head d_model d_head"]
    b_q: Float[Tensor, "head d_head"]
    K: Float[Tensor, "head d_model d_head"]
    b_k: Float[Tensor, "head d_head"]
    V: Float[Tensor, "head d_model d_head"]
    b_v: Float[Tensor, "head d_head"]
    O: Float[Tensor, "head d_head d_model"]  # noqa: E741
    scale: float
    layer: int
    weights: Weights

    @classmethod
    def of(cls, weights: Weights, layer: int, *, scores: bool = True) -> "Heads":
        """Read one layer, half precisions as float32.

        Args:
            weights: The model's.
            layer: Which one.
            scores: Whether queries and keys are asked for; if not, models are taken whose scores
                are more than products of them.

        Raises:
            ValueError: The model computes or writes something else with them (see `check_scores`;
                norms of what attention writes), or the weights are not finite.
        """
        weights.check_no_post_norms("heads")
        if scores:
            check_scores(weights)
        block, norm = weights.block(layer), weights.norm
        groups = weights.n_heads // weights.n_kv_heads
        Q, b_q = _folded(block.W_Q, block.b_Q, block.ln1, norm)
        K, b_k, V, b_v = (
            x.repeat_interleave(groups, 0) if groups > 1 else x
            for W, b in ((block.W_K, block.b_K), (block.W_V, block.b_V))
            for x in _folded(W, b, block.ln1, norm)
        )
        O = norm.keep(single(block.W_O))  # noqa: E741
        check_finite(f"the attention of layer {layer}", Q, b_q, K, b_k, V, b_v, O)
        return cls(Q, b_q, K, b_k, V, b_v, O, attention_scale(weights), layer, weights)

    @property
    def constant(self) -> Float[Tensor, "head d_model"]:
        """What each head writes whatever it attends to: ``b_v O``.

        Where processing has folded value biases, part of it is in ``b_O`` and not here.
        """
        return torch.einsum("hd,hdm->hm", self.b_v, self.O)

    def relative(self, distances: Int[Tensor, " distance"] | list[int] | range) -> Tensor:
        """What stands between query and key at some distances, ``[distance, d_head, d_head]``.

        The score is ``scale (x' Q + b_q) R (y' K + b_k)``, see `Rotary.relative`.

        Raises:
            ValueError: A distance is negative, or not within the context.
        """
        listed = torch.as_tensor(distances, device=self.Q.device, dtype=torch.int64)
        context = int(self.weights.model.cfg.n_ctx)
        if len(listed) and not (0 <= int(listed.min()) and int(listed.max()) < context):
            wrong = int(listed.min()) if int(listed.min()) < 0 else int(listed.max())
            raise ValueError(f"distance={wrong}; wanted one from 0 to {context - 1}")
        positions = torch.arange(int(listed.max()) + 1 if len(listed) else 1, device=self.Q.device)
        return rotary_at(self.weights.model, positions, self.Q).relative(listed, self.Q[0])


def _folded(W: Tensor, b: Tensor, affine: Affine, norm: Norm) -> tuple[Tensor, Tensor]:
    """A head's matrix and bias with the norm's scale and shift, and what it keeps."""
    W, b, scale, shift = (single(x) for x in (W, b, affine.w, affine.b))
    return norm.keep((scale[:, None] * W).mT).mT, b + shift @ W


def check_scores(weights: Weights) -> None:
    """Refuse a model whose attention scores are not products of queries, rotations and keys.

    Raises:
        ValueError: It bounds, biases or windows scores, normalises queries and keys, or rotates
            them otherwise than by halves.
    """
    reason = attention_unsupported(weights)
    if weights.block(0).q_norm is not None:
        reason = "normalises queries and keys"
    cfg = weights.model.cfg
    # What the configuration of a bridge says here may be wrong: comparing streams tells.
    if reason is None and cfg.rotary_adjacent_pairs and forward_of(weights.model).engine != "lean":
        reason = "may rotate adjacent pairs"
    if reason is not None:
        raise ValueError(
            f"model={cfg.model_name!r} {reason}, so that its attention scores are not products of "
            "a query, a rotation and a key; wanted a model without that"
        )
