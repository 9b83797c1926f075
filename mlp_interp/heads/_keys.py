"""The keys that each kind of head is known by, text by text."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["KINDS", "REPEATING", "Keys", "attended"]

KINDS = ("previous", "duplicate", "induction", "first", "self")

REPEATING = ("duplicate", "induction")
"""Kinds that a text without repeated tokens has no keys for."""


def attended(
    tokens: Int[Tensor, "batch pos"], kind: str, real: Bool[Tensor, "batch pos"] | None = None
) -> Bool[Tensor, "batch pos source"]:
    """Which keys a kind of head attends to from each query, later than the first position.

    Example:
        >>> attended(torch.tensor([[5, 6, 5]]), "induction")[0].nonzero().tolist()
        [[2, 1]]
    """
    size = tokens.shape[1]
    i, j = torch.arange(size)[:, None], torch.arange(size)
    i, j = i.to(tokens.device), j.to(tokens.device)
    if kind == "previous":
        keys = (i - j == 1)[None]
    elif kind == "self":
        keys = (i == j)[None]
    elif kind == "first":
        keys = ((j == 0) & (i > 0))[None]
    elif kind == "duplicate":
        keys = (tokens[:, :, None] == tokens[:, None, :]) & (j < i)
    else:
        before = tokens.roll(1, 1)
        keys = (tokens[:, :, None] == before[:, None, :]) & (j > 0) & (j < i)
    keys = keys & (i > 0)
    keys = keys.expand(len(tokens), size, size)
    return keys if real is None else keys & real.to(keys.device)[:, :, None]


@dataclass(frozen=True)
class Keys:
    """The keys of some kinds in a batch of texts.

    Attributes:
        mask: Which ones from each query.
    """

    mask: Bool[Tensor, "batch pos source kind"]

    @classmethod
    def of(
        cls,
        tokens: Int[Tensor, "batch pos"],
        kinds: Sequence[str],
        real: Bool[Tensor, "batch pos"] | None = None,
    ) -> "Keys":
        """Of texts, without the queries that are padding."""
        return cls(torch.stack([attended(tokens, kind, real) for kind in kinds], dim=-1))

    @property
    def queries(self) -> Int[Tensor, "batch kind"]:
        """How many queries have keys of each kind."""
        return self.mask.any(2).sum(1)

    def weights(self) -> Float[Tensor, "batch pos source kind"]:
        """One over the text's queries of a kind, at the keys of that kind."""
        return self.mask.float() / self.queries.clamp_min(1)[:, None, None]

    def uniform(self) -> Float[Tensor, "batch kind"]:
        """What attention without preference pays to such keys; NaN in texts that have none."""
        size = self.mask.shape[1]
        each = (
            self.mask.sum(2).float() / torch.arange(1, size + 1, device=self.mask.device)[:, None]
        )
        return each.sum(1) / self.queries

    def by_distance(self) -> Float[Tensor, "distance kind"]:
        """The weights at each distance, summed over queries and texts."""
        share = self.weights().sum(0)
        size, device = len(share), share.device
        away = torch.arange(size, device=device)[:, None] - torch.arange(size, device=device)
        found = share.new_zeros(size, share.shape[-1])
        return found.index_add_(0, away[away >= 0], share[away >= 0])
