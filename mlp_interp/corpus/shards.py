"""A corpus cut into shards: how one is reduced; how they are put together, and written.

Where the cuts are depends on nothing but the sweep's own options, and shards are merged in their
order. So a sweep gives the same numbers to the last bit whoever reduces the shards, in whatever
order they are finished, and however often it was interrupted.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from safetensors.torch import load, save_file
from torch import Tensor

from mlp_interp.checkpoint import Format
from mlp_interp.corpus.reducers.base import Batch, Reducer, Shape, State
from mlp_interp.models import Forward, HookForward
from mlp_interp.models.unembed import Unembed
from mlp_interp.sites import Site

__all__ = ["STATES", "Merged", "Plan", "States", "merge", "reduce_shard"]

States = dict[str, State]
"""The state of every reducer, by the reducer's name."""


@dataclass(frozen=True)
class Plan:
    """What a sweep does to every shard.

    Attributes:
        reducers: What sums up, by name.
        shape: Sizes of the model and the sequences.
        batch_size: Sequences per forward pass.
        shard: Sequences per shard.
        sequences: How many there are in all.
        lengths: Tokens of each, where some are padded.
        bos: The token that begins texts.
    """

    reducers: Mapping[str, Reducer]
    shape: Shape
    batch_size: int
    shard: int
    sequences: int
    lengths: Int[Tensor, " sequence"] | None = field(default=None, repr=False, compare=False)
    bos: int | None = None

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.sequences // self.shard)

    def rows(self, index: int) -> slice:
        """The sequences of a shard."""
        return slice(index * self.shard, min((index + 1) * self.shard, self.sequences))

    def empty(self) -> States:
        """The states before anything was seen."""
        return {name: reducer.empty(self.shape) for name, reducer in self.reducers.items()}

    @cached_property
    def watchers(self) -> dict[tuple[str, int], list[str]]:
        """Which reducers look at each site, by name.

        Raises:
            ValueError: What a reducer wants and the model has not.
        """
        found: dict[tuple[str, int], list[str]] = {}
        for name, reducer in self.reducers.items():
            for site in reducer.sites(self.shape):
                found.setdefault((site.name, site.layer or 0), []).append(name)
        return found

    @property
    def wants_final(self) -> bool:
        """Whether the final stream is wanted."""
        return any(reducer.wants_final for reducer in self.reducers.values())


@torch.no_grad()
def reduce_shard(
    forward: Forward | HookForward,
    plan: Plan,
    tokens: Int[Tensor, "sequence pos"],
    index: int,
    tick: Callable[[float], object] = lambda sequences: None,
) -> States:
    """Run one shard through the model and sum it up.

    Args:
        forward: The model's forward pass.
        plan: What to do.
        tokens: The sequences of this shard.
        index: Its number.
        tick: Called now and then with how many of its sequences are done: parts of one, too.

    Raises:
        ValueError: The tokens are not of this model, or an activation is not finite.
    """
    weights, states = forward.weights, plan.empty()
    readout: list[Unembed] = []
    buffers: dict[Any, Tensor] = {}

    def unembed() -> Unembed:
        if not readout:
            readout.append(Unembed.of(weights.model))
        return readout[0]

    start = first = plan.rows(index).start
    for rows in tokens.split(plan.batch_size):
        ids, real = weights.checked(rows.long()), None
        if plan.lengths is not None:
            lengths = plan.lengths[first : first + len(rows), None].to(ids.device)
            real = torch.arange(ids.shape[1], device=ids.device) < lengths
        batch = Batch(ids, first, forward, unembed, real, plan.bos, buffers=buffers)
        batch.tick = partial(_within, tick, first - start, len(rows))
        _run(forward, plan, states, batch)
        first += len(rows)
        tick(first - start)
    return states


def _within(tick: Callable[[float], object], done: int, size: int, share: float) -> None:
    tick(done + size * share)


class _EnoughError(Exception):
    """Everything that is looked at has been seen."""


def _run(forward: Forward | HookForward, plan: Plan, states: States, batch: Batch) -> None:
    """One batch: every reducer sees its sites as they are computed, and no more is computed."""
    left = dict(plan.watchers)

    def observe(name: str, layer: int, x: Tensor) -> Tensor:
        for key in left.pop((name, layer), ()):
            plan.reducers[key].see(states[key], Site(name, layer), x, batch)
        if not left and not plan.wants_final:
            _check_finite(x, batch.first)
            raise _EnoughError
        return x

    try:
        batch.final = forward.run(forward.embed(batch.tokens), observe=observe)
        _check_finite(batch.final, batch.first)
    except _EnoughError:
        pass
    for name, reducer in plan.reducers.items():
        reducer.finish(states[name], batch)


def _check_finite(x: Tensor, first: int) -> None:
    """Refuse what is not a number.

    Raises:
        ValueError: Something in the activation is not finite.
    """
    if x.sum().isfinite():  # a single pass over what may be large
        return
    finite = x.isfinite().flatten(1).all(1)
    if not finite.all():
        wrong = first + int((~finite).nonzero()[0])
        raise ValueError(
            f"activations of sequence {wrong} are not finite; wanted a model whose numbers stay "
            "within its data type (float16 overflows: load it as float32 or bfloat16) and whose "
            "weights are finite: check_model says"
        )


def merge(plan: Plan, states: States, later: States) -> None:
    """Add the states of the next shard, in place."""
    for name, reducer in plan.reducers.items():
        reducer.merge(states[name], later[name])


_SHARDS = "shards"  # where their number stands in a file, among names that are JSON lists


@dataclass(frozen=True)
class Merged:
    """The merged states of the first so many shards; or of one shard."""

    shards: int
    states: States


def _write(merged: Merged, path: Path) -> None:
    names = [[reducer, name] for reducer, state in merged.states.items() for name in state]
    tensors = {json.dumps(n): merged.states[n[0]][n[1]].contiguous() for n in names}
    save_file({**tensors, _SHARDS: torch.tensor(merged.shards)}, path)


def _read(content: bytes) -> Merged:
    states: States = {}
    tensors = load(content)
    shards = int(tensors.pop(_SHARDS))
    for key, value in tensors.items():
        reducer, name = json.loads(key)
        states.setdefault(reducer, {})[name] = value
    return Merged(shards, states)


STATES = Format(".safetensors", _write, _read)
"""How states are kept."""
