"""What value vectors say of the tokens that follow, and what those of other neurons would say."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mlp_interp.models.vectors import unit
from mlp_interp.models.vocabulary import Best, LogitMoments, Ranks, TokenDirections

__all__ = ["Followers", "judged"]

_NEURONS = 256
"""At a time: their numbers for a piece of the vocabulary stay in a core's cache."""


@dataclass(frozen=True)
class Followers:
    """The tokens after the places at which neurons of one layer are most active.

    Attributes:
        token: Their ids; anything where there is none.
        known: Whether there is one.
        sign: Of the activation: a negative one promotes the tokens that the value vector lowers. 0
            where the neuron is silent, or there is no such place.
    """

    token: Int[Tensor, "neuron example"]
    known: Bool[Tensor, "neuron example"]
    sign: Float[Tensor, "neuron example"]

    def of(self, neurons: Tensor) -> "Followers":
        """Those of some neurons, in their order."""
        return Followers(self.token[neurons], self.known[neurons], self.sign[neurons])

    def mean(self, x: Tensor) -> Tensor:
        """Mean over examples of those known; NaN where none is."""
        known = self.known.view(*self.known.shape, *[1] * (x.ndim - 2))
        return torch.where(known, x, 0).sum(1) / known.sum(1)

    def median(self, x: Float[Tensor, "neuron example"]) -> Float[Tensor, " neuron"]:
        """Median over examples of those known; NaN where none is."""
        return x.masked_fill(~self.known, torch.nan).nanmedian(1).values


def judged(
    unembed: TokenDirections,
    values: Float[Tensor, "neuron d_model"],
    followers: Followers,
    k: int,
    orders: Sequence[Int[Tensor, " neuron"]],
) -> dict[str, Tensor]:
    """What a layer's values say of followers: of their own neuron's, and of other neurons'.

    Args:
        unembed: The readout.
        values: Value vectors, as the final norm sees them.
        followers: Of each neuron.
        k: How many promoted tokens to give.
        orders: Permutations of the neurons: whose followers each value is also asked for.
    """
    direction = unit(values)
    asked = [followers, *(followers.of(order) for order in orders)]
    parts = [
        _walked(unembed, direction[rows], [some.of(rows) for some in asked], k)
        for rows in torch.arange(len(values), device=values.device).split(_NEURONS)
    ]
    found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    best = found.pop("best"), found.pop("worst")
    found |= _agreement(best[0][:, 0], best[1][:, 0], followers)
    found |= _lift(unembed, direction, found.pop("spread"), followers)
    # A value of zeros says nothing, and would be ranked with all tokens the likeliest.
    silent = ~values.any(1)
    found = {name: x.masked_fill(silent, torch.nan) for name, x in found.items()}
    strongest = followers.sign[:, :1]
    promoted = torch.where(strongest > 0, best[0], best[1])
    found["promoted"] = promoted.masked_fill((strongest == 0) | silent[:, None], -1)
    return found


def _walked(
    unembed: TokenDirections,
    direction: Float[Tensor, "neuron d_model"],
    asked: Sequence[Followers],
    k: int,
) -> dict[str, Tensor]:
    """What one walk over the vocabulary tells of some neurons."""
    best, worst, moments = Best(k, torch.positive), Best(k, torch.neg), LogitMoments()
    chosen = torch.cat([some.token for some in asked], dim=1)
    numbers = torch.einsum("ned,nd->ne", unembed.columns(chosen), direction)
    ranks = Ranks(chosen, numbers, torch.cat([some.sign for some in asked], dim=1))
    for tokens, x in unembed.read(direction):
        for seen in (best, worst, ranks):
            seen.add(tokens, x)
        moments.add(tokens, x)
    before = ranks.before.chunk(len(asked), dim=1)
    medians = [some.median(x) for some, x in zip(asked, before, strict=True)]
    found = {
        "best": best.numbers_and_tokens()[1],
        "worst": worst.numbers_and_tokens()[1],
        "spread": moments.result()[0].sqrt().to(direction.dtype),
        "rank": medians[0],
    }
    if len(medians) > 1:
        found["rank_chance"] = torch.stack(medians[1:]).mean(0)
    return found


def _agreement(
    best: Int[Tensor, " neuron"], worst: Int[Tensor, " neuron"], followers: Followers
) -> dict[str, Float[Tensor, " neuron"]]:
    """How often followers are the value's top token, and how often they are another value's."""
    parts = []
    for rows in torch.arange(len(best), device=best.device).split(_NEURONS):
        some, hits = followers.of(rows), best.new_zeros(len(rows), len(best), dtype=torch.float32)
        for token, known, sign in zip(some.token.T, some.known.T, some.sign.T, strict=True):
            top = torch.where(sign[:, None] > 0, best, worst)
            hits += (top == token[:, None]) & known[:, None]
        parts.append(_beside_others(hits, rows, some.known.sum(1)))
    found = torch.cat(parts, dim=1)
    return dict(zip(("agreement", "agreement_chance", "agreement_p"), found, strict=True))


def _lift(
    unembed: TokenDirections,
    direction: Float[Tensor, "neuron d_model"],
    spread: Float[Tensor, " neuron"],
    followers: Followers,
) -> dict[str, Float[Tensor, " neuron"]]:
    """How far values raise followers, in standard deviations over the vocabulary."""
    scaled = direction / torch.where(spread > 0, spread, torch.inf)[:, None]
    parts = []
    for rows in torch.arange(len(direction), device=direction.device).split(_NEURONS):
        some = followers.of(rows)
        wanted = some.mean(unembed.columns(some.token) * some.sign[..., None])
        parts.append(_beside_others(wanted @ scaled.T, rows, torch.ones_like(rows)))
    found = torch.cat(parts, dim=1)
    return dict(zip(("lift", "lift_chance", "lift_p"), found, strict=True))


def _beside_others(
    scores: Float[Tensor, "some neuron"], rows: Int[Tensor, " some"], entries: Int[Tensor, " some"]
) -> Float[Tensor, "3 some"]:
    """Each neuron's own score, the mean of what other values get, and how many get as much.

    The last is the exact p value of a permutation test: under the hypothesis that values do not
    belong to their neurons, the own one's place among all of the layer is drawn evenly.
    """
    own = scores.gather(1, rows[:, None])[:, 0]
    others = (scores.sum(1) - own) / max(1, scores.shape[1] - 1)
    as_much = (scores >= own[:, None]).sum(1) / scores.shape[1]
    own = own / entries
    as_much = torch.where(own.isnan(), torch.nan, as_much)
    return torch.stack([own, others / entries, as_much.to(own.dtype)])
