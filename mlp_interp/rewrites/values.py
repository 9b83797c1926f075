"""Which change of an MLP's output at the subject makes the model say the target: by gradient."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mlp_interp.models import Forward, HookForward
from mlp_interp.models.indices import count
from mlp_interp.models.options import checked_number
from mlp_interp.models.unembed import Unembed
from mlp_interp.rewrites.facts import Rows
from mlp_interp.runs import Run, Runner
from mlp_interp.sites import Site

__all__ = ["Found", "Search", "States", "find_value"]


@dataclass(frozen=True, kw_only=True)
class Search:
    """How the change δ of an MLP's output is looked for, after which the target is said.

    Args:
        weight: Of the KL divergence, in nats, on preserved prompts.
        decay: Of the squared length of δ, in lengths of the value.
        steps: Steps of Adam at most.
        lr: Their size.
        clamp: Longest δ, in lengths of the value.
        stop: Nats at which the search ends: loss of the target, and weighted KL.

    Raises:
        ValueError: A number is out of range.

    Example:
        >>> Search(steps=20).clamp
        4.0
    """

    weight: float | int = 1.0
    decay: float | int = 0.1
    steps: int = 60
    lr: float | int = 0.5
    clamp: float | int = 4.0
    stop: float | int = 0.05

    def __post_init__(self) -> None:
        count("steps", self.steps)
        for name in ("weight", "decay", "stop", "lr", "clamp"):
            above = name in ("lr", "clamp")
            good = (lambda x: 0 < x < math.inf) if above else (lambda x: 0 <= x < math.inf)
            wanted = f"a finite number {'above' if above else 'from'} 0"
            number = checked_number(name, getattr(self, name), good, wanted)
            object.__setattr__(self, name, number)  # of Python, whoever held it


def checked_search(given: Any) -> Search:
    """What says how δ is looked for.

    Raises:
        ValueError: It does not.
    """
    if not isinstance(given, Search):
        raise ValueError(f"search={given!r}; wanted rewrites.Search(...)")
    return given


@dataclass(frozen=True)
class States:
    """What one layer has of some texts that name the subject.

    Attributes:
        rows: The texts.
        key: The MLP's hidden activations at the subject's last token.
        value: What the MLP writes there.
        leaves: The stream that leaves the block.
    """

    rows: Rows
    key: Float[Tensor, "row d_mlp"]
    value: Float[Tensor, "row d_model"]
    leaves: Float[Tensor, "row pos d_model"]

    @classmethod
    def of(cls, runner: Runner, rows: Rows, layer: int) -> "States":
        """Run the texts."""
        sites = [Site("post", layer), Site("mlp_out", layer)]
        return cls.of_run(runner.run(rows.tokens, sites=sites), rows, layer)

    @classmethod
    def of_run(cls, run: Run, rows: Rows, layer: int) -> "States":
        """Of a run that keeps the layer's ``post`` and ``mlp_out``."""
        at = torch.arange(len(rows.tokens), device=rows.subject.device), rows.subject
        key, value = run["post", layer][at], run["mlp_out", layer][at]
        return cls(rows, key, value, run.streams[layer + 1])


@dataclass(frozen=True)
class Found:
    """A change, and how it was found.

    Attributes:
        delta: The change.
        steps: Steps that were taken.
        loss: Nats of the target before the first step, and after the last.
    """

    delta: Float[Tensor, " d_model"]
    steps: int
    loss: tuple[float, float]


def find_value(
    runner: Runner, layer: int, texts: States, kept: States | None, search: Search
) -> Found:
    """Look for a change of what the MLP writes at the subject that makes the target likely.

    Minimises ``-mean log p(target) + weight KL(preserved) + decay |δ|²/|v|²``, the mean over texts.
    The change is added at the subject's last token alone, to the stream that leaves the block: to
    the MLP's output, that is.

    Args:
        runner: The model's.
        layer: Of the MLP.
        texts: In which the target is to follow.
        kept: Texts whose next token is to stay as likely as it is.
        search: How.
    """
    with torch.enable_grad():
        objective = _Objective(_later(runner.forward, layer), runner.unembed, search)
        before = None
        if kept is not None:
            with torch.no_grad():
                before = objective.log_probabilities(kept, None)[0]
        size = float(texts.value.double().mean(0).norm())
        delta = torch.zeros_like(texts.value[0], dtype=torch.float32).requires_grad_()
        optimizer = torch.optim.Adam([delta], lr=search.lr)
        losses: list[float] = []
        # LayerNorms take the mean away, and weights that are centred could not write it.
        norms = runner.weights.norm, runner.weights.final_norm
        centred, steps = all(norm.kind == "layer" for norm in norms), 0
        while True:
            nll, penalty = objective(texts, kept, before, delta)
            losses.append(float(nll.detach()))
            if float((nll + penalty).detach()) < search.stop or steps == search.steps:
                break
            length = delta.square().sum() / size**2
            (delta.grad,) = torch.autograd.grad(nll + penalty + search.decay * length, [delta])
            optimizer.step()
            steps += 1
            with torch.no_grad():
                if centred:
                    delta -= delta.mean()
                delta *= min(1.0, search.clamp * size / max(float(delta.norm()), 1e-12))
    if isinstance(runner.forward, HookForward):
        # The bridge keeps the pattern of its last pass, and with it the whole graph.
        runner.forward.run(texts.leaves[:1, :1], start=layer)
    return Found(delta.detach(), steps, (losses[0], losses[-1]))


class _Objective:
    def __init__(self, later: Callable[[Tensor], Tensor], unembed: Unembed, search: Search) -> None:
        self.later, self.unembed, self.search = later, unembed, search

    def __call__(
        self,
        texts: States,
        kept: States | None,
        before: Tensor | None,
        delta: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Loss of the target, and the weighted KL divergence of what is preserved."""
        found = self.log_probabilities(texts, delta)
        target = torch.tensor(texts.rows.target, device=found.device)
        chosen = found[torch.arange(len(target)), :, target]
        nll = -chosen.sum(0).mean()
        if kept is None or before is None:
            return nll, torch.zeros_like(nll)
        after = self.log_probabilities(kept, delta)[0]
        kl = (before.exp() * (before - after)).sum(-1).mean()
        return nll, self.search.weight * kl

    def log_probabilities(
        self, texts: States, delta: Tensor | None
    ) -> Float[Tensor, "next row d_vocab"]:
        """Of all tokens after each text, and after all but the last of the target."""
        stream, rows = texts.leaves, texts.rows
        each = torch.arange(len(rows.tokens), device=stream.device)
        if delta is not None:
            added = delta.to(stream.dtype).expand(len(each), -1)
            stream = stream.index_put((each, rows.subject), added, accumulate=True)
        final = self.later(stream)
        read = [final[each, rows.end + n] for n in range(max(1, len(rows.target)))]
        return self.unembed.logits(torch.stack(read)).float().log_softmax(-1)


def _later(forward: Forward | HookForward, layer: int) -> Callable[[Tensor], Tensor]:
    """From the stream that leaves a block to the final one, with gradients."""
    if isinstance(forward, Forward):
        return lambda stream: forward.run(stream, start=layer + 1)
    if layer + 1 == forward.weights.n_layers:
        return lambda stream: stream
    return lambda stream: forward.run_with_gradients(stream, start=layer + 1)
