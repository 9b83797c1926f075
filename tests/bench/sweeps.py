"""Activation statistics over a corpus, against the bare model body and the library's own ways.

Against the bare Hugging Face model body (no unembedding, nothing read) the bound is 1 where that is
the same arithmetic; a leaner pass may exceed it.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from rows import Row, Setting, compare, directory
from transformers import AutoModelForCausalLM

import mlp_interp as mi
from mlp_interp.corpus import SweepOptions, sweep
from mlp_interp.corpus.reducers import Fraction, Histogram, Moments, TopExamples


@torch.no_grad()
def body(hf: Any, tokens: torch.Tensor, size: int) -> None:
    """The model body, nothing read."""
    for rows in tokens.split(size):
        hf.base_model(rows, use_cache=False)


@torch.no_grad()
def hooked(hf: Any, tokens: torch.Tensor, size: int) -> torch.Tensor:
    """Plain hooks on the body that count activations above zero."""
    layers = hf.base_model.layers
    counts = [torch.zeros(hf.config.intermediate_size) for _ in layers]

    def count(layer: int) -> Any:
        def hook(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
            counts[layer] += (output > 0).sum((0, 1))

        return hook

    handles = [
        block.mlp.dense_h_to_4h.register_forward_hook(count(n)) for n, block in enumerate(layers)
    ]
    try:
        body(hf, tokens, size)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(counts)


@torch.no_grad()
def cached(model: Any, tokens: torch.Tensor, size: int) -> torch.Tensor:
    """`run_with_cache` of what is needed."""
    names = lambda name: name.endswith("mlp.hook_pre")
    total = 0
    for rows in tokens.split(size):
        _, cache = model.run_with_cache(rows, names_filter=names, return_type=None)
        found = [cache[f"blocks.{n}.mlp.hook_pre"] for n in range(model.cfg.n_layers)]
        total = total + torch.stack([(x > 0).sum((0, 1)) for x in found])
    return total


def measured(setting: Setting) -> Iterator[Row]:
    """Several reducers against the bare body, one against other ways to count, and workers."""
    path = directory(setting.shape, setting.root)
    hf = AutoModelForCausalLM.from_pretrained(path).eval()
    model, size = mi.load_model(path), 8
    shape = (8, 16) if setting.small else (32, 600)
    tokens = torch.randint(0, 50_000, shape, generator=torch.Generator().manual_seed(0))

    def ours(*reducers: Any, **options: Any) -> Callable[[], Any]:
        def run() -> Any:
            settings = SweepOptions(batch_size=size, **options)
            return sweep(model, tokens, reducers, options=settings)["fraction.pre"]["count"].values

        return run

    def row(what: str, run: Callable[[], Any], theirs: Callable[[], Any], **options: Any) -> Row:
        named = f"{setting.shape}: sweep of {what}, {shape[0]} x {shape[1]} tokens"
        return compare(named, run, theirs, repeats=setting.repeats, **options)

    def nothing() -> None:
        body(hf, tokens, size)

    for what, reducers, bar in (
        ("fractions", (Fraction(),), None),
        ("fractions and moments", (Fraction(), Moments()), 0.95),
        (
            "fractions, moments, top 10 and histograms",
            (Fraction(), Moments(), TopExamples(), Histogram()),
            1.0,
        ),
    ):
        what = f"{what}, against the bare body"
        yield row(what, ours(*reducers), nothing, bound="1x", bar=bar)
    ways = {
        "plain hooks on the body": lambda: hooked(hf, tokens, size),
        "run_with_cache, filtered": lambda: cached(model, tokens, size),
    }
    for name, theirs in ways.items():
        yield row(f"fractions, against {name}", ours(Fraction()), theirs, bound="1x")
    yield from _of_workers(ours, row, size)


def _of_workers(ours: Any, row: Any, size: int) -> Iterator[Row]:
    """How throughput grows from one worker to two, one thread each, on a running cluster."""
    import ray

    torch.set_num_threads(1)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    run = lambda workers: ours(Fraction(), shard=size, backend="ray", workers=workers)
    try:
        yield row("fractions, two workers, against one", run(2), run(1), bound="2x")
    finally:
        ray.shutdown()
