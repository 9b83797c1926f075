"""What every analysis of paths begins with: both runs of a contrast, and its metric on them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mlp_interp.metrics import Metric, Reader, finite
from mlp_interp.models import Forward, HookForward, Weights
from mlp_interp.prompts import Contrast
from mlp_interp.runs import Run, Runner
from mlp_interp.sites import Site

__all__ = ["Problem", "items_in"]


@dataclass(frozen=True)
class Problem:
    """The two runs of a contrast, and how its metric is read from final streams.

    Attributes:
        clean: The clean run.
        corrupted: The corrupted run.
        metric: The metric.
        reader: Reads it.
        read: Where, counted from 0.
        values: The metric of both runs, by name.
    """

    clean: Run
    corrupted: Run
    metric: Metric
    reader: Reader
    read: list[int]
    values: dict[str, Float[Tensor, " prompt"]]

    @classmethod
    def of(
        cls,
        forward: Forward | HookForward,
        contrast: Contrast,
        metric: Metric,
        sites: Sequence[Site],
    ) -> "Problem":
        """Run both sides of a contrast and keep what is at `sites`.

        Raises:
            ValueError: Tokens that the model cannot take; a metric that is not finite.
        """
        weights, read = forward.weights, metric.read(contrast.length)
        # Nothing after the last position that is read can matter to it.
        length = max(read) + 1
        runner = Runner(forward)
        clean, corrupted = (
            runner.run(weights.checked(tokens)[:, :length], sites=sites)
            for tokens in (contrast.clean_tokens, contrast.corrupted_tokens)
        )
        reader = metric.reader(weights.model, clean.final[:, read])
        every = torch.arange(len(contrast), device=clean.final.device)
        values = {
            "clean": reader(clean.final[:, read], every),
            "corrupted": reader(corrupted.final[:, read], every),
        }
        for name, value in values.items():
            finite(metric, name, value)
        return cls(clean, corrupted, metric, reader, read, values)

    @property
    def every(self) -> Tensor:
        """All prompts, ``[prompt]``."""
        return torch.arange(len(self.clean.tokens), device=self.clean.final.device)


def items_in(weights: Weights, length: int, memory: float | int) -> int:
    """How many passes of one prompt of so many tokens fit into `memory` MiB together.

    A position holds its stream in some copies, its queries, keys and values, what it attends to,
    and the widest hidden layer.

    Raises:
        ValueError: `memory` is not above 0.
    """
    if not memory > 0:
        raise ValueError(f"memory={memory}; wanted a number of MiB above 0")
    per_position = 3 * weights.d_mlp + 20 * weights.d_model + weights.n_heads * length
    return max(1, int(memory * 2**20 / (weights.W_U.element_size() * length * per_position)))
