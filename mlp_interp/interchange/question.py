"""A checked question about a contrast: which metric, which way, computed by what."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mlp_interp.interchange.pair import Direction, Pair, Reading
from mlp_interp.metrics import Metric, metric_for
from mlp_interp.models import Forward, HookForward, Weights, describe, forward_of
from mlp_interp.models.caches import check_cached
from mlp_interp.models.from_end import held_from_end
from mlp_interp.models.options import check_choice
from mlp_interp.models.protocol import Cache, Model
from mlp_interp.prompts import Contrast
from mlp_interp.results import strings
from mlp_interp.runs import Run
from mlp_interp.sites import Site

__all__ = ["Engine", "GivenRuns", "Question", "engine_of", "given_runs"]

Engine = Literal["auto", "hooks"]

GivenRuns = Sequence[Cache]
"""A clean and a corrupted run made before: `Run`s, or caches of the same model."""


def engine_of(model: Model, engine: str) -> Forward | HookForward:
    """The one choice of what computes: the lean forward where there is one, else hooks.

    Raises:
        ValueError: Another word, or a model that the package cannot read.
    """
    check_choice("engine", engine, get_args(Engine))
    return forward_of(model) if engine == "auto" else HookForward(Weights.of(model))


@dataclass(frozen=True, eq=False)
class Question:
    """What every analysis of two runs is asked, checked before anything is run.

    Attributes:
        forward: What computes.
        contrast: The prompts, on the model's device.
        metric: The metric of these prompts.
        direction: Which run is changed.
        memory: MiB that may be used on top of the two runs themselves.
        given: Clean and corrupted run, where they were made before.
        numbers: The number that each prompt has in the whole contrast.
    """

    forward: Forward | HookForward
    contrast: Contrast
    metric: Metric
    direction: Direction
    memory: float
    given: tuple[Run, Run] | None = None
    numbers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.numbers:
            object.__setattr__(self, "numbers", tuple(range(len(self.contrast))))

    @classmethod
    def of(
        cls,
        model: Model,
        contrast: Any,
        metric: Any,
        *,
        direction: Any = "denoising",
        engine: str = "auto",
        memory: float | int = 512.0,
        runs: Any = None,
    ) -> "Question":
        """Check the arguments that all analyses share.

        Raises:
            ValueError: One of them does not fit the model or the others.
        """
        if not isinstance(contrast, Contrast):
            raise ValueError(
                f"contrast={type(contrast).__name__}; wanted the pairs of a Contrast: "
                "Contrast.of(model, clean, corrupted, answers, foils), of texts or tokens, or a "
                "task such as prompts.ioi(model)"
            )
        check_choice("direction", direction, get_args(Direction))
        if not 0 < memory < inf:
            raise ValueError(f"memory={memory}; wanted a number of MiB above 0, and finite")
        forward = engine_of(model, engine)
        weights = forward.weights
        contrast = replace(
            contrast.to(weights.device),
            clean_tokens=weights.checked(contrast.clean_tokens),
            corrupted_tokens=weights.checked(contrast.corrupted_tokens),
        )
        chosen = metric_for(metric, contrast)
        if chosen.following is not None:
            contrast = contrast.followed_by(chosen.following)
        for rows, part in contrast.by_length():
            read = chosen.of_prompts(rows).read(part.length)  # refuses those that prompts lack
            if max(read) + 1 < part.length and (held := held_from_end(forward.weights.model)):
                raise ValueError(
                    f"metric reads up to position {max(read)} of {part.length}, and nothing is run "
                    f"beyond; the edit at {held[0]}, held by steer, would count from there: wanted "
                    "a metric at the last position, or positions of the edit from 0"
                )
        given = None
        if runs is not None:
            sides = contrast.clean_tokens, contrast.corrupted_tokens
            given = given_runs(forward, runs, *sides, real=contrast.real)
        return cls(forward, contrast, chosen, direction, float(memory), given)

    @property
    def weights(self) -> Weights:
        """The model's weights."""
        return self.forward.weights

    @property
    def read(self) -> list[int]:
        """The positions that the metric reads, in ascending order; of the longest prompts."""
        return sorted(self.metric.read(self.contrast.length))

    @property
    def length(self) -> int:
        """How many positions are run: nothing after the last that is read can matter to it."""
        return self.read[-1] + 1

    def tokens(self) -> tuple[Int[Tensor, "prompt pos"], Int[Tensor, "prompt pos"]]:
        """Clean and corrupted tokens up to the last position that is read.

        Raises:
            ValueError: The prompts are not of one length.
        """
        self._check_one_length()
        contrast, length = self.contrast, self.length
        return contrast.clean_tokens[:, :length], contrast.corrupted_tokens[:, :length]

    def embedded(self) -> tuple[Float[Tensor, "prompt pos d"], Float[Tensor, "prompt pos d"]]:
        """The streams before the first block of both runs, up to the last position read.

        Raises:
            ValueError: The prompts are not of one length.
        """
        self._check_one_length()
        if self.given is not None:
            clean, corrupted = (run.streams[0][:, : self.length] for run in self.given)
            return clean, corrupted
        clean, corrupted = (self.forward.embed(tokens) for tokens in self.tokens())
        return clean, corrupted

    @torch.no_grad()
    def pair(self, sites: Sequence[Site] = ()) -> Pair:
        """Run both sides and keep what is at `sites`; or take the runs that were given.

        Raises:
            ValueError: A metric that is not finite; a given run that lacks one of the sites;
                prompts that are not of one length.
        """
        self._check_one_length()
        if self.given is None:
            clean, corrupted = (
                Run.record(self.forward, tokens, sites=sites, attention=True)
                for tokens in self.tokens()
            )
        else:
            clean, corrupted = (run.cut(length=self.length) for run in self.given)
            for name, run in (("clean", clean), ("corrupted", corrupted)):
                check_cached(run, sites, name=f"the {name} run")
        return Pair(clean, corrupted, self.reading(clean.final, corrupted.final), self.direction)

    def reading(
        self,
        clean: Float[Tensor, "prompt pos d_model"],
        corrupted: Float[Tensor, "prompt pos d_model"],
    ) -> Reading:
        """The metric, ready, from both runs' final streams at all positions that are run.

        Raises:
            ValueError: It is not finite.
        """
        return self.reading_at(clean[:, self.read], corrupted[:, self.read])

    def reading_at(
        self,
        clean: Float[Tensor, "prompt read d_model"],
        corrupted: Float[Tensor, "prompt read d_model"],
    ) -> Reading:
        """The same from the streams at the positions read alone."""
        model, length = self.weights.model, self.contrast.length
        return Reading.of(model, self.metric, length, clean, corrupted, numbers=self.numbers)

    def parts(self, size: int) -> Iterator["Question"]:
        """The same of some prompts at a time, all of one length.

        Shorter prompts come first; `lengths.in_order` puts what is found back into their order.
        """
        for rows, _ in self.contrast.by_length():
            for start in range(0, len(rows), size):
                yield self._of_prompts(rows[start : start + size])

    def by_length(self) -> list["Question"]:
        """The same of the prompts of each length by themselves: all of them where there is one."""
        if self.contrast.lengths is None:
            return [self]
        return list(self.parts(len(self.contrast)))

    def _of_prompts(self, rows: list[int]) -> "Question":
        contrast = self.contrast[rows]
        first, stop = rows[0], rows[-1] + 1
        # A slice where it can be one: a list would copy what was given.
        some = slice(first, stop) if rows == list(range(first, stop)) else rows
        given = self.given and tuple(
            run.cut(rows=some, length=contrast.length) for run in self.given
        )
        return replace(
            self,
            contrast=contrast,
            metric=self.metric.of_prompts(rows),
            given=given,
            numbers=tuple(self.numbers[row] for row in rows),
        )

    def _check_one_length(self) -> None:
        if self.contrast.lengths is not None:
            raise ValueError(
                f"contrast has prompts of {self.contrast.length_text} tokens; wanted one length: "
                "ask each of question.by_length(), and put what they give together with merged"
            )

    def coords(self, positions: Sequence[int] | None = None) -> dict[str, Any]:
        """Coordinates of prompts, and of positions where there are some."""
        contrast = self.contrast
        coords: dict[str, Any] = {
            "prompt": np.array(self.numbers),
            "answer": ("prompt", contrast.answer_text),
            "foil": ("prompt", contrast.foil_text),
        }
        if positions is None:
            return coords
        where = list(positions)
        coords["pos"] = np.array(where)
        for name in ("clean", "corrupted"):
            texts = [
                [*row, *[""] * (contrast.length - len(row))] for row in contrast.token_text(name)
            ]
            coords[f"{name}_token"] = (("prompt", "pos"), strings(texts)[:, where])
        if len(contrast) == 1:
            coords["token"] = ("pos", coords["clean_token"][1][0])
        return coords

    def attrs(self, *, directed: bool = True) -> dict[str, Any]:
        """Where the numbers come from, as every result says it.

        Args:
            directed: Whether one of the two runs was changed into the other.
        """
        direction = {"direction": self.direction} if directed else {}
        return {
            **self.contrast.attrs,
            **describe(self.weights.model),
            "engine": self.forward.engine,
            "metric": self.metric.name,
            "unit": self.metric.unit,
            "exact": 1,
            **direction,
        }


