"""Word pools restricted to what a tokenizer keeps whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

__all__ = ["Pool", "any_word"]

Row = TypeVar("Row")


def any_word(word: str) -> bool:
    """Accept every word."""
    return True


class Pool:
    """Keeps the words of one task that a tokenizer accepts.

    Args:
        task: Name of the task, for the error message.
        accept: Says whether a word, given with its leading space where it has one, may
            be exchanged for another (usually: is it a single token?).
    """

    def __init__(self, task: str, accept: Callable[[str], bool] = any_word) -> None:
        self.task = task
        self.accept = accept

    def accepts(self, *words: str) -> bool:
        """Say whether every word of ``words`` (entries may hold several) is accepted."""
        return all(self.accept(f" {word}") for entry in words for word in entry.split())

    def words(self, words: Iterable[str], *, need: int = 2) -> list[str]:
        """Return the accepted ones of ``words``, which come without leading space.

        Raises:
            ValueError: If fewer than ``need`` are left.
        """
        return self.rows_by(words, lambda word: (word,), need=need)

    def pairs(self, pairs: Iterable[tuple[str, str]], *, need: int = 2) -> list[tuple[str, str]]:
        """Return the ``pairs`` of which both words are accepted.

        Raises:
            ValueError: If fewer than ``need`` are left.
        """
        return self.rows_by(pairs, lambda pair: pair, need=need)

    def rows_by(
        self, rows: Iterable[Row], words_of: Callable[[Row], Iterable[str]], *, need: int
    ) -> list[Row]:
        """Return the ``rows`` whose ``words_of(row)`` are all accepted.

        Raises:
            ValueError: If fewer than ``need`` are left.
        """
        rows = list(rows)
        kept = [row for row in rows if self.accepts(*words_of(row))]
        if len(kept) < need:
            raise ValueError(
                f"task {self.task!r}: accept left {len(kept)} of {len(rows)} words, "
                f"expected at least {need}"
            )
        return kept
