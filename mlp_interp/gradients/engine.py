"""Which engine computes gradients of a model, and the metric at the end of it."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.gradients.hooked import HookRuns
from mlp_interp.gradients.lean import Lean
from mlp_interp.gradients.runs import LeanRuns, Plan, Runs
from mlp_interp.metrics import Custom, Linear, Metric, Reader
from mlp_interp.models import Forward, Weights, forward_of
from mlp_interp.prompts import Contrast

__all__ = ["Scorer", "engine_of", "runs_of"]


def engine_of(model: Any) -> Lean | Weights:
    """Lean passes over the weights where they compute what the model does; else the model's own.

    Raises:
        ValueError: The model is of a kind that the package cannot read.
    """
    forward = forward_of(model)
    return Lean(forward) if isinstance(forward, Forward) else forward.weights


def runs_of(engine: Lean | Weights, clean: Tensor, corrupted: Tensor, plan: Plan) -> Runs:
    """Run both kinds of prompts."""
    if isinstance(engine, Lean):
        return LeanRuns.of(engine, clean, corrupted, plan)
    return HookRuns.of(engine, clean, corrupted, plan)


@dataclass
class Scorer:
    """A metric ready to be read, and differentiated, from final streams.

    Attributes:
        reader: See `mlp_interp.metrics`.
        order: Which of the distinct positions read the metric wants, in its order.
    """

    reader: Reader
    order: list[int]

    @classmethod
    def of(
        cls, model: Any, metric: Metric, length: int, reference: Float[Tensor, "prompt read d"]
    ) -> "Scorer":
        """Prepare a metric.

        Args:
            model: The model.
            metric: The metric.
            length: Positions in a prompt.
            reference: Final streams of the clean runs at the distinct positions read, in order.
        """
        read = metric.read(length)
        order = [sorted(set(read)).index(position) for position in read]
        return cls(metric.reader(model, reference[:, order]), order)

    def values(
        self, streams: Float[Tensor, "item read d"], prompts: Int[Tensor, " item"]
    ) -> Float[Tensor, " item"]:
        """The metric of each item."""
        with torch.no_grad():
            return self.reader(streams[:, self.order], prompts)

    def gradient(
        self,
        streams: Float[Tensor, "item read d"],
        prompts: Int[Tensor, " item"],
        weights: Float[Tensor, " item"],
    ) -> Float[Tensor, "item read d"]:
        """Gradient of each item's metric times its weight with respect to its streams."""
        with torch.enable_grad():
            leaf = streams.detach().requires_grad_()
            values = self.reader(leaf[:, self.order], prompts)
            return torch.autograd.grad((values * weights).sum(), leaf)[0]


def clean_streams(
    engine: Lean | Weights, contrast: Contrast, metric: Metric, read: tuple[int, ...], at_once: int
) -> Float[Tensor, "prompt read d"]:
    """Final streams of all clean runs where the metric compares with them; else zeros."""
    weights = engine.weights if isinstance(engine, Lean) else engine
    shape = (len(contrast), len(read), weights.d_model)
    streams = torch.zeros(shape, dtype=weights.dtype, device=weights.device)
    if isinstance(metric, Linear | Custom):
        return streams
    plan = Plan(read, (), ())
    for start in range(0, len(contrast), at_once):
        part = slice(start, start + at_once)
        pair = contrast.clean_tokens[part], contrast.corrupted_tokens[part]
        streams[part] = runs_of(engine, *pair, plan).clean
    return streams
