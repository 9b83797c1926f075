"""Effects of changes of many rows of a stream, in bounded memory."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mlp_interp.metrics.change import Effects, LogitChange, rows_for
from mlp_interp.models.unembed import Unembed

__all__ = [
    "batches",
    "chunks",
    "clean_loss",
    "distributions",
    "joined",
    "next_tokens",
    "of_text",
    "read_changes",
]

T = TypeVar("T")

_CHANGES = 2**25  # numbers held at once: 128 MiB in float32


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """So many items at a time; in the last as many as are left."""
    items = iter(items)
    while some := list(islice(items, size)):
        yield some


def chunks(groups: Iterable[T], numbers: int) -> Iterator[list[T]]:
    """As many groups at a time as leave their changes small, of so many numbers each."""
    return batches(groups, max(1, _CHANGES // numbers))


def next_tokens(
    tokens: Int[Tensor, "batch pos"], real: Bool[Tensor, "batch pos"] | None = None
) -> Int[Tensor, "batch pos"]:
    """The token that follows each position; -1 after the last, and after the last of a text.

    Args:
        tokens: The tokens.
        real: Where text is, not padding; None for everywhere.
    """
    if real is not None:
        tokens = tokens.masked_fill(~real.to(tokens.device), -1)
    return torch.cat([tokens[:, 1:], torch.full_like(tokens[:, :1], -1)], dim=1)


def of_text(effects: Effects, real: Bool[Tensor, "batch pos"] | None) -> Effects:
    """Effects ``[..., batch, pos]``, NaN where padding is."""
    if real is None:
        return effects
    return Effects(*(x.masked_fill(~real.to(x.device), torch.nan) for x in effects))


def joined(pieces: Sequence[Effects], dim: int = 0) -> Effects:
    """Effects of several pieces as one."""
    return Effects(*(torch.cat(kind, dim=dim) for kind in zip(*pieces, strict=True)))


def distributions(
    unembed: Unembed,
    normalized: Float[Tensor, "row d_model"],
    targets: Int[Tensor, " row"],
) -> Iterator[tuple[Int[Tensor, " some"], LogitChange]]:
    """Clean distributions of as many rows at a time as the memory allows, and which rows.

    Raises:
        ValueError: The model cannot predict one of the targets.
    """
    if len(targets) and int(targets.max()) >= unembed.d_vocab:
        raise ValueError(
            f"tokens hold {int(targets.max())}, which a model of {unembed.d_vocab} logits cannot "
            "predict, so it has no loss; wanted tokens that it both reads and predicts"
        )
    pieces = -(-len(targets) // rows_for(unembed))
    for rows in torch.arange(len(targets)).tensor_split(max(1, pieces)):
        yield rows, LogitChange.of(unembed, normalized[rows], targets[rows])


def read_changes(
    unembed: Unembed,
    normalized: Float[Tensor, "batch pos d_model"],
    targets: Int[Tensor, "batch pos"],
    changes: Float[Tensor, "group batch pos d_model"],
) -> Effects:
    """Effects ``[group, batch, pos]`` of changes of the normalised stream.

    Each row's clean distribution is computed once for all groups, each change unembedded once, and
    never more than a fixed number of logits is held.
    """
    changed = changes.flatten(1, 2)
    columns = [
        clean.effects(changed[:, rows])
        for rows, clean in distributions(unembed, normalized.flatten(0, 1), targets.flatten())
    ]
    return Effects(*(x.unflatten(1, targets.shape) for x in joined(columns, dim=1)))


def clean_loss(
    unembed: Unembed,
    final: Float[Tensor, "batch pos d_model"],
    targets: Int[Tensor, "batch pos"],
) -> Float[Tensor, "batch pos"]:
    """Loss on the next token, nats; NaN where it is unknown."""
    flat = unembed.normalize(final).flatten(0, 1)
    losses = [clean.loss() for _, clean in distributions(unembed, flat, targets.flatten())]
    return torch.cat(losses).view(targets.shape)
