"""Which layers stand side by side when distributions are read, and the positions they are of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from mlp_interp.lens.decoding import Decoded, Rows
from mlp_interp.lens.distributions import Distributions
from mlp_interp.models.unembed import Unembed

__all__ = ["Columns"]


@dataclass(frozen=True)
class Columns:
    """The layers that are read, the input's among them, and the model's own prediction last.

    Attributes:
        layers: Of each column but the last.
        shown: Of those that were asked for, the column.
        ahead: By how many positions the prediction stands after the stream.
    """

    layers: tuple[int, ...]
    shown: tuple[int, ...]
    ahead: int

    @classmethod
    def of(cls, wanted: Sequence[int], n_layers: int, ahead: int = 0) -> "Columns":
        """Columns for some layers of a model; the final stream as it is is the model's own."""
        own = n_layers if ahead == 0 else -1
        layers = tuple(sorted({0, *wanted} - {own}))
        shown = [len(layers) if layer == own else layers.index(layer) for layer in wanted]
        return cls(layers, tuple(shown), ahead)

    def __len__(self) -> int:
        return len(self.layers)

    def read(
        self,
        unembed: Unembed,
        decoded: Decoded,
        rows: Rows,
        targets: Mapping[str, Int[Tensor, " row"]],
        *,
        every: bool = False,
        k: int = 1,
    ) -> Distributions:
        """The distributions at some positions, all columns.

        Args:
            unembed: The readout.
            decoded: The streams.
            rows: Where the streams stand; with `ahead`, the prediction stands so much later.
            targets: As of `Distributions.of`.
            every: Whether the distances from every column are wanted, not from the first and the
                last alone.
            k: As of `Distributions.of`.
        """
        later = rows[0], rows[1] + self.ahead
        vectors = [decoded.normalized(layer, rows) for layer in self.layers]
        normalized = torch.stack([*vectors, decoded.reference(later)])
        bases = range(len(normalized)) if every else (0, -1)
        return Distributions.of(unembed, normalized, targets, bases=tuple(bases), k=k)
