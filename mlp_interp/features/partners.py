"""The best partners that were seen so far, for every neuron of two models."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mlp_interp.features.crossed import Crossed, rotation

__all__ = ["Partners"]


class Partners:
    """What is kept of correlations, one pair of layers after another.

    Attributes:
        value: Highest correlations of each of our neurons, ``[layer, neuron, rank]``.
        layer: Layers of these partners.
        neuron: Their numbers.
        by_layer: The highest with each layer of theirs, ``[layer, neuron, other]``.
        rotated: The highest with any of theirs when these are turned, ``[draw, layer, neuron]``.
        theirs: The highest of each of their neurons with any of ours, ``[layer, neuron]``.
    """

    def __init__(
        self,
        ours: Sequence[int],
        theirs: Sequence[int],
        sizes: tuple[int, int],
        *,
        top: int,
        rotations: int,
        seed: int,
    ) -> None:
        self.ours, self.theirs_layers, self.seed = [*ours], [*theirs], seed
        n, m = sizes
        self.value = torch.full((len(ours), n, top), -torch.inf, dtype=torch.float64)
        self.layer, self.neuron = (torch.full(self.value.shape, -1) for _ in range(2))
        self.by_layer = torch.zeros(len(ours), n, len(theirs), dtype=torch.float64)
        self.rotated = torch.full((rotations, len(ours), n), -torch.inf, dtype=torch.float64)
        self.theirs = torch.full((len(theirs), m), -torch.inf, dtype=torch.float64)
        self.constant = torch.zeros(len(ours), n, dtype=torch.bool)

    def see(self, crossed: Crossed) -> None:
        """Take in all pairs of layers that were crossed."""
        turns: dict[int, list[Tensor]] = {}
        for a, b in crossed.cross:
            row, column = self.ours.index(a), self.theirs_layers.index(b)
            found = crossed.correlation(a, b)
            self.constant[row] = crossed.constant("ours", a)
            self._merge(row, b, found)
            self.by_layer[row, :, column] = found.amax(1)
            self.theirs[column] = torch.maximum(self.theirs[column], found.amax(0))
            if b not in turns:
                # The same turns whatever was crossed before: they depend on the layer alone.
                turns = {b: self._turns(b, found.shape[1])}
            for draw, turn in enumerate(turns[b]):
                turned = crossed.rotated(a, b, turn).amax(1)
                self.rotated[draw, row] = torch.maximum(self.rotated[draw, row], turned)

    def _turns(self, layer: int, size: int) -> list[Tensor]:
        seeds = (self.seed + 1_000_003 * (1 + draw) + layer for draw in range(len(self.rotated)))
        return [rotation(size, seed) for seed in seeds]

    def _merge(self, row: int, layer: int, found: Float[Tensor, "ours theirs"]) -> None:
        """Keep the highest of those that were kept and of one more layer."""
        top = self.value.shape[-1]
        value, neuron = found.topk(min(top, found.shape[1]), dim=1)
        values = torch.cat([self.value[row], value], 1)
        layers = torch.cat([self.layer[row], torch.full_like(neuron, layer)], 1)
        neurons = torch.cat([self.neuron[row], neuron], 1)
        self.value[row], best = values.topk(top, dim=1)
        self.layer[row], self.neuron[row] = layers.gather(1, best), neurons.gather(1, best)

    def mutual(self) -> Tensor:
        """Whether no other of our neurons correlates more with a neuron's best partner."""
        layers = self.layer[..., 0].flatten().tolist()
        rows = torch.tensor([self.theirs_layers.index(layer) for layer in layers])
        best = self.theirs[rows, self.neuron[..., 0].flatten()].view(self.value.shape[:2])
        return self.value[..., 0] >= best
