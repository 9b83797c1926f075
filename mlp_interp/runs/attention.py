"""What the heads of one block computed in a run, as later passes read it."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mlp_interp.models import Forward

__all__ = ["Attention"]


@dataclass(frozen=True)
class Attention:
    """Queries and keys after the rotary embedding, values, and the heads' mixes of values.

    Attributes:
        q: Queries, rotated.
        k: Keys, rotated.
        v: Values.
        z: Each head's mix of values.
    """

    q: Float[Tensor, "batch pos head d_head"]
    k: Float[Tensor, "batch pos kv_head d_head"]
    v: Float[Tensor, "batch pos kv_head d_head"]
    z: Float[Tensor, "batch pos head d_head"]

    @classmethod
    def of(
        cls, forward: Forward, layer: int, q: Tensor, k: Tensor, v: Tensor, z: Tensor | None
    ) -> "Attention":
        """From what a pass shows: `q` and `k` before the rotary embedding; `z` if it is known."""
        rotary = forward.rotary(torch.arange(q.shape[1], device=q.device), like=q)
        q, k = (forward.turned(layer, n, x, rotary) for n, x in (("q", q), ("k", k)))
        v = v.contiguous()
        return cls(q, k, v, forward.mix(q, k, v) if z is None else z.contiguous())

    def cut(self, rows: slice | list[int], length: int) -> "Attention":
        """The same of some of the batch, up to a position."""
        return Attention(*(x[rows, :length] for x in (self.q, self.k, self.v, self.z)))

    def expand(self, batch: int) -> "Attention":
        """The same for `batch` rows, where there is one."""
        return Attention(*(x.expand(batch, *x.shape[1:]) for x in (self.q, self.k, self.v, self.z)))
