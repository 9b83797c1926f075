"""`Latents`: which of a dictionary's latents are active at each token, and how strongly."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["Latents"]


@dataclass(frozen=True, eq=False)
class Latents:
    """Active latents in sparse form, as `Dictionary.encode` gives them.

    Attributes:
        indices: Which latents; any, at a value of 0, where fewer are active than there are slots.
        values: Their activations.
        n_latents: How many the dictionary has.
        scale: By what the dictionary multiplies all that it writes at a token, where it normalises
            what it reads; None for 1.
        shift: What it then adds to every dimension; None for 0.
        skipped: What passes by the latents, through `Dictionary.W_skip`; None for nothing.
    """

    indices: Int[Tensor, "*rest slot"]
    values: Float[Tensor, "*rest slot"]
    n_latents: int
    scale: Float[Tensor, "*rest 1"] | None = None
    shift: Float[Tensor, "*rest 1"] | None = None
    skipped: Float[Tensor, "*rest d_out"] | None = None

    def dense(self) -> Float[Tensor, "*rest latent"]:
        """Every latent's activation, most of them 0."""
        empty = self.values.new_zeros(*self.values.shape[:-1], self.n_latents)
        return empty.scatter_add(-1, self.indices, self.values)

    def of(self, chosen: Sequence[int]) -> Float[Tensor, "*rest chosen"]:
        """The activations of some latents, without making all of them."""
        # A slot that is left over may name one of them, at 0: so the sum over slots is right.
        parts = [(self.values * (self.indices == latent)).sum(-1) for latent in chosen]
        return torch.stack(parts, -1)

    def at(self, index: tuple[Any, ...]) -> "Latents":
        """Those of some tokens, by an index of the axes before the last; all by an empty one."""
        if not index:
            return self
        parts: Any = {k: x[index] for k, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **parts)

    def written(self, values: Float[Tensor, "*rest any"]) -> Float[Tensor, "*rest any"]:
        """Activations as multiples of decoder rows: times `scale`."""
        return values if self.scale is None else values * self.scale

    def rescaled(self, constant: Float[Tensor, "*rest d_out"]) -> Float[Tensor, "*rest d_out"]:
        """What is written anyway, as it comes out: times `scale`, with `shift`."""
        constant = self.written(constant)
        return constant if self.shift is None else constant + self.shift

    @property
    def active(self) -> Bool[Tensor, "*rest slot"]:
        """Which slots hold a latent that is active."""
        return self.values > 0
