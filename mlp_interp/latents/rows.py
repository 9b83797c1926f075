"""Activations to train on: what a dictionary reads and writes, token by token, in shuffled rows."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mlp_interp.dictionaries import Dictionary, Reading
from mlp_interp.models import Forward, HookForward
from mlp_interp.results import single

__all__ = ["Pairs", "Rows", "pairs_of"]

Pairs = tuple[Float[Tensor, "row d_in"], Float[Tensor, "row d_out"]]

_TOKENS = 2**12  # that are run at a time


class _Seen:
    """The observer that keeps what a dictionary reads and what is at the place that it writes."""

    def __init__(self, reading: Reading, dictionary: Dictionary) -> None:
        self.reading, self.at = reading, (dictionary.writes, dictionary.layer)
        self.written: Tensor | None = None

    def __call__(self, name: str, layer: int, x: Tensor) -> Tensor:
        self.reading.note(name, layer, x)
        if (name, layer) == self.at:
            self.written = x
        return x


@torch.no_grad()
def pairs_of(
    forward: Forward | HookForward,
    dictionary: Dictionary,
    tokens: Int[Tensor, "batch pos"],
    counts: Bool[Tensor, "batch pos"],
) -> Pairs:
    """What a dictionary reads and writes at the tokens that count, in the order of the tokens.

    Of an SAE the two are one tensor.
    """
    seen = _Seen(Reading(forward.weights, [dictionary]), dictionary)
    forward.run(forward.embed(tokens), stop=dictionary.layer + 1, observe=seen)
    assert seen.written is not None  # noqa: S101
    chosen = counts.to(seen.written.device)
    written = single(seen.written[chosen])
    if dictionary.is_sae:
        return written, written
    return single(seen.reading.read(dictionary, seen.written)[chosen]), written


@dataclass
class Rows:
    """The rows of a corpus, in pools of some sequences each that are shuffled within.

    No more than two pools are in memory. Where all sequences fit in one, it is computed once and
    shuffled again each time round; else the order of the sequences changes from round to round.

    Attributes:
        forward: The model's forward pass.
        dictionary: Says what is read and written.
        tokens: The corpus.
        counts: Which of its tokens count.
        pool: About how many rows a pool has.
        seed: Of the shuffling.
    """

    forward: Forward | HookForward
    dictionary: Dictionary
    tokens: Int[Tensor, "sequence pos"]
    counts: Bool[Tensor, "sequence pos"]
    pool: int
    seed: int
    _held: dict[int, Pairs] = field(default_factory=dict)
    _all: Pairs | None = None

    def __post_init__(self) -> None:
        self._sizes = self.counts.sum(1)

    @property
    def _together(self) -> int:
        """Sequences in a pool."""
        return max(1, min(len(self.tokens), self.pool // self.tokens.shape[1]))

    def batches(self, size: int, done: int, steps: int) -> Iterator[Pairs]:
        """The batches of the steps that are left: all rows in some order, again and again."""
        number, at, left = -1, 0, 0
        for step in range(steps):
            parts, need = [], size
            while need:
                if not left:
                    number, at = number + 1, 0
                    left = int(self._sizes[self._sequences(number)].sum())
                some = min(need, left)
                parts.append((number, slice(at, at + some)))
                at, left, need = at + some, left - some, need - some
            if step >= done:
                yield self._joined(parts)

    def first(self) -> Pairs:
        """The first pool."""
        return self._pool(0)

    def _joined(self, parts: list[tuple[int, slice]]) -> Pairs:
        found = [(self._pool(number), rows) for number, rows in parts]
        x = torch.cat([pair[0][rows] for pair, rows in found])
        if self.dictionary.is_sae:
            return x, x
        return x, torch.cat([pair[1][rows] for pair, rows in found])

    def _sequences(self, number: int) -> Int[Tensor, " some"]:
        """Which sequences are in a pool; it ends with the round, so that none is in it twice."""
        pools = -(-len(self.tokens) // self._together)
        order = torch.randperm(len(self.tokens), generator=self._generator(0, number // pools))
        return order.split(self._together)[number % pools]

    def _pool(self, number: int) -> Pairs:
        if number not in self._held:
            x, y = self._computed(number)
            order = torch.randperm(len(x), generator=self._generator(1, number)).to(x.device)
            x_new = x[order]
            new = (x_new, x_new if y is x else y[order])
            self._held = {k: v for k, v in self._held.items() if k == number - 1} | {number: new}
        return self._held[number]

    def _computed(self, number: int) -> Pairs:
        whole = self._together == len(self.tokens)
        if whole and self._all is not None:
            return self._all
        chosen = torch.arange(len(self.tokens)) if whole else self._sequences(number)
        size = max(1, _TOKENS // self.tokens.shape[1])
        parts = [
            pairs_of(self.forward, self.dictionary, self.tokens[some].long(), self.counts[some])
            for some in chosen.split(size)
        ]
        x = torch.cat([part[0] for part in parts])
        found = (x, x if self.dictionary.is_sae else torch.cat([part[1] for part in parts]))
        if whole:
            self._all = found
        return found

    def _generator(self, of: int, number: int) -> torch.Generator:
        return torch.Generator().manual_seed((self.seed * 2 + of) * 1_000_003 % 2**40 + number)
