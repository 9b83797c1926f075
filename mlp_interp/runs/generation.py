"""Continuing texts with edits held on."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.edits.applying import Applier, Fired, check_where, confined
from mlp_interp.edits.edit import Edit, edits_of
from mlp_interp.models import Forward, HookForward
from mlp_interp.models.forward import KVCache
from mlp_interp.models.indices import count
from mlp_interp.models.options import checked_number
from mlp_interp.models.protocol import Model
from mlp_interp.models.reached import check_reached
from mlp_interp.models.stream import check_stream
from mlp_interp.models.unembed import Unembed

__all__ = ["Generation", "Sampling", "check_room", "end_token", "generate", "generating"]

_generating: ContextVar[bool] = ContextVar("generating", default=False)


@dataclass(frozen=True)
class Generation:
    """Texts that a model continued.

    Attributes:
        tokens: Prompts and what was added to them. A text that ended early is filled up with the
            token that ended it.
        prompt: How many of the positions were given.
        fired: What each edit did, in the order given. One on positions that the text did not reach
            because it ended fired no times.
    """

    tokens: Int[Tensor, "batch pos"]
    prompt: int
    fired: tuple[Fired, ...]

    @property
    def new(self) -> Int[Tensor, "batch new"]:
        """What was added."""
        return self.tokens[:, self.prompt :]


class Sampling:
    """How a next token is chosen from logits.

    Each row draws from a stream of random numbers of its own. The stream goes on by as much at
    every step, so that two texts with one seed meet the same numbers at the same step, whatever
    their edits, and whatever is run beside them.

    Args:
        temperature: 0 for the most likely one; else what logits are divided by.
        top_k: How many of the most likely tokens to draw from; None for all.
        seed: Of the draws: one for all rows, which differ by their place, or one for each row,
            which draws as if it were the first.
        rows: How many rows there will be.

    Raises:
        ValueError: One of them is out of range.
    """

    def __init__(self, temperature: float | int, top_k: Any, seed: Any, rows: int) -> None:
        """Check the options."""
        good = "a number from 0"
        temperature = checked_number("temperature", temperature, lambda x: 0 <= x < np.inf, good)
        if top_k is not None:
            top_k = count("top_k", top_k, hint=", or None")
        pairs = _seeds(seed, rows)
        self._temperature, self._top_k = temperature, top_k
        self._generators = [_stream(*pair) for pair in pairs] if temperature else []

    def __call__(self, logits: Float[Tensor, "batch d_vocab"]) -> Int[Tensor, "batch 1"]:
        """One token for each row."""
        if self._temperature == 0:
            return logits.argmax(-1, keepdim=True)
        # On the processor and in float64, so that a seed gives the same text on every device.
        scores = logits.double().cpu() / self._temperature
        if self._top_k is not None and self._top_k < scores.shape[-1]:
            least = scores.topk(self._top_k).values[:, -1:]
            scores = scores.masked_fill(scores < least, -torch.inf)
        # Of exponential waiting times with rates p the shortest is that of token v with probability
        # p_v. And while two distributions are close, the same numbers mostly give the same token.
        waits = torch.empty_like(scores)
        for row, generator in zip(waits, self._generators, strict=True):
            row.exponential_(generator=generator)
        tiny = torch.finfo(waits.dtype).tiny
        return (scores - waits.clamp_min(tiny).log()).argmax(-1, keepdim=True).to(logits.device)


def _seeds(seed: Any, rows: int) -> list[tuple[int, int]]:
    """A seed and a number for each row."""
    seed = seed.tolist() if isinstance(seed, np.ndarray) else seed
    one = isinstance(seed, Integral)
    listed = list(seed) if isinstance(seed, Sequence) else [seed]
    if not all(isinstance(number, Integral) and int(number) >= 0 for number in listed):
        raise ValueError(f"seed={seed!r}; wanted integers from 0")
    if not one and len(listed) != rows:
        raise ValueError(f"seed has {len(listed)} entries for {rows} rows; wanted as many")
    return [(int(listed[0]), n) for n in range(rows)] if one else [(int(s), 0) for s in listed]


def _stream(seed: int, row: int) -> torch.Generator:
    words = np.random.SeedSequence([seed, row]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0] >> np.uint64(1)))


def generate(
    forward: Forward | HookForward,
    unembed: Unembed,
    tokens: Int[Tensor, "batch pos"],
    *,
    edits: Edit | Sequence[Edit],
    where: str,
    max_new_tokens: Any,
    sampling: Sampling,
    eos: int | Literal["model"] | None,
    use_cache: bool,
) -> Generation:
    """Continue prompts; see `Runner.generate`."""
    weights, edits = forward.weights, edits_of(edits)
    check_where(where)
    batch, prompt = tokens.shape
    check_room(prompt, max_new_tokens, int(weights.model.cfg.n_ctx))
    tokens = weights.checked(tokens)
    end = end_token(weights.model, eos, weights.W_E.shape[0])
    longest = prompt + max_new_tokens - 1  # the last new token is not read
    if where == "new" and longest == prompt:
        _check_new(edits)
    edits = [confined(edit, where, prompt, longest) for edit in edits]
    applier = Applier(edits, weights, (batch, prompt), longest=longest)
    if not isinstance(forward, Forward):
        check_reached(weights, (edit.site for edit in edits))
    step = _stepper(forward, applier, use_cache)
    ended = torch.zeros(batch, 1, dtype=torch.bool, device=tokens.device)
    for _ in range(max_new_tokens):
        with _marked():
            final = step(tokens)
        check_stream(final)
        new = sampling(unembed.logits(final))
        if end is not None:
            new = new.masked_fill(ended, end)
            ended = ended | (new == end)
        tokens = torch.cat((tokens, new), dim=1)
        if end is not None and ended.all():
            break
    return Generation(tokens, prompt, applier.fired)


def generating() -> bool:
    """Whether a pass is a step of `generate`, which hooks on the model cannot see."""
    return _generating.get()


@contextmanager
def _marked() -> Iterator[None]:
    before = _generating.set(True)
    try:
        yield
    finally:
        _generating.reset(before)


def _stepper(
    forward: Forward | HookForward, applier: Applier, use_cache: bool
) -> Callable[[Tensor], Tensor]:
    """From the text until now to the final stream at its last position."""
    patterns = applier.patterns

    def whole(tokens: Tensor) -> Tensor:
        embedded = forward.embed(tokens, observe=applier)
        return forward.run(embedded, observe=applier, patterns=patterns)[:, -1]

    if not (use_cache and isinstance(forward, Forward)):
        return whole
    kv_cache = KVCache()

    def onward(tokens: Tensor) -> Tensor:
        first = applier.start = kv_cache.length
        embedded = forward.embed(tokens[:, first:], first=first, observe=applier)
        final = forward.run(embedded, observe=applier, patterns=patterns, kv_cache=kv_cache)
        return final[:, -1]

    return onward


def _check_new(edits: Sequence[Edit]) -> None:
    for edit in edits:
        if edit.positions is None:
            raise ValueError(
                f"max_new_tokens=1 with where='new': the edit at {edit.site.label!r} never fires, "
                "as no new token is read; wanted at least 2"
            )


def check_room(prompt: int, new: Any, context: int) -> None:
    """Refuse new tokens for which there is no room after a prompt.

    Raises:
        ValueError: There are none, no prompt, or more than the context holds.
    """
    count("max_new_tokens", new)
    if prompt < 1:
        raise ValueError("tokens have no positions; wanted prompts of at least one token")
    if prompt + new > context:
        raise ValueError(
            f"max_new_tokens={new} after {prompt} tokens exceeds the model's context of {context}"
        )


def end_token(model: Model, eos: int | Literal["model"] | None, size: int) -> int | None:
    """The token that ends a text, of a vocabulary of this size.

    Raises:
        ValueError: It is no token.
    """
    if eos == "model":
        return getattr(getattr(model, "tokenizer", None), "eos_token_id", None)
    if eos is not None and not 0 <= eos < size:
        raise ValueError(f"eos={eos}; wanted a token id from 0 to {size - 1}, 'model' or None")
    return eos
