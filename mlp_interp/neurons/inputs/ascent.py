"""Gradient ascent on input embeddings."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from mlp_interp.neurons.inputs.space import Space

__all__ = ["ascend"]


def ascend(
    target: Callable[[Tensor], tuple[Tensor, Tensor]],
    space: Space,
    vectors: Float[Tensor, "restart pos d_model"],
    *,
    steps: int,
    rate: float,
    near_tokens: float,
) -> tuple[Float[Tensor, "restart pos d_model"], Float[Tensor, "restart step"]]:
    """Climb from some vectors, each row by itself.

    Args:
        target: Activation and score (what is climbed) of each row of a stream: a `Target`.
        space: Where the vectors may lie.
        vectors: Where to begin.
        steps: How often to step; steps get shorter, to nothing at the last.
        rate: Length of the first steps, over the length of the vectors.
        near_tokens: What the mean squared distance to the nearest tokens costs in the end, in
            units of the score; the cost rises from nothing to this over the first half of the
            steps.

    Returns:
        The best vectors met, cost included, and the score at every step.
    """
    vectors = space.project(vectors)
    kept, best = vectors, torch.full((len(vectors),), -torch.inf, device=vectors.device)
    trace: list[Tensor] = []
    adam = _Adam(rate * space.norms[0] / vectors.shape[-1] ** 0.5)
    for step in range(steps + 1):
        strength = near_tokens * min(1.0, 2 * step / max(1, steps))
        with torch.enable_grad():
            leaf = vectors.clone().requires_grad_()
            _, score = target(space.stream(leaf))
            apart = space.distance(leaf).mean(-1) if near_tokens else torch.zeros_like(score)
            (gradient,) = torch.autograd.grad((score - strength * apart).sum(), leaf)
        score = score.detach()
        trace.append(score)
        worth = score - near_tokens * apart.detach()
        better = worth > best
        best = torch.where(better, worth, best)
        kept = torch.where(better[:, None, None], vectors, kept)
        vectors = space.project(vectors + (1 - step / max(1, steps)) * adam.step(gradient))
    return kept, torch.stack(trace, 1)


@dataclass
class _Adam:
    """Kingma & Ba's step; `torch.optim` takes two seconds to import, longer than most climbs."""

    rate: float
    count: int = 0
    mean: Tensor | float = 0.0
    square: Tensor | float = 0.0
    betas: tuple[float, float] = field(default=(0.9, 0.99))

    def step(self, gradient: Tensor) -> Tensor:
        first, second = self.betas
        self.count += 1
        self.mean = first * self.mean + (1 - first) * gradient
        self.square = second * self.square + (1 - second) * gradient.square()
        mean, square = self.mean / (1 - first**self.count), self.square / (1 - second**self.count)
        return self.rate * mean / (square.sqrt() + 1e-12)