def given_runs(
    forward: Forward | HookForward,
    runs: Any,
    clean: Int[Tensor, "prompt pos"],
    corrupted: Int[Tensor, "row pos"],
    *,
    embedded: bool = False,
    real: Bool[Tensor, "prompt pos"] | None = None,
) -> tuple[Run, Run]:
    """Clean and corrupted run as the user gave them, checked against what should have been run.

    Args:
        forward: What goes on from them.
        runs: Runs or caches, the clean one first.
        clean: Its tokens.
        corrupted: Those of the other.
        embedded: The embeddings of the other may differ from its tokens' own, in every row anew.
        real: Where the tokens are no padding, of which nothing is asked; None for everywhere.

    Raises:
        ValueError: They are not two, are of other tokens, or were edited.
    """
    if not isinstance(runs, tuple | list) or len(runs) != 2:
        raise ValueError(f"runs={type(runs).__name__}; wanted the pair (clean, corrupted)")
    model, taken = forward.weights.model, []
    for number, tokens in enumerate((clean, corrupted)):
        noisy = embedded and number == 1
        own = Run.of_cache(model, runs[number], tokens=tokens if noisy else None)
        run = replace(own, forward=forward)
        tokens = tokens.expand(run.batch, -1) if noisy else tokens
        there = torch.ones_like(tokens, dtype=torch.bool) if real is None else real
        if run.tokens.shape != tokens.shape or bool((run.tokens != tokens)[there].any()):
            name = ("clean", "corrupted")[number]
            raise ValueError(
                f"runs[{number}] is of other tokens {tuple(run.tokens.shape)} than the prompts' "
                f"{name} ones {tuple(tokens.shape)}; wanted the run of those"
            )
        later = [edit for edit in run.edits if not noisy or edit.site.name != "embed"]
        if later:
            raise ValueError(
                f"runs[{number}] has {len(later)} edits in force, which later passes would not "
                "repeat; wanted a run without (Edit.replace takes activations of edited runs)"
            )
        run.check_repeats(f"runs[{number}]")
        taken.append(run)
    return taken[0], taken[1]
