"""Discrete search over tokens, one position at a time."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.models import Forward
from mlp_interp.neurons.inputs.space import Space
from mlp_interp.neurons.inputs.target import AscentTarget

__all__ = ["Search"]

_GUIDED = 0.75
"""Share of the candidates that the gradient proposes: for large changes it is a rough guide."""


@dataclass(frozen=True)
class Search:
    """Coordinate search: at each step the best of some candidates for one position.

    Attributes:
        target: What is climbed.
        space: Where the tokens come from.
        steps: How many steps, at most.
        candidates: How many tokens to try at a step; None for the whole vocabulary.
        batch_size: Texts in a forward pass.
        seed: Of the order of positions and of random candidates.
    """

    target: AscentTarget
    space: Space
    steps: int
    candidates: int | None
    batch_size: int
    seed: int

    def climb(
        self, indices: Int[Tensor, "restart pos"]
    ) -> tuple[Int[Tensor, "restart pos"], Float[Tensor, "restart step"]]:
        """Climb from some texts (indices of the vocabulary), each by itself.

        With all of the vocabulary as candidates it ends where no single token could be better.

        Returns:
            The best texts, and the score after every step, which never falls.
        """
        generator = torch.Generator().manual_seed(self.seed)
        indices, length = indices.clone(), indices.shape[1]
        score = self._score(indices)
        trace, order, idle = [score], [], 0
        for _ in range(self.steps):
            order = order or torch.randperm(length, generator=generator).tolist()
            position = order.pop()
            tried = self._candidates(indices, position, generator)
            token, best = self._best(indices, position, tried)
            better = best > score
            indices[better, position] = token[better]
            score = torch.where(better, best, score)
            trace.append(score)
            idle = 0 if better.any() else idle + 1
            # Positions that brought nothing since the last change, the last sweep's among them,
            # are all of them only after two sweeps, as each has an order of its own.
            if self.candidates is None and idle >= 2 * length - 1:
                break
        return indices, torch.stack(trace, 1)

    def _score(self, indices: Int[Tensor, "row pos"]) -> Float[Tensor, " row"]:
        texts = self.space.texts(indices)
        return self.target.of_tokens(texts, batch_size=self.batch_size)[1].cpu()

    def _best(
        self,
        indices: Int[Tensor, "restart pos"],
        position: int,
        tried: Int[Tensor, "restart candidate"],
    ) -> tuple[Int[Tensor, " restart"], Float[Tensor, " restart"]]:
        texts = indices[:, None].repeat(1, tried.shape[1], 1)
        texts[:, :, position] = tried
        scores = self._score(texts.flatten(0, 1)).view(tried.shape)
        best, at = scores.max(-1)
        return tried.gather(1, at[:, None])[:, 0], best

    def _candidates(
        self, indices: Int[Tensor, "restart pos"], position: int, generator: torch.Generator
    ) -> Int[Tensor, "restart candidate"]:
        size, rows = len(self.space.vocabulary), len(indices)
        if self.candidates is None or self.candidates >= size:
            return torch.arange(size).expand(rows, -1)
        guided = 0
        if isinstance(self.target.forward, Forward):
            guided = round(_GUIDED * self.candidates)
        drawn = torch.randint(size, (rows, self.candidates - guided), generator=generator)
        if not guided:
            return drawn
        return torch.cat((self._gains(indices, position).topk(guided).indices, drawn), 1)

    def _gains(
        self, indices: Int[Tensor, "restart pos"], position: int
    ) -> Float[Tensor, "restart token"]:
        """First-order guess of the score with each token of the vocabulary at one position."""
        forward = self.target.forward
        with torch.enable_grad():
            stream = forward.embed(self.space.texts(indices)).requires_grad_()
            (gradient,) = torch.autograd.grad(self.target(stream)[1].sum(), stream)
        at = self.space.prompt.shape[1] + position
        return (gradient[:, at].to(self.space.rows.dtype) @ self.space.rows.T).cpu()
