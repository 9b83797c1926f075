"""Sets of tokens, however they are named."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from mlp_interp.models import Weights
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.single import token_id

__all__ = ["sets_of"]


def sets_of(model: Model, given: Any, d_vocab: int) -> Int[np.ndarray, "set k"]:
    """Token ids of sets of one size.

    Args:
        model: The model.
        given: Sets of token ids or of texts of one token; also a single set.
        d_vocab: How many tokens there are.

    Raises:
        ValueError: There are none, they are of several sizes, name a token twice or one that there
            is not, or are as large as the vocabulary.
    """
    plain = given.tolist() if hasattr(given, "tolist") else given
    listed = [plain] if isinstance(plain, str) else list(plain)
    single = bool(listed) and all(_is_one(entry) for entry in listed)
    listed = [listed] if single else listed
    weights = Weights.of(model)
    sets = [
        [
            token_id(weights, x, name=f"tokens[{i}]" if single else f"tokens[{n}][{i}]")
            for i, x in enumerate(_several(one, n))
        ]
        for n, one in enumerate(listed)
    ]
    sizes = sorted({len(one) for one in sets})
    if len(sizes) != 1 or sizes[0] == 0:
        raise ValueError(f"tokens has sets of {sizes} tokens; wanted one size, of at least one")
    if sizes[0] >= d_vocab:
        raise ValueError(f"tokens has sets of {sizes[0]} tokens; wanted fewer than all {d_vocab}")
    for n, one in enumerate(sets):
        if len(set(one)) < len(one):
            raise ValueError(f"tokens[{n}]={one}; wanted each token once")
    return np.array(sets)


def _is_one(entry: Any) -> bool:
    return isinstance(entry, str | int | np.integer)


def _several(one: Any, n: int) -> Sequence[Any]:
    plain = one.tolist() if hasattr(one, "tolist") else one
    if not isinstance(plain, list | tuple):
        raise ValueError(f"tokens[{n}]={one!r}; wanted a set of token ids or texts")
    return plain
