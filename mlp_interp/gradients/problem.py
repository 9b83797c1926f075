"""A checked question about gradients: the model, the pairs, the metric, and how much at a time."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlp_interp.gradients.engine import Scorer, clean_streams, engine_of, runs_of
from mlp_interp.gradients.lean import Grads, Lean
from mlp_interp.gradients.runs import Plan, Runs
from mlp_interp.metrics import Metric, metric_for
from mlp_interp.models import Weights, describe
from mlp_interp.prompts import Contrast
from mlp_interp.results import to_numpy

__all__ = ["Part", "Problem", "check_options"]


def check_options(direction: Any, steps: Any) -> None:
    """Refuse what no `Plan` can say.

    Raises:
        ValueError: Another direction, or steps that are no count.
    """
    if direction not in ("denoising", "noising"):
        raise ValueError(f"direction={direction!r}; wanted 'denoising' or 'noising'")
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps={steps!r}; wanted an integer of at least 1")


@dataclass
class Problem:
    """What all analyses of this folder begin with.

    Attributes:
        model: The model.
        contrast: The pairs.
        metric: The metric.
        engine: What computes gradients.
        plan: What to compute.
        at_once: Prompts at a time.
    """

    model: Any
    contrast: Contrast
    metric: Metric
    engine: Lean | Weights
    plan: Plan
    at_once: int

    @classmethod
    def of(
        cls, model: Any, contrast: Contrast, metric: str | Metric, plan: Plan, memory: float
    ) -> "Problem":
        """Check the arguments, and divide the work so that it stays within `memory` MiB.

        Raises:
            ValueError: One of them does not fit.
        """
        if not memory > 0:
            raise ValueError(f"memory={memory}; wanted a positive number of MiB")
        engine = engine_of(model)
        weights = engine.weights if isinstance(engine, Lean) else engine
        contrast = replace(
            contrast.to(weights.device),
            clean_tokens=weights.checked(contrast.clean_tokens),
            corrupted_tokens=weights.checked(contrast.corrupted_tokens),
        )
        metric = metric_for(metric, contrast)
        plan = replace(plan, read=tuple(sorted(set(metric.read(contrast.length)))))
        items = max(1, int(memory * 2**20 / _bytes(weights, contrast.length, plan)))
        plan = replace(plan, together=min(items, plan.steps))
        at_once = min(len(contrast), max(1, items // plan.together))
        return cls(model, contrast, metric, engine, plan, at_once)

    @property
    def weights(self) -> Weights:
        """The model's weights."""
        return self.engine.weights if isinstance(self.engine, Lean) else self.engine

    def scorer(self) -> Scorer:
        """The metric, ready to be read."""
        streams = clean_streams(
            self.engine, self.contrast, self.metric, self.plan.read, self.at_once
        )
        return Scorer.of(self.model, self.metric, self.contrast.length, streams)

    def parts(self, scorer: Scorer) -> "Iterator[Part]":
        """The runs, some prompts at a time.

        Raises:
            ValueError: The metric is NaN or infinite in some prompt.
        """
        for start in range(0, len(self.contrast), self.at_once):
            part = slice(start, start + self.at_once)
            tokens = self.contrast.clean_tokens[part], self.contrast.corrupted_tokens[part]
            prompts = torch.arange(len(self.contrast), device=tokens[0].device)[part]
            runs = runs_of(self.engine, *tokens, self.plan)
            clean = scorer.values(runs.clean, prompts)
            corrupted = scorer.values(runs.corrupted, prompts)
            self._check(clean, prompts, "clean")
            self._check(corrupted, prompts, "corrupted")
            yield Part(prompts, runs, scorer, clean, corrupted)

    def coords(self) -> dict[str, Any]:
        """Coordinates of prompts and positions; token strings where there is one prompt."""
        text = self.contrast.token_text()
        coords: dict[str, Any] = {
            "prompt": np.arange(len(self.contrast)),
            "answer": ("prompt", self.contrast.answer_text),
            "foil": ("prompt", self.contrast.foil_text),
            "pos": np.arange(self.contrast.length),
        }
        if len(text) == 1:
            coords["token"] = ("pos", text[0])
        return coords

    def attrs(self) -> dict[str, Any]:
        """Where the numbers come from."""
        return {
            **describe(self.model),
            **self.contrast.attrs,
            "unit": self.metric.unit,
            "metric": self.metric.name,
            "direction": self.plan.direction,
            "steps": self.plan.steps,
            "engine": "lean" if isinstance(self.engine, Lean) else "hooks",
        }

    def _check(self, values: Tensor, prompts: Tensor, which: str) -> None:
        for prompt, value in zip(prompts.tolist(), values.tolist(), strict=True):
            if not np.isfinite(value):
                raise ValueError(
                    f"metric {self.metric.name!r} is {value} after the {which} prompt {prompt}; "
                    "wanted a finite number (do the weights hold NaN?)"
                )


@dataclass
class Part:
    """The runs of some prompts, with their metrics."""

    prompts: Tensor
    runs: Runs
    scorer: Scorer
    clean: Tensor
    corrupted: Tensor

    def gradients(self) -> Iterator[tuple[int, Grads]]:
        """As `Runs.gradients`, summed over steps: ``[prompt, row, ...]``."""

        def seed(streams: Tensor, weights: Tensor) -> Tensor:
            prompts = self.prompts.repeat(len(streams) // len(self.prompts))
            return self.scorer.gradient(streams, prompts, weights)

        for layer, grads in self.runs.gradients(seed):
            yield layer, {name: self._over_steps(x) for name, x in grads.items()}

    def _over_steps(self, grad: Tensor) -> Tensor:
        if len(grad) == len(self.prompts):
            return grad
        return grad.view(-1, len(self.prompts), *grad.shape[1:]).sum(0)

    def metrics(self) -> tuple[np.ndarray, np.ndarray]:
        """Clean and corrupted, ``[prompt]``."""
        return to_numpy(self.clean), to_numpy(self.corrupted)


def _bytes(weights: Weights, length: int, plan: Plan) -> float:
    """About what one prompt takes: the tape of both its runs, and differences that are kept."""
    row = 13 * weights.d_model + 3 * weights.d_mlp + 4 * weights.n_heads * length
    if "q_in" in plan.gradients:
        # Senders' differences throughout, and the readers' gradients of one block.
        row += weights.n_heads * weights.d_model * (1 + 8 / weights.n_layers)
    if {"pre", "post"} & set(plan.names):
        row += weights.d_mlp
    return float(row) * length * weights.n_layers * weights.W_U.element_size()
