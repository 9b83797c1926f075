"""Positions that count from the end of rows, where rows may end in padding."""

import warnings
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.edits.edit import Edit
from mlp_interp.models import Weights
from mlp_interp.models.from_end import held_from_end
from mlp_interp.models.indices import indices, integers
from mlp_interp.models.padding import columns, padding_in, right_padded
from mlp_interp.models.protocol import Cache

__all__ = ["at_positions", "warn_of_padding"]


def at_positions(
    weights: Weights, cache: Cache, values: Float[Tensor, "batch pos d"], positions: Any
) -> Float[Tensor, "batch chosen d"]:
    """What a run holds at some positions, as `Run.logits` takes them.

    Raises:
        ValueError: See there.
    """
    if isinstance(positions, slice):
        return values[:, positions]
    given, (batch, length) = integers("positions", positions), values.shape[:2]
    counting = any(place < 0 for place in given or ())
    padding = padding_in(weights, cache, (batch, length)) if counting else None
    if padding is None:
        return values[:, list(indices("positions", positions, length))]
    chosen = columns(positions, length, padding.real).to(values.device)
    return values.gather(1, chosen[:, :, None].expand(-1, -1, values.shape[-1]))


def warn_of_padding(
    weights: Weights, tokens: Int[Tensor, "batch pos"], edits: Sequence[Edit]
) -> None:
    """Say so where an edit counts from the end of rows that are padded: tokens are run as they are.

    A text that is shorter than others would be edited at its padding, or not at its own place.
    """
    counting = [edit.from_end for edit in edits if edit.from_end]
    counting += held_from_end(weights.model)
    padding = right_padded(weights.model, tokens).padding if counting else None
    if padding is not None:
        warnings.warn(
            f"edits at {counting[0]} count from the end of rows, which have padding ({padding}); "
            "wanted positions from 0 in tokens padded at the right, or texts of one length",
            stacklevel=4,
        )
