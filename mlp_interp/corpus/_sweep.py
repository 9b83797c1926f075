"""`sweep`: one pass of a model over any number of tokens, into any number of reducers."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from mlp_interp.checkpoint import Checkpoint
from mlp_interp.corpus.options import SweepOptions, check_options
from mlp_interp.corpus.progress import Progress
from mlp_interp.corpus.ray_backend import reduce_on_ray
from mlp_interp.corpus.reducers import Reducer, Shape
from mlp_interp.corpus.shards import STATES, Merged, Plan, States, merge, reduce_shard
from mlp_interp.models import (
    Forward,
    HookForward,
    Weights,
    describe,
    fingerprint,
    forward_of,
)
from mlp_interp.models.padding import Padded, first_token
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.texts import padded_texts

__all__ = ["sweep"]

_FORMAT = 4
"""Of what is kept: to be raised when states or the way to them change."""


def sweep(
    model: Model,
    corpus: Any,
    reducers: Reducer | Sequence[Reducer] | Mapping[str, Reducer],
    *,
    attention_mask: Any = None,
    options: SweepOptions = SweepOptions(),
) -> dict[str, xr.Dataset]:
    """Run a corpus through a model once and sum up what it does on the way.

    Reducers see activations as they are computed; nothing is kept beyond a batch, the model runs no
    further than the last activation that one of them looks at, and logits only if one asks.
    The corpus is cut into shards at places that depend on `shard` alone, and their states are
    merged in order: numbers are the same to the last bit with one worker or many, and with or
    without interruption (on processors of one kind, each worker with as many threads).

    Args:
        model: The model.
        corpus: A `Corpus`, also one that is mapped from disk; tokens ``[sequence, pos]``, padded or
            not; texts, or a list of token ids for each. Padding is left out of all numbers.
        reducers: What to sum up: one reducer, several, or several by names of your own.
        attention_mask: 1 where text is, 0 where padding is; None tells it by the rule of
            `mlp_interp.models.padding`.
        options: Batches and shards, where finished shards are kept, on what machines.

    Returns:
        The result of each reducer, by its name (``"fraction.pre"``) or the one you gave it.

    Raises:
        ValueError: No reducers or two of one name, what a reducer wants and the model has not,
            `options` of another kind, padded texts for a reducer that does not leave padding out,
            tokens that are not the model's, a checkpoint for a model on which hooks are held, or
            resources that the cluster has not.
        ImportError: ``backend="ray"`` without Ray.

    Example:
        >>> from mlp_interp import load_corpus, load_model
        >>> from mlp_interp.corpus.reducers import Fraction, Moments
        >>> model = load_model("nano")
        >>> corpus = load_corpus("nano", model, sequences=8, length=32)
        >>> found = sweep(model, corpus, [Fraction(), Moments(site="mlp_out")])
        >>> list(found), 0 < float(found["fraction.pre"]["fraction"].mean()) < 0.5
        (['fraction.pre', 'moments.mlp_out'], True)
    """
    check_options(options)
    texts = padded_texts(model, corpus, attention_mask)
    tokens, data = texts.tokens, texts.attrs
    weights = Weights.of(model)
    shape = Shape.of(weights, tokens.shape[1], texts.shortest)
    plan = Plan(
        {name: reducer.resolved(shape) for name, reducer in _named(reducers).items()},
        shape,
        batch_size=min(options.batch_size, options.shard),
        shard=options.shard,
        sequences=len(tokens),
        lengths=texts.lengths,
        bos=first_token(model),
    )
    _check_padding(plan)
    plan.empty()
    # Asks every reducer whether the model has what it wants.
    weights.check_names({name for name, _ in plan.watchers})
    weights.checked(tokens[:1].long())
    weights.checked(torch.stack(tokens.aminmax())[:, None].long())
    forward = forward_of(model)
    kept = Checkpoint(_folder(options, model, texts, plan), STATES)
    merged = kept.read("merged") or Merged(0, plan.empty())
    todo = _todo(plan, merged, kept)
    with Progress(tokens, min(merged.shards * plan.shard, len(tokens)), options.progress) as bar:
        reduced = partial(_reduced, forward, plan, tokens, options, bar)
        for index in _in_order(plan, reduced, todo, kept, merged):
            bar.at(plan.rows(index).stop)
    attrs = {**data, **describe(model), "analysis": "sweep", "exact": 1}
    attrs |= {
        "engine": forward.engine,
        "sweep_backend": options.backend,
        "batch_size": plan.batch_size,
        "shard": plan.shard,
    }
    if options.gpus:
        attrs["device"] = "cuda"
    return {
        name: reducer.result(merged.states[name], plan.shape).assign_attrs(
            {**attrs, "reducer": repr(reducer)}
        )
        for name, reducer in plan.reducers.items()
    }


def _single(index: int) -> str:
    """What a shard is called that is kept because its turn has not come."""
    return f"shard-{index}"


def _todo(plan: Plan, merged: Merged, kept: Checkpoint[Merged]) -> list[int]:
    """The shards that are neither merged nor kept by themselves."""
    names = kept.names()
    for index in range(merged.shards):
        if _single(index) in names:  # killed after it was merged, before it was deleted
            kept.forget(_single(index))
    return [n for n in range(merged.shards, plan.shards) if _single(n) not in names]


def _reduced(
    forward: Forward | HookForward,
    plan: Plan,
    tokens: Tensor,
    options: SweepOptions,
    bar: Progress,
    numbers: Sequence[int],
) -> Generator[tuple[int, States]]:
    """The states of some shards, each as it is done."""
    if options.backend == "ray":
        yield from reduce_on_ray(forward, plan, tokens, [*numbers], options)
    else:
        for n in numbers:
            rows = plan.rows(n)
            yield n, reduce_shard(forward, plan, tokens[rows], n, partial(bar.within, rows.start))


def _in_order(
    plan: Plan,
    reduced: Callable[[Sequence[int]], Generator[tuple[int, States]]],
    todo: Sequence[int],
    kept: Checkpoint[Merged],
    merged: Merged,
) -> Iterator[int]:
    """Merge shards into the states as their turn comes; give the number of each.

    A shard that comes out of turn waits, here and on disk.
    """
    waiting: dict[int, States] = {}
    expected = {*todo}
    with closing(reduced(todo)) as found:  # a cluster started for it must not outlive an error
        for index in range(merged.shards, plan.shards):
            while index not in waiting:
                if early := kept.read(_single(index)):
                    waiting[index] = early.states
                elif index not in expected:  # it was there before: damaged, or merged by another
                    waiting |= dict(reduced([index]))
                else:
                    number, states = next(found)
                    if number != index:
                        kept.keep(_single(number), Merged(1, states))
                    waiting[number] = states
            merge(plan, merged.states, waiting.pop(index))
            kept.keep("merged", Merged(index + 1, merged.states))
            kept.forget(_single(index))
            yield index


def _named(reducers: Any) -> dict[str, Reducer]:
    if isinstance(reducers, Reducer | type | str):
        reducers = [reducers]
    listed = reducers.items() if isinstance(reducers, Mapping) else enumerate(reducers)
    for place, reducer in listed:
        if not isinstance(reducer, Reducer):
            raise ValueError(f"reducers[{place!r}]={reducer!r}; wanted a reducer, as Fraction()")
    if not isinstance(reducers, Mapping):
        names = [reducer.name for reducer in reducers]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(
                f"reducers has {', '.join(sorted(twice))} more than once; wanted a mapping that "
                "names each"
            )
        reducers = dict(zip(names, reducers, strict=True))
    if not reducers:
        raise ValueError("reducers is empty; wanted at least one")
    return dict(reducers)


def _check_padding(plan: Plan) -> None:
    """Refuse padded texts for reducers that would count the padding.

    Raises:
        ValueError: Naming the first of them.
    """
    for name, reducer in plan.reducers.items():
        if plan.lengths is not None and not reducer.takes_padding:
            raise ValueError(
                f"reducers[{name!r}] does not leave out padding (takes_padding is False), but the "
                f"texts have {int(plan.lengths.min())} to {int(plan.lengths.max())} tokens; wanted "
                "texts of one length"
            )


def _folder(options: SweepOptions, model: Model, texts: Padded, plan: Plan) -> Path | None:
    """Where the sweep keeps what it has done: a folder for all that its numbers depend on."""
    if options.checkpoint is None:
        return None
    facts = {
        "format": _FORMAT,
        "reducers": {
            name: f"{type(reducer).__module__}.{type(reducer).__qualname__}: {reducer!r}"
            for name, reducer in plan.reducers.items()
        },
        "batch_size": plan.batch_size,
        "shard": plan.shard,
        "gpus": options.gpus,
        "bos": plan.bos,
    }
    if plan.lengths is not None:
        facts["lengths"] = plan.lengths.tolist()
    return Path(options.checkpoint) / f"sweep-{fingerprint(model, texts.tokens, facts)}"
