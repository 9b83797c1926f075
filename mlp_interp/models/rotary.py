"""The rotary embedding at some positions."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Rotary"]


@dataclass(frozen=True)
class Rotary:
    """Rotates queries and keys, one rotation a row; does nothing where the model has none.

    Attributes:
        cos: Cosines, ``[row, 1, rotary_dim]``; None without rotary embedding.
        sin: Sines, alike.
    """

    cos: Tensor | None = None
    sin: Tensor | None = None

    def __call__(
        self, x: Float[Tensor, "*any row head d_head"]
    ) -> Float[Tensor, "*any row head d_head"]:
        """Rotate the first ``rotary_dim`` entries of each head, pairing entry i with i + half."""
        if self.cos is None or self.sin is None:
            return x
        turned, kept = x[..., : self.cos.shape[-1]], x[..., self.cos.shape[-1] :]
        first, second = turned.chunk(2, dim=-1)
        turned = turned * self.cos + torch.cat((-second, first), dim=-1) * self.sin
        return torch.cat((turned, kept), dim=-1)

    def __getitem__(self, rows: Any) -> "Rotary":
        """The rotations of some rows."""
        if self.cos is None or self.sin is None:
            return self
        return Rotary(self.cos[rows], self.sin[rows])
