"""From pre-activations to the few latents that are active, token by token.

Each acts on one token's row, whatever else is in the batch: what a dictionary says of a token does
not depend on its neighbours. BatchTopK, which does while it is trained, is a `JumpRelu` afterwards.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.models.indices import count

__all__ = ["Activation", "GroupMax", "JumpRelu", "Relu", "TopK"]

Active = tuple[Int[Tensor, "row slot"], Float[Tensor, "row slot"]]


@dataclass(frozen=True)
class Relu:
    """Every latent whose pre-activation is above zero."""

    def __call__(self, pre: Float[Tensor, "row latent"]) -> Active:
        """Which latents are active in each row, and their activations; 0 in slots left over."""
        return _nonzero(pre.relu())

    def __str__(self) -> str:
        return "ReLU"


@dataclass(frozen=True, eq=False)
class JumpRelu:
    """Every latent whose pre-activation is above its threshold and above zero.

    Attributes:
        threshold: One for each latent, or one for all.
    """

    threshold: Float[Tensor, "*latent"]

    def __call__(self, pre: Float[Tensor, "row latent"]) -> Active:
        """As of `Relu`."""
        return _nonzero(pre.relu() * (pre > self.threshold.to(pre)))

    def __str__(self) -> str:
        return "JumpReLU"


@dataclass(frozen=True)
class TopK:
    """The `k` largest pre-activations that are above zero.

    Attributes:
        k: How many; fewer where fewer are above zero.
    """

    k: int

    def __post_init__(self) -> None:
        count("k", self.k)

    def __call__(self, pre: Float[Tensor, "row latent"]) -> Active:
        """As of `Relu`."""
        values, indices = pre.topk(self.k, dim=-1)
        return indices, values.relu()

    def __str__(self) -> str:
        return f"TopK, k {self.k}"


@dataclass(frozen=True)
class GroupMax:
    """The largest of each of `k` groups of neighbouring latents, if it is above zero."""

    k: int

    def __post_init__(self) -> None:
        count("k", self.k)

    def __call__(self, pre: Float[Tensor, "row latent"]) -> Active:
        """As of `Relu`."""
        groups = pre.unflatten(-1, (self.k, -1))
        values, indices = groups.max(dim=-1)
        starts = torch.arange(self.k, device=pre.device) * groups.shape[-1]
        return indices + starts, values.relu()

    def __str__(self) -> str:
        return f"GroupMax, k {self.k}"


Activation = Relu | JumpRelu | TopK | GroupMax


def _nonzero(values: Float[Tensor, "row latent"]) -> Active:
    """The entries above zero, in as many slots as the fullest row has."""
    slots = max(1, int((values > 0).sum(-1).max())) if len(values) else 1
    largest, indices = values.topk(slots, dim=-1)
    return indices, largest
