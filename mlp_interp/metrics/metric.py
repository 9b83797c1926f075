"""Metrics: one number per prompt, read from the logits at the positions that the metric names.

A metric says what it reads, so that an engine can leave the rest out: a logit difference at the
last position needs one stream and two columns of the unembedding, not fifty thousand logits at
every position.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.metrics.change import LogitChange, rows_for
from mlp_interp.metrics.divergence import kl_from_change
from mlp_interp.models import Weights
from mlp_interp.models.protocol import Model
from mlp_interp.models.unembed import Unembed, capped, capped_change, directions

__all__ = ["KL", "Continuation", "Custom", "Linear", "Metric", "Reader"]

Reader = Callable[[Tensor, Tensor], Tensor]
"""From final streams ``[item, read, d_model]`` at the metric's positions, and the prompt of each
item ``[item]``, to one number an item ``[item]``. Gradients pass through it."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What all metrics have: a name, a unit, and the positions that they read.

    Attributes:
        name: How a result calls it.
        unit: ``"logits"``, ``"nats"`` or ``"probability"``.
        positions: Which positions are read; negative counts from the end.
    """

    name: str
    unit: str
    positions: tuple[int, ...] = (-1,)

    @property
    def following(self) -> tuple[tuple[int, ...], ...] | None:
        """Tokens by prompt after which it is read, to be run with it; None for the prompts' own."""
        return None

    def reader(self, model: Model, reference: Float[Tensor, "prompt read d_model"]) -> Reader:
        """Prepare to read the metric from final streams of this model.

        Args:
            model: The model.
            reference: Final streams of the clean run at the metric's positions.
        """
        raise TypeError(f"{type(self).__name__} is no metric by itself; use one of its subclasses")

    def read(self, length: int) -> list[int]:
        """The positions in prompts of `length` tokens, counted from 0.

        Raises:
            ValueError: One lies outside the prompts or is named twice, or there is none.
        """
        if not self.positions or any(not -length <= p < length for p in self.positions):
            raise ValueError(
                f"metric {self.name!r} reads positions={self.positions}; wanted some from "
                f"{-length} to {length - 1}"
            )
        found = [p % length for p in self.positions]
        if len(set(found)) < len(found):
            raise ValueError(
                f"metric {self.name!r} reads positions={self.positions} of {length}, some of them "
                "twice; wanted each once"
            )
        return found

    def of_prompts(self, rows: Sequence[int]) -> "Metric":
        """The metric of some of the prompts, in any order, counted anew from 0."""
        return self

    def check_prompts(self, prompts: int) -> None:
        """Refuse a batch of another size than the metric was made for.

        Raises:
            ValueError: The metric names tokens for another number of prompts.
        """


@dataclass(frozen=True, kw_only=True)
class Linear(Metric):
    """A weighted sum of logits, ``sum_k coefficients_k logit(tokens_k)``, at one position.

    Attributes:
        tokens: Token ids, ``[prompt, k]``.
        coefficients: Their weights.
    """

    tokens: Int[Tensor, "prompt k"]
    coefficients: tuple[float, ...]

    def reader(self, model: Model, reference: Float[Tensor, "prompt read d_model"]) -> Reader:
        """Two dot products an item: the directions are folded into one per prompt."""
        weights = Weights.of(model)
        norm = weights.final_norm
        columns, biases = directions(weights, self.tokens)
        coefficients = columns.new_tensor(self.coefficients)
        cap = weights.cap

        def read_capped(streams: Tensor, prompts: Tensor) -> Tensor:
            normalized = norm.standardize(streams[:, 0])
            logits = torch.einsum("id,ikd->ik", normalized, columns[prompts]) + biases[prompts]
            return capped(logits, cap) @ coefficients

        if cap is not None:
            return read_capped
        direction = torch.einsum("pkd,k->pd", columns, coefficients)
        bias = biases @ coefficients

        def read(streams: Tensor, prompts: Tensor) -> Tensor:
            return (norm.standardize(streams[:, 0]) * direction[prompts]).sum(-1) + bias[prompts]

        return read

    def of_prompts(self, rows: Sequence[int]) -> "Linear":
        """As `Metric.of_prompts`."""
        return replace(self, tokens=self.tokens[list(rows)])

    def check_prompts(self, prompts: int) -> None:
        """As `Metric.check_prompts`."""
        _check_rows(self.name, self.tokens, prompts)


@dataclass(frozen=True, kw_only=True)
class Custom(Metric):
    """Any function of the logits at the positions read.

    Attributes:
        function: From logits ``[item, read, d_vocab]`` and the prompt of each item ``[item]`` to
            one number an item. It sees as many items at a time as the memory allows.
        tokens: Token ids by prompt that the function uses, if any; only their number is checked.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    tokens: Tensor | None = field(default=None)

    def reader(self, model: Model, reference: Float[Tensor, "prompt read d_model"]) -> Reader:
        """Unembeds the positions read, some items at a time."""
        unembed = Unembed.of(model)

        def read(streams: Tensor, prompts: Tensor) -> Tensor:
            return self._values(unembed.logits(streams), prompts)

        return _in_pieces(read, unembed, len(self.positions))

    def _values(self, logits: Tensor, prompts: Tensor) -> Tensor:
        values = self.function(logits, prompts)
        if values.shape != prompts.shape:
            raise ValueError(
                f"metric {self.name!r} gave shape {tuple(values.shape)} for logits "
                f"{tuple(logits.shape)}; wanted one number an item, {tuple(prompts.shape)}"
            )
        return values

    def of_prompts(self, rows: Sequence[int]) -> "Custom":
        """As `Metric.of_prompts`; the function goes on to see the prompts' own numbers."""
        return replace(
            self,
            function=_OfPrompts(self.function, torch.tensor(list(rows))),
            tokens=None if self.tokens is None else self.tokens[list(rows)],
        )

    def check_prompts(self, prompts: int) -> None:
        """As `Metric.check_prompts`."""
        if self.tokens is not None:
            _check_rows(self.name, self.tokens, prompts)


