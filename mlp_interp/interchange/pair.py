"""Two runs of the same prompts, one to be changed toward the other, and the metric on them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.metrics import Metric, Reader, finite, normalized
from mlp_interp.models.protocol import Model
from mlp_interp.runs import Run

__all__ = ["Direction", "Pair", "Reading"]

Direction = Literal["denoising", "noising"]


@dataclass(frozen=True, eq=False)
class Reading:
    """A metric ready to be read from final streams, and its values on both runs.

    Attributes:
        metric: The metric.
        read: Positions of the streams that it is given, counted from 0, in order.
        reader: Takes the streams at the metric's own positions, in the metric's order.
        order: Which of `read` those are.
        clean: The metric after the clean prompts.
        corrupted: The metric after the corrupted ones.
        numbers: The number that each prompt has in the whole contrast.
    """

    metric: Metric
    read: list[int]
    reader: Reader
    order: list[int]
    clean: Float[Tensor, " clean_prompt"]
    corrupted: Float[Tensor, " prompt"]
    numbers: tuple[int, ...]

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        model: Model,
        metric: Metric,
        length: int,
        clean: Float[Tensor, "clean_prompt read d_model"],
        corrupted: Float[Tensor, "prompt read d_model"],
        *,
        numbers: Sequence[int] | None = None,
    ) -> "Reading":
        """Prepare a metric and read it from both runs.

        Args:
            model: The model.
            metric: The metric of these prompts.
            length: Positions in a prompt.
            clean: Final streams of the clean run at the metric's positions, in ascending order.
            corrupted: The same of the corrupted run.
            numbers: The number that each prompt has in the whole contrast; None counts from 0.

        Raises:
            ValueError: The metric is NaN or infinite on one of them.
        """
        own = metric.read(length)
        read = sorted(own)
        order = [read.index(position) for position in own]
        reader = metric.reader(model, clean[:, order])
        values = {}
        for name, streams in (("clean", clean), ("corrupted", corrupted)):
            prompts = torch.arange(len(streams), device=streams.device)
            found = reader(streams[:, order], prompts)
            values[name] = finite(metric, name, found, numbers=numbers)
        numbered = tuple(range(len(corrupted)) if numbers is None else numbers)
        return cls(metric, read, reader, order, values["clean"], values["corrupted"], numbered)

    def __call__(
        self, streams: Float[Tensor, "item read d_model"], prompts: Int[Tensor, " item"]
    ) -> Float[Tensor, " item"]:
        """The metric of each item, from its final stream at `read` and the prompt that it is of."""
        return self.reader(streams[:, self.order], prompts)

    def gradient(
        self,
        streams: Float[Tensor, "item read d_model"],
        prompts: Int[Tensor, " item"],
        weights: Float[Tensor, " item"],
    ) -> Float[Tensor, "item read d_model"]:
        """Gradient of each item's metric times its weight with respect to its streams."""
        with torch.enable_grad():
            leaf = streams.detach().requires_grad_()
            values = self(leaf, prompts)
            if not values.requires_grad:
                raise ValueError(
                    f"metric={self.metric.name!r} has no gradient, as where it counts, compares or "
                    "detaches; wanted one that changes smoothly with the logits, or patch and "
                    "path_patch, which need no gradient"
                )
            return torch.autograd.grad((values * weights).sum(), leaf)[0]

    def normalized(self, values: Float[Tensor, "*cells prompt"]) -> Float[Tensor, "*cells prompt"]:
        """0 where the metric is the corrupted run's, 1 where it is the clean run's."""
        return normalized(values, self.clean, self.corrupted)


@dataclass(frozen=True, eq=False)
class Pair:
    """A clean and a corrupted run of the same prompts.

    Attributes:
        clean: The clean run: of as many prompts as the corrupted one, or of one for all.
        corrupted: The corrupted run.
        reading: The metric, and its values on both.
        direction: ``"denoising"`` puts the clean run's activations into the corrupted one,
            ``"noising"`` the reverse.
    """

    clean: Run
    corrupted: Run
    reading: Reading
    direction: Direction = "denoising"

    @property
    def base(self) -> Run:
        """The run that is changed."""
        return self.corrupted if self.direction == "denoising" else self.clean

    @property
    def source(self) -> Run:
        """The run whose activations are put in."""
        return self.clean if self.direction == "denoising" else self.corrupted

    @property
    def base_value(self) -> Float[Tensor, " prompt"]:
        """The metric of the base run."""
        reading = self.reading
        return reading.corrupted if self.direction == "denoising" else reading.clean

    @property
    def source_value(self) -> Float[Tensor, " prompt"]:
        """The metric of the source run."""
        reading = self.reading
        return reading.clean if self.direction == "denoising" else reading.corrupted

    @cached_property
    def prompts(self) -> Int[Tensor, " prompt"]:
        """All prompts."""
        return torch.arange(self.base.batch, device=self.base.final.device)

    @property
    def measured(self) -> Callable[[Tensor], Tensor]:
        """From final streams ``[prompt, pos, d_model]`` to the metric of all prompts."""
        return lambda final: self.reading(final[:, self.reading.read], self.prompts)
