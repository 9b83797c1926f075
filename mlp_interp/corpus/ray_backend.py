"""Shards as tasks on a Ray cluster."""

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from mlp_interp.corpus.options import SweepOptions
from mlp_interp.corpus.shards import Plan, States, reduce_shard
from mlp_interp.models import Forward, HookForward, portable
from mlp_interp.results import to_numpy

__all__ = ["reduce_on_ray"]

_RETRIES = 3
"""How many workers may die over one shard before the sweep gives up: it may be what kills them."""

# In a worker: the forward pass it has, under the name that the sweep gave it.
_known: dict[str, Forward | HookForward] = {}


def reduce_on_ray(
    forward: Forward | HookForward,
    plan: Plan,
    tokens: Int[Tensor, "sequence pos"],
    todo: Sequence[int],
    options: SweepOptions,
) -> Generator[tuple[int, States]]:
    """Reduce shards on the cluster; they come as they are finished, not far out of order.

    Args:
        forward: The model's forward pass; it is put into the cluster's store once.
        plan: What to do.
        tokens: The whole corpus, of which each task gets its shard.
        todo: Numbers of the shards.
        options: Its `workers` and `resources`.

    Raises:
        ImportError: Ray is not installed.
        TypeError: The model is one that runs through its own hooks and cannot be sent.
        ValueError: What `reduce_shard` raises, or resources that the cluster has not.
        RuntimeError: Several workers died over one shard.
    """
    ray = _ray()
    started = not ray.is_initialized()
    if started:
        each = (options.resources or {}).get("num_cpus", 1)
        cpus = None if options.workers is None else math.ceil(options.workers * each)
        ray.init(
            num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="WARNING"
        )
    try:
        yield from _tasks(ray, forward, plan, tokens, todo, options)
    finally:
        if started:
            ray.shutdown()


def _tasks(
    ray: Any,
    forward: Forward | HookForward,
    plan: Plan,
    tokens: Tensor,
    todo: Sequence[int],
    options: SweepOptions,
) -> Iterator[tuple[int, States]]:
    handle = ray.put(portable(forward) if isinstance(forward, Forward) else forward)
    resources = {"max_retries": _RETRIES, **(options.resources or {})}
    work = ray.remote(_work).options(**resources)
    threads = torch.get_num_threads()
    # Twice as many as there is room for, so that none waits for the next; no more, so that what is
    # finished out of turn stays little.
    room = _room(ray, options.resources or {})
    window = options.workers or 2 * room
    running: dict[Any, int] = {}
    waiting = list(reversed(todo))
    merged = iter(todo)  # the oldest that is not finished bounds how far ahead others may be
    oldest, finished = next(merged, None), set()
    while waiting or running:
        while waiting and len(running) + len(finished) < 2 * window and len(running) < window:
            index = waiting.pop()
            rows = to_numpy(tokens[plan.rows(index)])
            # In a list, or Ray would hand the whole forward pass to every task.
            task = work.remote([handle], handle.hex(), plan, rows, index, threads)
            running[task] = index
        ready, _ = ray.wait(list(running), num_returns=1)
        index = running.pop(ready[0])
        yield index, _get(ray, ready[0], index, resources["max_retries"])
        finished.add(index)
        while oldest in finished:
            finished.discard(oldest)
            oldest = next(merged, None)


def _work(
    handle: list[Any], name: str, plan: Plan, tokens: np.ndarray, index: int, threads: int
) -> States:
    """In a worker: one shard, with the forward pass that it has got with the first."""
    import ray

    # As many threads as where it was called: numbers then are the same to the last bit.
    torch.set_num_threads(threads)
    if name not in _known:
        _known.clear()
        forward: Any = ray.get(handle[0])
        gpu = bool(ray.get_gpu_ids()) and isinstance(forward, Forward)
        _known[name] = portable(forward, "cuda") if gpu else forward
    return reduce_shard(_known[name], plan, torch.from_numpy(tokens.copy()), index)


def _get(ray: Any, task: Any, index: int, retries: int) -> States:
    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        # What went wrong in the worker, as it was there.
        raise error.as_instanceof_cause() from None
    except ray.exceptions.WorkerCrashedError as error:
        raise RuntimeError(
            f"workers died over shard {index}, {1 + retries} in a row; too little memory for the "
            "batch?"
        ) from error


def _room(ray: Any, resources: Mapping[str, Any]) -> int:
    """How many workers the cluster has room for."""
    there = ray.cluster_resources()
    gpus, cpus = float(resources.get("num_gpus", 0)), float(resources.get("num_cpus", 1))
    if cpus > there.get("CPU", 0) or gpus > there.get("GPU", 0):
        raise ValueError(
            f"resources={dict(resources)}: the cluster has {there.get('CPU', 0):g} processors and "
            f"{there.get('GPU', 0):g} GPUs; wanted no more for one worker"
        )
    rooms = [there.get("CPU", 1.0) / cpus] if cpus else []
    rooms += [there.get("GPU", 0.0) / gpus] if gpus else []
    return max(1, int(min(rooms, default=1)))


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ImportError("backend='ray' needs Ray: pip install 'mlp-interp[ray]'") from error
    return ray
