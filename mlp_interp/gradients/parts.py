"""A question worked on a few prompts at a time: both runs, the metric, gradients between them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mlp_interp.gradients.backward import Grads, Lean
from mlp_interp.gradients.hooked import HookRuns
from mlp_interp.gradients.runs import GradientPlan, LeanRuns, Runs
from mlp_interp.interchange import Question, Reading
from mlp_interp.models import Forward, Weights
from mlp_interp.sites import GATED, NEURONS

__all__ = ["GradientPart", "parts"]


@dataclass(frozen=True)
class GradientPart:
    """Both runs of some prompts, and the metric on them.

    Attributes:
        question: Of these prompts.
        plan: What to compute, as it fits into the memory.
        runs: The runs.
        reading: The metric.
    """

    question: Question
    plan: GradientPlan
    runs: Runs
    reading: Reading

    def gradients(self) -> Iterator[tuple[int, Grads]]:
        """As `Runs.gradients`, summed over steps: ``[prompt, row, ...]``."""
        prompts = torch.arange(len(self.question.contrast), device=self.reading.clean.device)

        def seed(streams: Tensor, weights: Tensor) -> Tensor:
            each = prompts.repeat(len(streams) // len(prompts))
            return self.reading.gradient(streams, each, weights)

        for layer, grads in self.runs.gradients(seed):
            yield layer, {name: _over_steps(x, len(prompts)) for name, x in grads.items()}


def _over_steps(grad: Tensor, prompts: int) -> Tensor:
    if len(grad) == prompts:
        return grad
    return grad.view(-1, prompts, *grad.shape[1:]).sum(0)


def parts(question: Question, plan: GradientPlan) -> Iterator[GradientPart]:
    """Run as many prompts, and steps, at a time as fit into the question's memory.

    Raises:
        ValueError: The metric is NaN or infinite in some prompt.
    """
    forward = question.forward
    length = question.contrast.length
    items = max(1, int(question.memory * 2**20 / _bytes(forward.weights, length, plan)))
    plan = replace(plan, together=min(items, plan.steps))
    lean = Lean(forward) if isinstance(forward, Forward) else None
    for some in question.parts(max(1, items // plan.together)):
        runs = HookRuns.of(some, plan) if lean is None else LeanRuns.of(lean, some, plan)
        yield GradientPart(some, plan, runs, some.reading_at(runs.clean, runs.corrupted))


def _bytes(weights: Weights, length: int, plan: GradientPlan) -> float:
    """About what one prompt takes: the tape of both its runs, and differences that are kept."""
    row = 13 * weights.d_model + 3 * weights.d_mlp + 4 * weights.n_heads * length
    if "q_in" in plan.gradients:
        # Senders' differences throughout, and the readers' gradients of one block.
        row += weights.n_heads * weights.d_model * (1 + 8 / weights.n_layers)
    if {*NEURONS, *GATED} & set(plan.names):
        row += weights.d_mlp
    return float(row) * length * weights.n_layers * weights.W_U.element_size()
