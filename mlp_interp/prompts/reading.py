"""How tokens read in results."""

import numpy as np
import xarray as xr

from mlp_interp.models.protocol import Model
from mlp_interp.prompts.tokenizing import token_strings
from mlp_interp.results import strings, variable

__all__ = ["ids_and_texts", "readable", "texts"]


def readable(text: str) -> str:
    """A text with ``␀`` for the character NUL, which no file format keeps within a string."""
    return text.replace("\0", "␀")


def texts(model: Model, tokens: np.ndarray) -> np.ndarray:
    """How tokens read, as an array of the same shape.

    Ids beyond the tokenizer's (a padded vocabulary), or without one, read as ``#50300``; where
    there is no token (an id of -1) there is no text.
    """
    tokenizer = getattr(model, "tokenizer", None)
    known = 0 if tokenizer is None else len(tokenizer)
    ids, places = np.unique(tokens, return_inverse=True)
    listed = ids.tolist()
    read = [token for token in listed if 0 <= token < known]
    known_text = {-1: ""} | dict(zip(read, token_strings(tokenizer, read), strict=True))
    text = [readable(known_text.get(token, f"#{token}")) for token in listed]
    return np.array(text, dtype=object)[places.reshape(tokens.shape)]


def ids_and_texts(
    model: Model, name: str, dims: str | tuple[str, ...], ids: np.ndarray, long_name: str
) -> dict[str, xr.Variable]:
    """Tokens as two variables of a result, ``NAME_id`` and ``NAME_text``."""
    text = strings(texts(model, ids))
    return {
        f"{name}_id": variable(dims, ids, unit="token", long_name=long_name),
        f"{name}_text": variable(dims, text, unit="text", long_name=long_name),
    }