@dataclass(frozen=True, eq=False)
class _OfPrompts:
    """A custom metric's function, called with the numbers that its prompts have in the whole."""

    function: Callable[[Tensor, Tensor], Tensor]
    numbers: Int[Tensor, " row"]

    def __call__(self, logits: Tensor, prompts: Tensor) -> Tensor:
        return self.function(logits, self.numbers.to(prompts.device)[prompts])


@dataclass(frozen=True, kw_only=True)
class Continuation(Metric):
    """Log-probability of several tokens after each prompt, each given those before it.

    The prompts are run with these tokens after them, all but the last of them; it is read where
    each is predicted. After shorter continuations fewer positions are read.

    Attributes:
        continuations: Token ids by prompt, at least one each.
        positions: The last ones, as many as the longest has tokens: they cannot be chosen.
    """

    continuations: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.continuations or not all(self.continuations):
            raise ValueError(
                f"continuations={self.continuations}; wanted at least one token for each prompt"
            )
        longest = max(map(len, self.continuations))
        object.__setattr__(self, "positions", tuple(range(-longest, 0)))

    @property
    def following(self) -> tuple[tuple[int, ...], ...]:
        """The continuations."""
        return self.continuations

    def reader(self, model: Model, reference: Float[Tensor, "prompt read d_model"]) -> Reader:
        """Unembeds the positions read, some items at a time."""
        unembed, size = Unembed.of(model), len(self.positions)
        rows = [[-1] * (size - len(some)) + list(some) for some in self.continuations]
        tokens = torch.tensor(rows, device=reference.device)

        def read(streams: Tensor, prompts: Tensor) -> Tensor:
            wanted = tokens[prompts]
            log_probs = unembed.logits(streams).log_softmax(-1)
            chosen = log_probs.gather(-1, wanted.clamp(min=0)[..., None])[..., 0]
            return chosen.masked_fill(wanted < 0, 0.0).sum(-1)

        return _in_pieces(read, unembed, size)

    def of_prompts(self, rows: Sequence[int]) -> "Continuation":
        """As `Metric.of_prompts`."""
        return replace(self, continuations=tuple(self.continuations[row] for row in rows))

    def check_prompts(self, prompts: int) -> None:
        """As `Metric.check_prompts`."""
        _check_rows(self.name, self.continuations, prompts)


@dataclass(frozen=True, kw_only=True)
class KL(Metric):
    """KL(clean || run) at the positions read, averaged over them: from the change of the logits."""

    def reader(self, model: Model, reference: Float[Tensor, "prompt read d_model"]) -> Reader:
        """Keeps the clean logits, and unembeds only changes of the normalised stream."""
        unembed = Unembed.of(model)
        normalized = unembed.normalize(reference)
        prompts, reads = normalized.shape[:2]
        row_of = torch.arange(prompts * reads, device=normalized.device).view(prompts, reads)
        clean = LogitChange.of(
            unembed, normalized.flatten(0, 1), torch.full_like(row_of, -1).flatten()
        )

        def differentiable(change: Tensor, rows: Tensor) -> Tensor:
            logits, total = clean.logits[rows], clean.total[rows]
            p = (logits - total).exp()
            if unembed.cap is None:
                mean = (change * clean.expected[rows]).sum(-1, keepdim=True)
                t = change @ unembed.weight - mean
            else:
                t = capped_change(logits, change @ unembed.weight, unembed.cap)
                t = t - (p * t).sum(-1, keepdim=True)
            return kl_from_change(p, t, logits=logits)

        in_pieces = _in_pieces(differentiable, unembed, reads)

        def read(streams: Tensor, prompts: Tensor) -> Tensor:
            change, rows = unembed.normalize(streams) - normalized[prompts], row_of[prompts]
            if change.requires_grad or unembed.cap is not None:
                return in_pieces(change, rows).mean(-1)
            return clean.kl(change.flatten(0, 1), rows.flatten()).view(rows.shape).mean(-1)

        return read


def _in_pieces(read: Reader, unembed: Unembed, positions: int) -> Reader:
    """The same, some items at a time, so that their logits stay within the memory."""
    together = max(1, rows_for(unembed) // positions)

    def read_in_pieces(streams: Tensor, prompts: Tensor) -> Tensor:
        pieces = zip(streams.split(together), prompts.split(together), strict=True)
        return torch.cat([read(some, which) for some, which in pieces])

    return read_in_pieces


def _check_rows(name: str, tokens: Tensor | Sequence[Any], prompts: int) -> None:
    if len(tokens) != prompts:
        raise ValueError(
            f"metric {name!r} names tokens for {len(tokens)} prompts; wanted {prompts}, one row a "
            "prompt"
        )
