"""Directions in groups, and how alike two groupings are."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.models.vectors import unit

__all__ = ["rand_index", "spherical"]

_ROUNDS = 100


def spherical(
    units: Float[Tensor, "vector d_model"], k: int, generator: torch.Generator
) -> tuple[Int[Tensor, " vector"], Float[Tensor, "cluster d_model"]]:
    """Groups of vectors of length one, each with its closest of `k` centres of length one.

    Centres begin at vectors, drawn with chances by their distance to the closest one so far, and
    move to the mean direction of their group until no vector changes. One that loses all stays.

    Args:
        units: The vectors.
        k: How many groups, at most one a vector.
        generator: Draws the first centres.

    References:
        Dhillon & Modha, "Concept Decompositions for Large Sparse Text Data Using Clustering", 2001;
        Arthur & Vassilvitskii, "k-means++: The Advantages of Careful Seeding", 2007.
    """
    moved = centres = units[_seeds(units, k, generator)]
    labels = torch.full((len(units),), -1, device=units.device)
    for _ in range(_ROUNDS):  # if they do not suffice the last move is left out
        centres = moved
        closest = (units @ centres.T).argmax(1)
        if torch.equal(closest, labels):
            break
        labels = closest
        total = torch.zeros_like(centres).index_add_(0, labels, units)
        moved = torch.where(total.any(1, keepdim=True), unit(total), centres)
    return labels, centres


def _seeds(units: Float[Tensor, "vector d_model"], k: int, generator: torch.Generator) -> list[int]:
    """Which vectors are the first centres."""
    found = [int(torch.randint(len(units), (), generator=generator))]
    distance = 2 - 2 * units @ units[found[0]]
    for _ in range(k - 1):
        # Rounding leaves a vector some distance to itself; where all are taken any will do.
        distance = distance.clamp_min(0)
        distance[found] = 0
        chances = distance if bool(distance.any()) else torch.ones_like(distance)
        found.append(int(torch.multinomial(chances.cpu(), 1, generator=generator)))
        distance = torch.minimum(distance, 2 - 2 * units @ units[found[-1]])
    return found


def rand_index(first: Int[Tensor, " vector"], second: Int[Tensor, " vector"]) -> float:
    """The adjusted Rand index: 1 for equal groupings, 0 on the average for independent ones.

    Of all pairs of vectors, how many both groupings put together, over what groups of these sizes
    would have by chance.

    References:
        Hubert & Arabie, "Comparing Partitions", 1985.

    Example:
        >>> rand_index(torch.tensor([0, 0, 1, 1]), torch.tensor([1, 1, 0, 0]))
        1.0
    """
    width = int(second.max()) + 1
    both = torch.bincount(first * width + second)
    together, one, other = (_pairs(x) for x in (both, first.bincount(), second.bincount()))
    chance = one * other / (len(first) * (len(first) - 1) / 2)
    most = (one + other) / 2
    return 1.0 if most == chance else (together - chance) / (most - chance)


def _pairs(counts: Int[Tensor, " some"]) -> float:
    return float((counts * (counts - 1)).sum()) / 2
