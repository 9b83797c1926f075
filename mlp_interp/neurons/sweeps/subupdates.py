"""The sub-updates of which an MLP's update is the sum."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mlp_interp.models.vectors import unit

__all__ = ["SubUpdates"]


class SubUpdates:
    """Updates of some tokens as sums of sub-updates ``post * value vector``, without b_out.

    Args:
        post: Activations after the nonlinearity.
        W_out: Value vectors, one a row.
        order: As in `UpdateShares`.

    Attributes:
        norms: Norms of the value vectors.
        rank: Place of each neuron's sub-update among those of its token, the largest 0.
        total: The updates.
        length: Their norms.
        direction: The updates at length one; zero where there is none.
        real: Whether an update has a direction at all.
    """

    def __init__(
        self,
        post: Float[Tensor, "token neuron"],
        W_out: Float[Tensor, "neuron d_model"],
        order: str,
    ) -> None:
        self.post, self.W_out = post, W_out
        self.norms = W_out.norm(dim=-1)
        self.rank = _rank(post.abs() * self.norms if order == "norm" else post.abs())
        self.total = post @ W_out
        self.length = self.total.norm(dim=-1)
        self.real: Bool[Tensor, " token"] = self.length > 0
        self.direction = unit(self.total)
        self._largest = torch.empty_like(post)  # fresh memory costs more than what is done in it

    def cosine(self, k: int | Int[Tensor, " token"]) -> Float[Tensor, " token"]:
        """Cosine of the update to the sum of its k largest sub-updates; 0 where one is zero."""
        return (unit(self.sum(k)) * self.direction).sum(-1)

    def sum(self, k: int | Int[Tensor, " token"]) -> Float[Tensor, "token d_model"]:
        """The sum of the k largest sub-updates."""
        # One product for each k asked for; the sub-updates themselves would be as large as
        # [token, neuron, d_model].
        most = k[:, None].to(self.rank.dtype) if isinstance(k, Tensor) else k
        largest = torch.lt(self.rank, most, out=self._largest).mul_(self.post)
        return largest @ self.W_out


def _rank(size: Float[Tensor, "token neuron"]) -> Int[Tensor, "token neuron"]:
    """Places by falling size, as single precision tells them apart; of equals the first is first.

    Positive floats are ordered as the integers of their bits are. With the neuron's number in the
    lower half of a 64-bit integer, sorted values say what an argsort would, several times faster.
    """
    key = -(size.float().view(torch.int32).to(torch.int64) << 32)
    places = torch.arange(size.shape[1], device=size.device)
    key += places
    if key.device.type == "cpu":
        ordered = torch.from_numpy(np.sort(key.numpy(), axis=-1))
    else:
        ordered = key.sort(dim=-1).values
    rank = torch.empty_like(key, dtype=torch.int32)
    return rank.scatter_(-1, ordered & 0xFFFFFFFF, places.int().expand_as(key))
