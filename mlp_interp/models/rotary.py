"""The rotary embedding at some positions."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.models.protocol import Model

__all__ = ["Rotary", "rotary_at"]


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
        width = self.cos.shape[-1]
        first, second = x[..., :width].chunk(2, dim=-1)
        above, below = self.sin.chunk(2, dim=-1)
        turned = x[..., :width] * self.cos
        turned[..., : width // 2].addcmul_(second, above, value=-1)
        turned[..., width // 2 :].addcmul_(first, below)
        return turned if width == x.shape[-1] else torch.cat((turned, x[..., width:]), dim=-1)

    def __getitem__(self, rows: Any) -> "Rotary":
        """The rotations of some rows."""
        if self.cos is None or self.sin is None:
            return self
        return Rotary(self.cos[rows], self.sin[rows])

    def relative(
        self, distances: Int[Tensor, " distance"], like: Float[Tensor, "*any d_head"]
    ) -> Float[Tensor, "distance d_head d_head"]:
        """What stands between a query and a key that is so many positions before it.

        The product of a rotated query and a rotated key depends on their distance alone: it is
        ``q R k`` with ``q`` and ``k`` as they were before, ``R`` the matrix of that distance (with
        the square of what some models scale rotated vectors by). At distance 0 it is the identity,
        or that square.

        Args:
            distances: Positions from the key to the query; the rows of this embedding must be the
                positions 0, 1, 2 and so on, at least so far.
            like: Has the width, data type and device of queries.

        Example:
            >>> from mlp_interp import load_model
            >>> from mlp_interp.models.rotary import rotary_at
            >>> q, k = torch.ones(1, 1, 32), torch.arange(32.0).view(1, 1, 32)
            >>> rotary = rotary_at(load_model("nano"), torch.arange(9), q)
            >>> (between,) = rotary.relative(torch.tensor([3]), q)
            >>> score = (rotary[8:9](q) * rotary[5:6](k)).sum()
            >>> bool(torch.isclose(score, (q @ between * k).sum(), rtol=1e-4))
            True
        """
        eye = torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)
        if self.cos is None:
            return eye.expand(len(distances), *eye.shape)
        # Rows of the identity are turned as if they were heads.
        turned = self[distances](eye.expand(len(distances), *eye.shape))
        return turned @ self[:1](eye[None])[0].T


def rotary_at(model: Model, positions: Int[Tensor, " row"], like: Tensor) -> Rotary:
    """A model's rotary embedding at some positions, in the data type and on the device of `like`.

    It does nothing where positions are not rotated in.
    """
    if model.cfg.positional_embedding_type != "rotary":
        return Rotary()
    if hasattr(model, "rotary_emb"):  # TransformerBridge keeps Hugging Face's module
        cos, sin = model.rotary_emb._original_component(like, positions[None])
        return Rotary(cos[0, :, None], sin[0, :, None])
    attn = model.blocks[0].attn
    cos, sin = (
        table.to(positions.device)[positions, None].to(like)
        for table in (attn.rotary_cos, attn.rotary_sin)
    )
    return Rotary(cos, sin)
