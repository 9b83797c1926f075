"""A clean and a corrupted run of some prompts: their differences, and gradients between them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from mlp_interp.gradients.backward import Grads, Lean, Past
from mlp_interp.gradients.span import Span, Tape
from mlp_interp.interchange import Question

__all__ = ["GradientPlan", "LeanRuns", "Runs", "Seed", "quadrature"]

Seed = Callable[[Tensor, Tensor], Tensor]
"""From final streams ``[step * prompt, read, d_model]`` and the weight of each item to the gradient
of the metric, times the weight."""


@dataclass(frozen=True, kw_only=True)
class GradientPlan:
    """What to compute of a pair of runs.

    Attributes:
        names: The sites whose differences are kept.
        gradients: The gradients that are wanted, see `Lean.backward`.
        zero: Take differences from zero instead of the corrupted run.
        steps: Points between the runs at which gradients are taken; 1 for the base run itself.
        together: At most so many steps at a time.
    """

    names: tuple[str, ...]
    gradients: tuple[str, ...]
    zero: bool = False
    steps: int = 1
    together: int = 1

    def points(self) -> Iterator[tuple[list[float], list[float]]]:
        """Places between corrupted (0) and clean (1), and their weights, some at a time."""
        places, weights = quadrature(self.steps)
        for start in range(0, self.steps, self.together):
            part = slice(start, start + self.together)
            yield places[part], weights[part]


@runtime_checkable
class Runs(Protocol):
    """A clean and a corrupted run of the same prompts."""

    clean: Tensor
    """Final streams at the positions read, ``[prompt, read, d_model]``."""
    corrupted: Tensor
    """Alike."""
    differences: dict[tuple[str, int], Tensor]
    """Clean less corrupted (or zero), by site name and layer."""

    def positions(self, name: str, layer: int) -> list[int]:
        """The positions that differences and gradients of a site have as rows."""
        ...

    def gradients(self, seed: Seed) -> Iterator[tuple[int, Grads]]:
        """Gradients ``[step * prompt, row, ...]`` by layer; all that come are to be added.

        A layer may come several times, with some of the steps each.
        """
        ...


def quadrature(steps: int) -> tuple[list[float], list[float]]:
    """Gauss-Legendre places in (0, 1) and their weights, which sum to 1."""
    places, weights = np.polynomial.legendre.leggauss(steps)
    return ((1 + places) / 2).tolist(), (weights / 2).tolist()


@dataclass
class LeanRuns:
    """`Runs` on a model's weights: only positions that can differ and that are read."""

    lean: Lean
    plan: GradientPlan
    span: Span
    differences: dict[tuple[str, int], Tensor]
    clean: Tensor
    corrupted: Tensor
    past: Past
    ends: tuple[Tensor, Tensor]
    tape: Tape

    @classmethod
    @torch.no_grad()
    def of(cls, lean: Lean, question: Question, plan: GradientPlan) -> "LeanRuns":
        """Run both sides of a question; gradients come later."""
        span, differences = _span(question, plan.zero), {}
        clean, corrupted = question.embedded()
        past, n = lean.past(clean[:, : span.first]), len(clean)
        ends = corrupted[:, span.first :], clean[:, span.first :]

        def note(name: str, layer: int, x: Tensor) -> None:
            if name in plan.names:
                differences[name, layer] = x[:n] if plan.zero else x[:n] - x[n:]

        both = torch.cat(ends[::-1])
        tape = lean.run(both, span, past, observe=note, keep=plan.steps == 1)
        final = tape.final[:n], tape.final[n:]
        base = slice(n) if question.direction == "noising" else slice(n, None)
        return cls(lean, plan, span, differences, *final, past, ends, tape.items(base))

    def positions(self, name: str, layer: int) -> list[int]:
        """As `Runs.positions`: in the last block only what is read has outputs that matter."""
        last = layer == self.lean.weights.n_layers - 1
        return self.span.outputs(last and name not in ("resid_pre", "k", "v", "k_in", "v_in"))

    @torch.no_grad()
    def gradients(self, seed: Seed) -> Iterator[tuple[int, Grads]]:
        """As `Runs.gradients`."""
        names, prompts = self.plan.gradients, len(self.clean)
        if self.plan.steps == 1:
            weights = self.clean.new_ones(prompts)
            yield from self.lean.backward(self.tape, seed(self.tape.final, weights), names)
            return
        for places, weights in self.plan.points():
            resid = torch.cat([torch.lerp(*self.ends, place) for place in places])
            tape = self.lean.run(resid, self.span, self.past, keep=True)
            each = self.clean.new_tensor(weights).repeat_interleave(prompts)
            yield from self.lean.backward(tape, seed(tape.final, each), names)


def _span(question: Question, zero: bool) -> Span:
    """From the first token that differs in some prompt, or is read, to the last that is read."""
    read = tuple(question.read)
    differs = question.contrast.differs.any(0).tolist()
    first = 0 if zero else min(differs.index(True), *read)
    # A few positions by themselves cost a pass over all weights: more than they save.
    return Span(first if 16 * first >= question.length else 0, question.length, read)
