"""The same through a model's own forward pass and hooks, for models that the lean one refuses."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mlp_interp.gradients.backward import Grads
from mlp_interp.gradients.runs import GradientPlan, Seed
from mlp_interp.gradients.span import Normed
from mlp_interp.interchange import Question
from mlp_interp.models import Weights
from mlp_interp.sites import Site

__all__ = ["HookRuns"]

_READERS = ("q_in", "k_in", "v_in", "mlp_in")

Places = dict[tuple[str, int], Tensor]


@dataclass
class HookRuns:
    """`Runs` by autograd through the model itself: slower, and right for every model."""

    weights: Weights
    plan: GradientPlan
    read: list[int]
    noising: bool
    tokens: Tensor
    clean: Tensor
    corrupted: Tensor
    ends: tuple[Tensor, Tensor]
    differences: Places

    @classmethod
    @torch.no_grad()
    def of(cls, question: Question, plan: GradientPlan) -> "HookRuns":
        """Run both sides of a question; gradients come later."""
        question.weights.check_names(plan.names, argument="sites")
        weights, noising, enter = (
            question.weights,
            question.direction == "noising",
            ("resid_pre", 0),
        )
        wanted = _places(weights, plan.names)
        places = [*wanted, enter]
        given = (None, None) if question.given is None else question.embedded()
        (clean, here), (corrupted, there) = (
            _forward(weights, tokens, places, question.read, resid)
            for tokens, resid in zip(question.tokens(), given, strict=True)
        )
        differences = {p: here[p] - (0 if plan.zero else there[p]) for p in wanted}
        tokens = question.tokens()[0 if noising else 1]
        ends = there[enter], here[enter]
        return cls(
            weights, plan, question.read, noising, tokens, clean, corrupted, ends, differences
        )

    def positions(self, name: str, layer: int) -> list[int]:
        """As `Runs.positions`: all of them."""
        return list(range(self.tokens.shape[1]))

    def gradients(self, seed: Seed) -> Iterator[tuple[int, Grads]]:
        """As `Runs.gradients`."""
        if self.plan.steps == 1:
            place = 1.0 if self.noising else 0.0
            yield from self._backward([place], [1.0], seed)
            return
        for places, weights in self.plan.points():
            yield from self._backward(places, weights, seed)

    def _backward(
        self, places: list[float], weights: list[float], seed: Seed
    ) -> Iterator[tuple[int, Grads]]:
        corrupted, clean = self.ends
        each = clean.new_tensor(weights).repeat_interleave(len(clean))
        # a + 1 (b - a) is not b to the last bit; at the ends themselves take them themselves.
        points = [
            self.ends[int(p)] if p in (0, 1) else clean.lerp(corrupted, 1 - p) for p in places
        ]
        wanted = _places(self.weights, self._named())
        tokens = self.tokens.repeat(len(places), 1)
        try:
            with torch.enable_grad():
                leaf = torch.cat(points).requires_grad_()
                sites = [*wanted, ("resid_pre", 0)]
                final, seen = _forward(self.weights, tokens, sites, self.read, leaf)
                start = seed(final.detach(), each)
                grads = torch.autograd.grad(final, list(seen.values()), start, allow_unused=True)
        finally:
            # The bridge keeps the pattern of its last forward, and with it the whole graph.
            with torch.no_grad():
                self.weights.model(tokens[:1, :1], return_type=None)
        known = {
            place: torch.zeros_like(x) if grad is None else grad
            for (place, x), grad in zip(seen.items(), grads, strict=True)
        }
        with torch.no_grad():
            for layer in reversed(range(self.weights.n_layers)):
                here = {name: x for (name, at), x in known.items() if at == layer}
                if any(name in self.plan.gradients for name in _READERS):
                    self._readers(layer, here, seen["resid_pre", layer].detach())
                yield layer, {name: here[name] for name in self.plan.gradients}

    def _readers(self, layer: int, here: Grads, resid: Tensor) -> None:
        """Gradients at the stream through each reader of it alone.

        Heads read through known matrices. What the MLP is, is not known here: its part is what the
        others leave over of the whole.
        """
        block = self.weights.block(layer)
        norm, standard = Normed.of(resid, self.weights.norm)
        for name in ("q", "k", "v"):
            matrices = (getattr(block, f"W_{name.upper()}") * block.ln1.w[:, None]).mT
            read = torch.einsum("ipd,hed->iphe", standard, matrices)
            along = torch.linalg.vecdot(here[name], read)
            back = norm.backward_heads(here[name], along, matrices)
            here[f"{name}_in"] = back.permute(1, 2, 0, 3)
        heads = sum(here[f"{name}_in"].sum(2) for name in ("q", "k", "v"))
        here["mlp_in"] = here["resid_pre"] - heads - here["resid_post"]

    def _named(self) -> list[str]:
        named = [name for name in self.plan.gradients if name not in _READERS]
        if len(named) < len(self.plan.gradients):
            named += ["resid_pre", "q", "k", "v", "resid_post"]
        return list(dict.fromkeys(named))


def _places(weights: Weights, names: Iterable[str]) -> list[tuple[str, int]]:
    names = list(names)
    return [(name, layer) for layer in range(weights.n_layers) for name in names]


def _forward(
    weights: Weights,
    tokens: Tensor,
    places: list[tuple[str, int]],
    read: list[int],
    resid: Tensor | None,
) -> tuple[Tensor, Places]:
    """Final streams at the positions read, and activations; from `resid` on if it is given."""
    seen: Places = {}
    final: list[Tensor] = []

    def note(place: tuple[str, int]) -> Any:
        def hook(x: Tensor, hook: Any = None) -> Tensor:
            # A clone goes on: hook points may show what the model itself does not go on with.
            seen[place] = x.clone()
            return seen[place]

        return hook

    def enter(_x: Tensor, hook: Any = None) -> Tensor | None:
        return None if resid is None else resid.clone()

    def leave(x: Tensor, hook: Any = None) -> None:
        final.append(x[:, read])

    ends = ("resid_pre", 0), ("resid_post", weights.n_layers - 1)
    hooks: list[tuple[str, Any]] = [(Site(*ends[0]).hook_name, enter)]
    hooks += [(Site(*place).hook_name, note(place)) for place in dict.fromkeys(places)]
    hooks.append((Site(*ends[1]).hook_name, leave))
    weights.model.run_with_hooks(tokens, return_type=None, fwd_hooks=hooks)
    return final[0], seen
