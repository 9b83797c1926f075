"""The number that an input is searched for, read off a forward pass."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.models import Forward, HookForward, Weights
from mlp_interp.sites import GATED, HEADS, NEURONS, STREAM, Site, SiteLike

__all__ = ["AscentTarget", "check_site", "unit_direction"]

_FLAT, _SLOPE = -5.0, 1e-6
"""Below this pre-activation a GELU is flat in single precision; a slope that leads out of there."""


@dataclass(frozen=True)
class AscentTarget:
    """What is driven, and what the search climbs.

    The two differ for a neuron's activation (``post``) alone. Where a neuron does not fire, its
    activation is flat, or falls as the pre-activation rises, and no search would find out of there.
    So for the highest activation the climb is on ``post`` where ``pre`` is above zero and on
    ``pre`` below: continuous, and the activation itself wherever the neuron fires. For the lowest
    it is on ``post``, with a slope too small to change an order where ``post`` is flat.

    Attributes:
        forward: The forward pass; only blocks up to the site's run where it is lean.
        site: What is read.
        sign: 1 to drive it up, -1 to drive it down.
        direction: Unit vector onto which the site is projected; None for a neuron.
        read: Mean over so many of the last positions.
    """

    forward: Forward | HookForward
    site: Site
    sign: int
    direction: Tensor | None
    read: int

    def __call__(
        self, stream: Float[Tensor, "batch pos d_model"]
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """Activation, and the score that is climbed (larger is better), of each row.

        Args:
            stream: The stream before the first block.
        """
        layer, seen = self.site.layer or 0, {}

        def observe(name: str, at: int, x: Tensor) -> Tensor:
            if at == layer and name in (self.site.name, "pre"):
                seen[name] = x
            return x

        self.forward.run(stream, stop=layer + 1, observe=observe)
        value = climb = self._scalar(seen[self.site.name])
        if self.has_flats:
            climb = self._without_flats(self._scalar(seen["pre"]), value)
        return value.mean(-1), self.sign * climb.mean(-1)

    @torch.no_grad()
    def of_tokens(
        self, tokens: Int[Tensor, "batch pos"], *, batch_size: int
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """The same of texts, so many of them at a time."""
        pairs = [self(self.forward.embed(rows)) for rows in tokens.split(batch_size)]
        value, score = (torch.cat(part) for part in zip(*pairs, strict=True))
        return value, score

    @property
    def has_flats(self) -> bool:
        """Whether the climb is on the pre-activation where the neuron does not fire.

        Through hooks the activation alone is climbed, as what a model with hooks of its own makes
        of the pre-activation is not known; and that of gated neurons, which is not flat where they
        do not fire, and whose sign is not the pre-activation's.
        """
        is_activation = self.site.name == "post" and self.site.neuron is not None
        gated = self.forward.weights.gated
        return is_activation and isinstance(self.forward, Forward) and not gated

    def _scalar(self, x: Tensor) -> Float[Tensor, "batch read"]:
        x = x[:, -self.read :]
        if self.site.head is not None:
            x = x[:, :, self.site.head]
        return x[..., self.site.neuron] if self.direction is None else x @ self.direction

    def _without_flats(self, pre: Tensor, post: Tensor) -> Tensor:
        if self.sign > 0:
            return torch.where(pre > 0, post, pre)
        return torch.where(pre > _FLAT, post, post + _SLOPE * (_FLAT - pre))


def check_site(weights: Weights, given: SiteLike, *, directed: bool) -> Site:
    """A site whose activation is one number, by itself or along a direction.

    Raises:
        ValueError: It is none, or the model does not have it.
    """
    site = weights.place(given, kind=None if isinstance(given, Site | str) else "neuron")
    wanted = "a neuron ('L3N669', 'L3N669.pre'), or direction= with a head, a stream or all neurons"
    if site.name not in (*HEADS, *STREAM, *NEURONS, *GATED):
        raise ValueError(f"site={site.label!r}; wanted {wanted}")
    if site.name in HEADS and site.head is None:
        raise ValueError(f"site={site.label!r} names no head; wanted e.g. 'L3H5.{site.name}'")
    if (site.neuron is None) != directed:
        given = "with" if directed else "without"
        raise ValueError(f"site={site.label!r} {given} direction; wanted {wanted}")
    return site


def unit_direction(weights: Weights, site: Site, direction: Tensor) -> Tensor:
    """A direction in a site's space, scaled to length 1.

    Raises:
        ValueError: It has another shape, is zero or not finite.
    """
    size = weights.d_head if site.name in HEADS else weights.d_model
    size = weights.d_mlp if site.name in (*NEURONS, *GATED) else size
    if tuple(direction.shape) != (size,):
        raise ValueError(
            f"direction={tuple(direction.shape)} at {site.label!r}; wanted shape ({size},)"
        )
    length = float(direction.double().norm())
    if not 0 < length < float("inf"):
        raise ValueError(f"direction has length {length}; wanted a finite one above 0")
    # A copy: what was made in inference mode could not be differentiated through.
    return (direction.detach().double() / length).to(weights.device, weights.dtype)
