"""How far a sweep is: a bar, or who wants to know."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

__all__ = ["Progress"]


class Progress:
    """A bar of tokens, or a function that is told the share of the corpus that is done.

    Args:
        tokens: The corpus.
        done: Sequences that were done before.
        shown: True for a bar, False for nothing, or the function.
    """

    def __init__(
        self,
        tokens: Int[Tensor, "sequence pos"],
        done: int,
        shown: bool | Callable[[float], object],
    ) -> None:
        self.sequences, self.length = tokens.shape
        self.told = shown if callable(shown) else None
        self.bar = tqdm(
            total=tokens.numel(),
            initial=done * self.length,
            desc="sweep",
            unit="tok",
            unit_scale=True,
            disable=shown is not True,
        )
        self.at(done)

    def at(self, sequences: int | float) -> None:
        """So many sequences are done."""
        self.bar.update(sequences * self.length - self.bar.n)
        if self.told is not None:
            self.told(sequences / self.sequences)

    def within(self, start: int, sequences: int | float) -> None:
        """So many are done of a shard that begins here."""
        self.at(start + sequences)

    def __enter__(self) -> "Progress":
        """Itself."""
        return self

    def __exit__(self, *error: Any) -> None:
        """Leave the bar as it is."""
        self.bar.close()
