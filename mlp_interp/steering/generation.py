"""Texts continued with edits or without, each from a seed of its own."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mlp_interp.edits import Edit, edits_of
from mlp_interp.edits.applying import Applier, check_where, confined
from mlp_interp.models import Weights
from mlp_interp.models.indices import count
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.texts import Texts
from mlp_interp.prompts.tokenizing import decode
from mlp_interp.runs import Runner
from mlp_interp.runs.generation import Sampling, check_room, end_token

__all__ = [
    "GREEDY",
    "Continued",
    "Continuing",
    "Eos",
    "GenerationOptions",
    "check_edits",
    "text_of",
]

Eos = int | Literal["model"] | None


@dataclass(frozen=True)
class Continued:
    """What was added to prompts.

    Attributes:
        tokens: New token ids ``[prompt, sample, new]``; after the end -1.
        length: How many tokens each text has, with the one that ended it, ``[prompt, sample]``.
    """

    tokens: np.ndarray
    length: np.ndarray


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How texts are continued: how many, how long, by which draws.

    Args:
        n: Texts for each prompt; more than one wants a temperature.
        max_new_tokens: New tokens of each text at most.
        temperature: 0 takes the likeliest token; else what logits are divided by.
        top_k: Draw among the so many likeliest only; None for all.
        seed: Of the draws, from 0.
        eos: The token that ends a text: ``"model"`` for the tokenizer's, None for no end.
        where: ``"prompt"`` and ``"new"`` keep edits without positions of their own to the prompt,
            or to new tokens that are read; ``"all"`` does neither.

    Raises:
        ValueError: One of them is out of range, or several texts are to be drawn at temperature 0.

    Example:
        >>> GenerationOptions(n=3)
        Traceback (most recent call last):
        ValueError: n=3 with temperature=0, where all samples are the same; wanted n=1 or ...
    """

    n: int = 1
    max_new_tokens: int = 20
    temperature: float | int = 0.0
    top_k: int | None = None
    seed: Any = 0
    eos: Eos = "model"
    where: Any = "all"

    def __post_init__(self) -> None:
        if not isinstance(self.seed, Integral):
            raise ValueError(f"seed={self.seed!r}; wanted an integer from 0")
        object.__setattr__(self, "seed", int(self.seed))  # numpy's would give other texts
        Sampling(self.temperature, self.top_k, self.seed, 1)
        check_where(self.where)
        for name in ("n", "max_new_tokens"):
            object.__setattr__(self, name, count(name, getattr(self, name)))
        if self.n > 1 and self.temperature == 0:
            raise ValueError(
                f"n={self.n} with temperature=0, where all samples are the same; wanted n=1 or a "
                "temperature above 0"
            )

    def end(self, model: Model) -> int | None:
        """The token that ends a text of this model."""
        return end_token(model, self.eos, len(Weights.of(model).W_E))


GREEDY = GenerationOptions()
"""One text for each prompt, the likeliest token at each step."""


