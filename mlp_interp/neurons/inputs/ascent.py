"""Gradient ascent on input embeddings."""

from collections.abc import Callable

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
        target: Activation and score (what is climbed) of each row of a stream: an `AscentTarget`.
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
    highest, best = vectors, torch.full((len(vectors),), -torch.inf, device=vectors.device)
    trace: list[Tensor] = []
    leaf = vectors.clone().requires_grad_()
    longest = rate * space.norms[0] / vectors.shape[-1] ** 0.5
    adam = torch.optim.Adam([leaf], betas=(0.9, 0.99), eps=1e-12, maximize=True)
    for step in range(steps + 1):
        strength = near_tokens * min(1.0, 2 * step / max(1, steps))
        with torch.enable_grad():
            _, score = target(space.stream(leaf))
            apart = space.distance(leaf).mean(-1) if near_tokens else torch.zeros_like(score)
            (leaf.grad,) = torch.autograd.grad((score - strength * apart).sum(), leaf)
        score = score.detach()
        trace.append(score)
        worth = score - near_tokens * apart.detach()
        better = worth > best
        best = torch.where(better, worth, best)
        highest = torch.where(better[:, None, None], leaf.detach(), highest)
        adam.param_groups[0]["lr"] = (1 - step / max(1, steps)) * longest
        adam.step()
        with torch.no_grad():
            leaf.copy_(space.project(leaf))
    return highest, torch.stack(trace, 1)
