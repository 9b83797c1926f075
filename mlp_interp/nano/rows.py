"""Training rows: packed documents, and repeats of random tokens.

Induction heads do not form from long uniform repeats at this size. They do from many short
windows in which a few random tokens are repeated and only the repeats are scored: the
first copy cannot be predicted and would drown the signal. They come sooner still when the
repeats are short at first: copying anything at all then already pays.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from mlp_interp.nano.corpus import documents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["END", "document_rows", "repeat_row"]

END = 0
_WINDOW = 64
_SHORTEST, _LONGEST = 3, 24
_LONG_SHARE = 0.25
_ENCODED_AT_ONCE = 512


def repeat_row(
    rng: np.random.Generator, length: int, vocabulary: int, *, progress: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one row of repeated random tokens.

    Mostly windows of 64 tokens with a random sequence of 3 to 24 tokens said again and
    again; in the second half of the curriculum sometimes a single window with a sequence up
    to nearly half of it.

    Args:
        rng: Draws everything.
        length: Tokens of the row.
        vocabulary: Tokens are drawn from 1 up to this.
        progress: Place in the curriculum: the longest sequence grows from 6 tokens at 0 to
            24 at 1.

    Returns:
        Tokens and a mask of the positions that are scored *as targets*, both ``[length]``.
    """
    tokens, scored = np.empty(length, np.int64), np.zeros(length, bool)
    long = progress > 0.5 and rng.random() < _LONG_SHARE
    most = round(6 + (_LONGEST - 6) * min(progress, 1.0))
    window = length if long else _WINDOW
    for start in range(0, length, window):
        size = min(window, length - start)
        first = int(rng.random() < 0.5)
        longest = size // 2 - 2 if long else min(most, size // 2)
        period = int(rng.integers(_SHORTEST, longest + 1))
        piece = rng.integers(1, vocabulary, period)
        body = np.resize(piece, size - first)
        if rng.random() < 0.5:
            # A second copy that begins somewhere inside the first: what counts is the
            # token before, not the distance.
            body[period:] = np.resize(
                np.roll(piece, -int(rng.integers(period))), body[period:].size
            )
        tokens[start : start + first] = END
        tokens[start + first : start + size] = body
        # The first token of the second copy is a guess too. (So is the step from the last to the
        # first token of a copy that began inside: one target in many, left in.)
        scored[start + first + period + 1 : start + size] = True
    return tokens, scored


def document_rows(
    tokenizer: PreTrainedTokenizerFast, seed: int, rng: np.random.Generator
) -> Generator[list[int], int, None]:
    """Yield endless rows of packed training documents; receive each row's length by ``send``.

    Each document is preceded by ``<|endoftext|>``. A row begins with a document, except
    that one in eight goes on in the middle of the last one, so that the model also knows
    text without a beginning.
    """
    encoded = _encoded(tokenizer, seed)
    rest: list[int] = []
    length = yield []
    while True:
        row = rest if rng.random() < 0.125 else []
        while len(row) < length:
            row = row + next(encoded)
        rest = row[length:]
        length = yield row[:length]


def _encoded(tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[list[int]]:
    source = documents("train", seed)
    while True:
        for ids in tokenizer(list(islice(source, _ENCODED_AT_ONCE)))["input_ids"]:
            yield [END, *ids]
