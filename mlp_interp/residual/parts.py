"""The three shapes a component of the stream can have, none larger than it must be.

A `Part` holds neighbouring components of one kind and answers what every analysis asks of them:
their vectors, their dot products with given directions, their squared norms and their sum. Neurons
stay as activations and value vectors, heads as ``z`` and ``W_O``, so that nothing of size
``[neurons, batch, pos, d_model]`` ever exists unless it is asked for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mlp_interp.models.norm import Norm
from mlp_interp.sites import Site

__all__ = ["Dense", "Heads", "Part", "Scaled", "Stand"]

Stand = Callable[[Site, Tensor], Tensor]
"""From a place and its activation ``[batch, pos, ...]`` to what stands in for it."""


@runtime_checkable
class Part(Protocol):
    """Components of one kind, for one batch of positions."""

    @property
    def sites(self) -> Sequence[Site]:
        """What the components are, in order."""
        ...

    def vectors(self) -> Float[Tensor, "batch pos component d_model"]:
        """What each component wrote."""
        ...

    def project(
        self, directions: Float[Tensor, "#batch #pos d_model"]
    ) -> Float[Tensor, "batch pos component"]:
        """Dot product of each component with one direction per position."""
        ...

    def square_norm(self) -> Float[Tensor, "batch pos component"]:
        """Squared L2 norm of each component."""
        ...

    def sum(self) -> Float[Tensor, "batch pos d_model"]:
        """Sum of the components."""
        ...

    def kept_by(self, norm: Norm) -> "Part":
        """What a norm keeps of the same components."""
        ...

    def take(self, index: Sequence[int]) -> "Part":
        """Some of the components, in the order of `index`."""
        ...

    def less(self, stand: Stand) -> "Part":
        """The components less what stands in for them."""
        ...

    def at(self, positions: Sequence[int]) -> "Part":
        """The components at some of the positions."""
        ...


@dataclass(frozen=True)
class Dense:
    """Components whose vectors are at hand: embeddings, whole attention and MLP outputs."""

    sites: Sequence[Site]
    values: Float[Tensor, "batch pos component d_model"]

    def vectors(self) -> Float[Tensor, "batch pos component d_model"]:
        """What each component wrote."""
        return self.values

    def project(
        self, directions: Float[Tensor, "#batch #pos d_model"]
    ) -> Float[Tensor, "batch pos component"]:
        """Dot product of each component with one direction per position."""
        return (self.values * directions.unsqueeze(-2)).sum(-1)

    def square_norm(self) -> Float[Tensor, "batch pos component"]:
        """Squared L2 norm of each component."""
        return self.values.square().sum(-1)

    def sum(self) -> Float[Tensor, "batch pos d_model"]:
        """Sum of the components."""
        return self.values.sum(-2)

    def kept_by(self, norm: Norm) -> "Dense":
        """What a norm keeps of the same components."""
        return replace(self, values=norm.keep(self.values))

    def take(self, index: Sequence[int]) -> "Dense":
        """Some of the components, in the order of `index`."""
        return Dense(tuple(self.sites[i] for i in index), self.values[..., list(index), :])

    def less(self, stand: Stand) -> "Dense":
        """The components less what stands in for them."""
        return replace(self, values=self.values - stand(self.sites[0].whole, self.values))

    def at(self, positions: Sequence[int]) -> "Dense":
        """The components at some of the positions."""
        return replace(self, values=self.values[:, list(positions)])


@dataclass(frozen=True)
class Scaled:
    """Components with one fixed vector each, times a number per position: neurons; biases."""

    sites: Sequence[Site]
    coefficients: Float[Tensor, "batch pos component"]
    basis: Float[Tensor, "component d_model"]

    def vectors(self) -> Float[Tensor, "batch pos component d_model"]:
        """What each component wrote: ``batch * pos * component * d_model`` numbers."""
        return self.coefficients.unsqueeze(-1) * self.basis

    def project(
        self, directions: Float[Tensor, "#batch #pos d_model"]
    ) -> Float[Tensor, "batch pos component"]:
        """Dot product of each component with one direction per position."""
        return self.coefficients * F.linear(directions, self.basis)

    def square_norm(self) -> Float[Tensor, "batch pos component"]:
        """Squared L2 norm of each component."""
        return self.coefficients.square() * self.basis.square().sum(-1)

    def sum(self) -> Float[Tensor, "batch pos d_model"]:
        """Sum of the components."""
        return self.coefficients @ self.basis

    def kept_by(self, norm: Norm) -> "Scaled":
        """What a norm keeps of the same components."""
        return replace(self, basis=norm.keep(self.basis))

    def take(self, index: Sequence[int]) -> "Scaled":
        """Some of the components, in the order of `index`."""
        chosen = list(index)
        sites = tuple(self.sites[i] for i in chosen)
        return Scaled(sites, self.coefficients[..., chosen], self.basis[chosen])

    def less(self, stand: Stand) -> "Scaled":
        """The components less what stands in for them."""
        return replace(
            self, coefficients=self.coefficients - stand(self.sites[0].whole, self.coefficients)
        )

    def at(self, positions: Sequence[int]) -> "Scaled":
        """The components at some of the positions."""
        return replace(self, coefficients=self.coefficients[:, list(positions)])


@dataclass(frozen=True)
class Heads:
    """Attention heads: mixed values ``z`` times output matrix ``W_O``."""

    sites: Sequence[Site]
    z: Float[Tensor, "batch pos head d_head"]
    W_O: Float[Tensor, "head d_head d_model"]

    def vectors(self) -> Float[Tensor, "batch pos component d_model"]:
        """What each head wrote."""
        return torch.einsum("bphd,hdm->bphm", self.z, self.W_O)

    def project(
        self, directions: Float[Tensor, "#batch #pos d_model"]
    ) -> Float[Tensor, "batch pos component"]:
        """Dot product of each head's output with one direction per position."""
        read = F.linear(directions, self.W_O.flatten(0, 1))
        return (self.z * read.unflatten(-1, self.W_O.shape[:2])).sum(-1)

    def square_norm(self) -> Float[Tensor, "batch pos component"]:
        """Squared L2 norm of each head's output."""
        return self.vectors().square().sum(-1)

    def sum(self) -> Float[Tensor, "batch pos d_model"]:
        """Sum of the heads' outputs."""
        return self.z.flatten(-2) @ self.W_O.flatten(0, 1)

    def kept_by(self, norm: Norm) -> "Heads":
        """What a norm keeps of the same components."""
        return replace(self, W_O=norm.keep(self.W_O))

    def take(self, index: Sequence[int]) -> "Heads":
        """Some of the heads, in the order of `index`."""
        chosen = list(index)
        return Heads(tuple(self.sites[i] for i in chosen), self.z[..., chosen, :], self.W_O[chosen])

    def less(self, stand: Stand) -> "Heads":
        """The components less what stands in for them."""
        return replace(self, z=self.z - stand(self.sites[0].whole, self.z))

    def at(self, positions: Sequence[int]) -> "Heads":
        """The components at some of the positions."""
        return replace(self, z=self.z[:, list(positions)])
