"""What `mlp-interp features` asks about: documents, and which of them have a feature."""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from mlp_interp.corpus import Corpus
from mlp_interp.models.padding import first_token
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.tokenizing import decode, tokenizer_of

__all__ = ["asked", "documents"]

_LEAST = 8  # tokens: of fewer a mean says little, and what is left of a cut document is often so


def documents(model: Model, corpus: Corpus) -> list[list[int]]:
    """The rows of a corpus, cut before each token that begins a text.

    Raises:
        ValueError: None is long enough.
    """
    begins, found = first_token(model), []
    for row in corpus.tokens.tolist():
        starts = [0, *(n for n, token in enumerate(row) if n and token == begins), len(row)]
        found += [row[a:b] for a, b in pairwise(starts)]
    long = [row for row in found if len(row) >= _LEAST]
    if not long:
        raise ValueError(f"corpus has no document of {_LEAST} tokens; wanted longer texts")
    return long


def asked(
    model: Model, rows: Sequence[Sequence[int]], prefixes: Sequence[str], words: Sequence[str]
) -> dict[str, Any]:
    """Prefixes as they are, and of lists of words which documents hold one, by what was written."""
    labels: dict[str, Any] = {prefix: prefix for prefix in prefixes}
    for given in words:
        listed = [word.strip() for word in given.split(",") if word.strip()]
        any_of = re.compile(rf"\b({'|'.join(map(re.escape, listed))})\b", re.IGNORECASE)
        texts = (decode(tokenizer_of(model), list(row)) for row in rows)
        labels[given] = np.array([bool(any_of.search(text)) for text in texts])
    return labels
