"""Shuffle documents and pack their tokens into rows of one length."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Literal, Protocol, TypeVar, runtime_checkable

import numpy as np

__all__ = ["SHUFFLE_BUFFER", "Bos", "PackedRows", "Packer", "shuffled"]

Bos = Literal["each", "documents", "none"]
Item = TypeVar("Item")

SHUFFLE_BUFFER = 1_000
"""Documents held in memory to draw from; up to so many are read beyond those that are used."""


def shuffled(items: Iterable[Item], seed: int, *, buffer: int = SHUFFLE_BUFFER) -> Iterator[Item]:
    """Draw at random from a window of `buffer` items that moves along the stream.

    Up to `buffer` items come out in a uniformly random order; of a longer stream, each item comes
    no earlier than `buffer` places before its own.
    """
    rng, held = Random(seed), []
    for item in items:
        if len(held) < buffer:
            held.append(item)
            continue
        place = rng.randrange(buffer)
        yield held[place]
        held[place] = item
    rng.shuffle(held)
    yield from held


@runtime_checkable
class PackedRows(Protocol):
    """Where rows go: a list, or a file."""

    def append(self, row: np.ndarray, /) -> None:
        """Take one more row."""
        ...

    def __len__(self) -> int: ...


@dataclass
class Packer:
    """Cuts the tokens of one document after another into rows of one length.

    Args:
        length: Tokens per row.
        bos: ``"each"``: every row begins with BOS, which counts as one of its tokens, and BOS
            stands between documents within a row; ``"documents"``: BOS stands before every
            document, wherever in a row that falls; ``"none"``: nothing is added.
        bos_id: The token; None for ``"none"``.
        rows: Takes the rows, each an array of 32-bit integers.
    """

    length: int
    bos: Bos
    bos_id: int | None
    rows: PackedRows = field(default_factory=list)
    held: int = 0  # tokens of text met so far
    documents_used: int = 0  # of which at least one token is in a row
    _pending: list[int] = field(default_factory=list)
    _cut: int = 0  # tokens cut from the front of the stream so far
    # Where the text of each document that is in no row yet begins in the stream.
    _starts: deque[int] = field(default_factory=deque)

    def add(self, pieces: Iterable[list[int]], wanted: int) -> Iterator[int]:
        """Add one document, given as pieces; yields how many rows came of each piece.

        Stops asking for pieces once there are `wanted` rows.
        """
        begun = False
        for ids in pieces:
            if ids and not begun:
                begun = True
                if self.bos == "documents" or (self.bos == "each" and self._pending):
                    self._pending.append(self._separator)
                self._starts.append(self._cut + len(self._pending))
            self._pending += ids
            self.held += len(ids)
            yield self._cut_rows(wanted)
            if len(self.rows) >= wanted:
                return

    @property
    def _separator(self) -> int:
        if self.bos_id is None:
            raise ValueError(f"bos_id=None: bos={self.bos!r} wants a token")
        return self.bos_id

    def _cut_rows(self, wanted: int) -> int:
        head = [self._separator] if self.bos == "each" else []
        body, start, before = self.length - len(head), 0, len(self.rows)
        while len(self._pending) - start >= body and len(self.rows) < wanted:
            self.rows.append(np.array(head + self._pending[start : start + body], dtype=np.int32))
            start += body
            # The next row begins with BOS anyway; two in a row would say nothing.
            if head and self._pending[start : start + 1] == head:
                start += 1
        del self._pending[:start]
        self._cut += start
        while self._starts and self._starts[0] < self._cut:
            self._starts.popleft()
            self.documents_used += 1
        return len(self.rows) - before
