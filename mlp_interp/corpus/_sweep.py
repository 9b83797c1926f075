"""`sweep`: one pass of a model over any number of tokens, into any number of reducers."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from mlp_interp.checkpoint import Checkpoint
from mlp_interp.corpus.ray_engine import reduce_on_ray
from mlp_interp.corpus.reducers import Reducer, Shape
from mlp_interp.corpus.shards import STATES, Merged, Plan, States, merge, reduce_shard
from mlp_interp.models import Weights, describe, fingerprint, forward_of
from mlp_interp.results import tokens_of

__all__ = ["sweep"]

Engine = Literal["local", "ray"]

_FORMAT = 1
"""Of what is kept: to be raised when states or the way to them change."""


def sweep(
    model: Any,
    corpus: Any,
    reducers: Reducer | Sequence[Reducer] | Mapping[str, Reducer],
    *,
    engine: Engine = "local",
    batch_size: int = 8,
    shard: int = 64,
    checkpoint: str | Path | None = None,
    progress: bool = False,
    workers: int | None = None,
    resources: Mapping[str, Any] | None = None,
) -> dict[str, xr.Dataset]:
    """Run a corpus through a model once and sum up what it does on the way.

    Reducers see activations as they are computed; nothing is kept beyond a batch, the model runs no
    further than the last activation that one of them looks at, and logits only if one asks.
    The corpus is cut into shards at places that depend on `shard` alone, and their states are
    merged in order: numbers are the same to the last bit with one worker or many, and with or
    without interruption (on processors of one kind, each worker with as many threads).

    Args:
        model: The model.
        corpus: A `Corpus`, also one that is mapped from disk, or tokens ``[sequence, pos]``.
        reducers: What to sum up: one reducer, several, or several by names of your own.
        engine: ``"local"``: in this process. ``"ray"``: on the Ray cluster that this process is
            connected to, or on a local one that is started for it (``pip install
            'mlp-interp[ray]'``). Every worker gets the model once, shards are its tasks, and those
            of a worker that dies are done by another.
        batch_size: Sequences per forward pass, at most `shard`. Results depend on it as rounding
            does.
        shard: Sequences per shard: how much is lost, and done again, when a run is interrupted.
        checkpoint: A directory in which finished shards are kept. Run again with the same one,
            model, corpus and options, the sweep goes on where it stopped.
        progress: Show a bar with tokens per second and the time left.
        workers: With Ray: how many shards are worked on at a time; None for as many as the cluster
            has processors (or GPUs, where `resources` ask for one).
        resources: With Ray: what a worker needs, as ``{"num_cpus": 8}`` or ``{"num_gpus": 1}``.

    Returns:
        The result of each reducer, by its name (``"fraction.pre"``) or the one you gave it.

    Raises:
        ValueError: Unknown options, no reducers or two of one name, what a reducer wants and the
            model has not, tokens that are not the model's, a damaged checkpoint, one for a model on
            which hooks are held, or resources that the cluster has not.
        ImportError: ``engine="ray"`` without Ray.

    Example:
        >>> from mlp_interp import load_corpus, load_model
        >>> from mlp_interp.corpus.reducers import Fraction, Moments
        >>> model = load_model("nano")
        >>> corpus = load_corpus("nano", model, sequences=8, length=32)
        >>> found = sweep(model, corpus, [Fraction(), Moments(site="mlp_out")])
        >>> list(found), 0 < float(found["fraction.pre"]["fraction"].mean()) < 0.5
        (['fraction.pre', 'moments.mlp_out'], True)
    """
    tokens, data = tokens_of(corpus)
    _check_options(engine, batch_size, shard, workers, resources)
    weights = Weights.of(model)
    shape = Shape.of(weights, tokens.shape[1])
    plan = Plan(
        {name: reducer.resolved(shape) for name, reducer in _named(reducers).items()},
        shape,
        batch_size=min(batch_size, shard),
        shard=shard,
        sequences=len(tokens),
    )
    plan.empty()
    _ = plan.watchers  # asks every reducer whether the model has what it wants
    weights.checked(tokens[:1].long())
    weights.checked(torch.stack(tokens.aminmax())[:, None].long())
    gpus = bool((resources or {}).get("num_gpus"))
    forward = forward_of(model)
    kept = Checkpoint(_folder(checkpoint, model, tokens, plan, gpus), STATES)
    merged = kept.read("merged") or Merged(0, plan.empty())
    todo = _todo(plan, merged, kept)
    bar = tqdm(
        total=tokens.numel(),
        initial=min(merged.shards * shard, len(tokens)) * tokens.shape[1],
        desc="sweep",
        unit="tok",
        unit_scale=True,
        disable=not progress,
    )
    with bar:
        found: Generator[tuple[int, States]]
        if engine == "ray":
            found = reduce_on_ray(forward, plan, tokens, todo, workers, resources or {})
        else:
            found = ((n, reduce_shard(forward, plan, tokens[plan.rows(n)], n)) for n in todo)
        with closing(found):  # a cluster that was started for it must not outlive an error here
            for index in _in_order(plan, found, kept, merged):
                bar.update(tokens[plan.rows(index)].numel())
    attrs = {**data, **describe(model), "analysis": "sweep", "engine": forward.engine}
    attrs |= {"batch_size": plan.batch_size, "shard": shard}
    if gpus:
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


def _in_order(
    plan: Plan,
    found: Iterator[tuple[int, States]],
    kept: Checkpoint[Merged],
    merged: Merged,
) -> Iterator[int]:
    """Merge shards into the states as their turn comes; give the number of each.

    A shard that comes out of turn waits, here and on disk.
    """
    waiting: dict[int, States] = {}
    for index in range(merged.shards, plan.shards):
        while index not in waiting:
            if early := kept.read(_single(index)):
                waiting[index] = early.states
                break
            number, states = next(found)
            if number != index:
                kept.keep(_single(number), Merged(1, states))
            waiting[number] = states
        merge(plan, merged.states, waiting.pop(index))
        kept.keep("merged", Merged(index + 1, merged.states))
        kept.forget(_single(index))
        yield index


def _named(reducers: Reducer | Sequence[Reducer] | Mapping[str, Reducer]) -> dict[str, Reducer]:
    if isinstance(reducers, Reducer):
        reducers = [reducers]
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


def _folder(
    checkpoint: str | Path | None, model: Any, tokens: Tensor, plan: Plan, gpus: bool
) -> Path | None:
    """Where the sweep keeps what it has done: a folder for all that its numbers depend on."""
    if checkpoint is None:
        return None
    options = {
        "format": _FORMAT,
        "reducers": {
            name: f"{type(reducer).__module__}.{type(reducer).__qualname__}: {reducer!r}"
            for name, reducer in plan.reducers.items()
        },
        "batch_size": plan.batch_size,
        "shard": plan.shard,
        "gpus": gpus,
    }
    return Path(checkpoint) / f"sweep-{fingerprint(model, tokens, options)}"


def _check_options(
    engine: str,
    batch_size: int,
    shard: int,
    workers: int | None,
    resources: Mapping[str, Any] | None,
) -> None:
    if engine not in ("local", "ray"):
        raise ValueError(f"engine={engine!r}; wanted 'local' or 'ray'")
    for name, value in (("batch_size", batch_size), ("shard", shard), ("workers", workers)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}; wanted at least 1")
    if engine == "local" and (workers is not None or resources is not None):
        raise ValueError(
            f"workers={workers}, resources={resources} with engine='local'; wanted engine='ray'"
        )
