"""Positions that count from the end of rows, where rows may end in padding."""

import warnings
from collections.abc import Sequence

from jaxtyping import Int
from torch import Tensor

from mlp_interp.edits.edit import Edit
from mlp_interp.models import Weights
from mlp_interp.models.from_end import held_from_end
from mlp_interp.models.padding import right_padded

__all__ = ["warn_of_padding"]


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