@dataclass(frozen=True)
class Continuing:
    """Texts continued by some options, so many at once.

    Raises:
        ValueError: The batch size is below 1.
    """

    options: GenerationOptions
    batch_size: int

    def __post_init__(self) -> None:
        count("batch_size", self.batch_size)

    def seeds(self, texts: Texts) -> list[list[int]]:
        """A seed for every prompt and sample.

        It depends on the prompt itself, not on its place among others. Where a prompt comes
        several times, each time has other seeds.
        """
        seen: Counter[tuple[int, ...]] = Counter()
        seeds = []
        for row in texts.rows:
            keys = [(self.options.seed, seen[row], sample, row) for sample in range(self.options.n)]
            seeds.append([_digest(key) for key in keys])
            seen[row] += 1
        return seeds

    def batches(self, texts: Texts) -> list[list[tuple[int, int]]]:
        """Which prompts and samples run at once: prompts of one length."""
        batches = []
        for part, _, _ in texts.batches(len(texts)):
            pairs = [(prompt, sample) for prompt in part for sample in range(self.options.n)]
            size = self.batch_size
            batches += [pairs[start : start + size] for start in range(0, len(pairs), size)]
        return batches

    def run(
        self,
        runner: Runner,
        texts: Texts,
        pairs: Sequence[tuple[int, int]],
        seeds: Sequence[Sequence[int]],
        edits: Sequence[Edit],
    ) -> Tensor:
        """New tokens ``[pair, new]`` of one batch; -1 after the end."""
        rows = torch.tensor([texts.rows[prompt] for prompt, _ in pairs])
        new = runner.generate(
            rows.to(runner.weights.device),
            edits=edits,
            where=self.options.where,
            max_new_tokens=self.options.max_new_tokens,
            temperature=self.options.temperature,
            top_k=self.options.top_k,
            seed=[seeds[prompt][sample] for prompt, sample in pairs],
            eos=self.options.eos,
        ).new.cpu()
        tokens = torch.full((len(pairs), self.options.max_new_tokens), -1)
        tokens[:, : new.shape[1]] = new
        end = self.options.end(runner.weights.model)
        if end is not None:
            ended = (tokens == end).cumsum(1) - (tokens == end).long() > 0
            tokens[ended] = -1
        return tokens

    def gathered(self, texts: Texts, pieces: Sequence[Tensor]) -> Continued:
        """The texts of all batches."""
        tokens = np.full((len(texts), self.options.n, self.options.max_new_tokens), -1)
        for pairs, piece in zip(self.batches(texts), pieces, strict=True):
            for (prompt, sample), row in zip(pairs, piece.numpy(), strict=True):
                tokens[prompt, sample] = row
        return Continued(tokens, (tokens >= 0).sum(-1))

    def all(self, runner: Runner, texts: Texts, edits: Sequence[Edit]) -> Continued:
        """Continue all prompts."""
        seeds = self.seeds(texts)
        batches = self.batches(texts)
        return self.gathered(texts, [self.run(runner, texts, b, seeds, edits) for b in batches])

    def check(self, weights: Weights, texts: Texts, edits: Sequence[Edit]) -> None:
        """Refuse what some prompt has no room for, and edits that do not fit.

        Raises:
            ValueError: Naming what does not fit.
        """
        longest, new = max(map(len, texts.rows)), self.options.max_new_tokens
        check_room(longest, new, int(weights.model.cfg.n_ctx))
        self.options.end(weights.model)  # refuses what is no token
        if self.options.where == "new" and new == 1:
            raise ValueError(
                "max_new_tokens=1 with where='new', where no new token is read; wanted at least 2"
            )
        for length in sorted({len(row) for row in texts.rows}):
            last = length + new - 1
            placed = [confined(edit, self.options.where, length, last) for edit in edits]
            Applier(placed, weights, (1, length), longest=last)


def check_edits(edits: Any) -> tuple[Edit, ...]:
    """One or several edits, none of which has values of its own for each prompt.

    Raises:
        ValueError: There are none, one is no edit, or its value has an axis of prompts.
    """
    listed = edits_of(edits)
    if not listed:
        raise ValueError("edits is empty; wanted at least one edit to compare with none")
    for n, edit in enumerate(listed):
        if edit.prompts > 1:
            raise ValueError(
                f"edits[{n}] at {edit.site.label!r} has values for {edit.prompts} prompts; "
                "wanted the same for all, because prompts are run in groups"
            )
    return listed


def text_of(tokenizer: Any, ids: Iterable[Any], *, end: int | None = None) -> str:
    """Tokens as text, without what ended it and what comes after."""
    tokens = [int(token) for token in ids if token >= 0]
    if end is not None and tokens and tokens[-1] == end:
        tokens.pop()
    return decode(tokenizer, tokens)


def _digest(key: tuple[Any, ...]) -> int:
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:7], "big")
