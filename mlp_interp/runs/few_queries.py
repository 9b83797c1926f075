"""Attention of a few queries a run, without the keys and values of what they read.

The last block of a patched run is asked for at a few positions, but its keys and values may have
changed at all of them. A head's score of a position is linear in the normalised stream there, but
for the part of the key that is rotated, and its mix of values is linear in the mix of streams::

    q (W_K x + b_K) = (W_K^T q) x + q b_K
    sum_t a_t (W_V x_t + b_V) = W_V (sum_t a_t x_t) + b_V sum_t a_t

Hence each query is taken to the width of the stream in place of each key, and each mix brought back
from it in place of each value.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.models import Forward
from mlp_interp.models.rotary import Rotary
from mlp_interp.runs.attention import Attention
from mlp_interp.runs.rows import Rows

__all__ = ["FewQueries"]


@dataclass(frozen=True)
class FewQueries:
    """One block's attention in some patched runs, read at a few positions.

    Attributes:
        forward: The model.
        layer: The block.
        base: What its heads computed in the base run.
        prompt: The prompt of each run.
        start: The first position of each run that is its own.
    """

    forward: Forward
    layer: int
    base: Attention
    prompt: Int[Tensor, " run"]
    start: Int[Tensor, " run"]

    @staticmethod
    def pay(forward: Forward, layer: int, queries: int) -> bool:
        """Whether this is less work than keys and values of all positions.

        Each query of each head is as good as one more column of the keys' and of the values'
        matrices; products with so few columns at a time run at a fraction of their speed.
        """
        weights = forward.weights
        few = 8 * queries * weights.n_heads <= weights.n_kv_heads * weights.d_head
        return few and forward.inner_norm(layer, "k") is None

    def z(
        self,
        q: Float[Tensor, "run query head d_head"],
        positions: Int[Tensor, " query"],
        normalized: Float[Tensor, "row d_model"],
        rows: Rows,
        rotary: Rotary,
    ) -> Float[Tensor, "run query head d_head"]:
        """Each head's mix of values.

        Args:
            q: Queries, rotated.
            positions: Where they are asked.
            normalized: The normalised streams of the runs from their starts on.
            rows: What those rows are.
            rotary: At their positions.
        """
        first, length = int(rows.positions[0]), self.base.k.shape[1]
        own = rows.padded(normalized, len(self.start))
        every = torch.arange(length, device=q.device)
        changed = (every >= self.start[:, None])[:, None, None]
        scores = self._of_base("wqhd,{}thd->whqt", q, self.base.k)
        new = self._own_scores(q, own, normalized, rows, rotary)
        later = changed[..., first:]
        scores[..., first:] = torch.where(later, new, scores[..., first:])
        scores = (scores * self.forward.attention_scale).masked_fill_(
            every > positions[:, None], -torch.inf
        )
        weights = scores.softmax(-1)
        z = self._of_base("whqt,{}thd->wqhd", weights.masked_fill(changed, 0), self.base.v)
        W, b = (self.forward.shared(x, 0) for x in self.forward.readers(self.layer)[2])
        weights = weights[..., first:].masked_fill(~later, 0)
        mixed = (weights.flatten(1, 2) @ own).unflatten(1, weights.shape[1:3])
        z += torch.einsum("whqm,hdm->wqhd", mixed, W)
        return z.addcmul_(weights.sum(-1).transpose(1, 2)[..., None], b)

    def _own_scores(
        self,
        q: Float[Tensor, "run query head d_head"],
        own: Float[Tensor, "run own_pos d_model"],
        normalized: Float[Tensor, "row d_model"],
        rows: Rows,
        rotary: Rotary,
    ) -> Float[Tensor, "run head query own_pos"]:
        """Of the runs' own positions, before they are scaled."""
        width = 0 if rotary.cos is None else rotary.cos.shape[-1]
        keys_read = self.forward.readers(self.layer)[1]
        W, b = (self.forward.shared(x, 0)[:, width:] for x in keys_read)
        still = q[..., width:]
        streams_read = torch.einsum("wqhd,hdm->whqm", still, W)
        scores = (streams_read.flatten(1, 2) @ own.mT).unflatten(1, streams_read.shape[1:3])
        scores += torch.einsum("wqhd,hd->whq", still, b)[..., None]
        if width:
            W, b = (x[:, :width].flatten(0, 1) for x in keys_read)
            turned = rotary(F.linear(normalized, W, b).unflatten(-1, (-1, width)))
            turned = self.forward.shared(rows.padded(turned, len(self.start)), 2)
            scores += torch.einsum("wqhd,wthd->whqt", q[..., :width], turned)
        return scores

    def _of_base(self, equation: str, x: Tensor, of_base: Tensor) -> Tensor:
        """An einsum with each run's keys or values of the base, which are not copied if of one."""
        if len(of_base) == 1:
            return torch.einsum(equation.format(""), x, self.forward.shared(of_base, 2)[0])
        each = self.forward.shared(of_base.index_select(0, self.prompt), 2)
        return torch.einsum(equation.format("w"), x, each)
