"""Activation statistics over a corpus, against the bare model body and the library's own ways.

Part of ``make bench``. Every row is throughput relative to the bare Hugging Face model body (no
unembedding, nothing read), all run in turn. The bound is 1 where the body is the same arithmetic;
a leaner pass may exceed it.
"""

import argparse
import gc
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parent))
from run import directory

import mlp_interp as mi
from mlp_interp.corpus import SweepOptions, sweep
from mlp_interp.corpus.reducers import Fraction, Histogram, Moments, TopExamples


def rss() -> float:
    """Memory that the process holds now, MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def peak(run: Callable[[], Any]) -> float:
    """How far memory rises above where it was, MB."""
    gc.collect()
    highest, done, before = [0.0], threading.Event(), rss()

    def watch() -> None:
        while not done.is_set():
            highest[0] = max(highest[0], rss())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return highest[0] - before


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
def cached(model: Any, tokens: torch.Tensor, size: int, every: bool) -> torch.Tensor:
    """`run_with_cache`, of everything or of what is needed."""
    names = None if every else lambda name: name.endswith("mlp.hook_pre")
    total = 0
    for rows in tokens.split(size):
        _, cache = model.run_with_cache(rows, names_filter=names, return_type=None)
        found = [cache[f"blocks.{n}.mlp.hook_pre"] for n in range(model.cfg.n_layers)]
        total = total + torch.stack([(x > 0).sum((0, 1)) for x in found])
    return total


def with_workers(model: Any, tokens: torch.Tensor, size: int, repeats: int) -> None:
    """Print how throughput grows from one worker to two, one thread each, on a running cluster."""
    import ray

    torch.set_num_threads(1)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    reducers = (Fraction(), Moments())
    options = {"batch_size": size, "shard": size}
    ways: dict[str, Callable[[], Any]] = {
        "local": lambda: sweep(model, tokens, reducers, options=SweepOptions(**options)),
        "one worker": lambda: sweep(
            model, tokens, reducers, options=SweepOptions(backend="ray", workers=1, **options)
        ),
        "two workers": lambda: sweep(
            model, tokens, reducers, options=SweepOptions(backend="ray", workers=2, **options)
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            if turn:  # the first call of anything is slow
                times[name].append(time.perf_counter() - start)
    ray.shutdown()
    for name, taken in times.items():
        ratio = statistics.median(b / t for b, t in zip(times["local"], taken, strict=True))
        rate = tokens.numel() / statistics.median(taken)
        print(f"{ratio:6.2f}x  {rate:7.0f} tokens/s  {name}, one thread each")


def main() -> None:
    """Print throughput of each way relative to the bare body, and peak memory."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="70m")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--length", type=int, default=600)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--everything", action="store_true", help="the library's full cache too")
    parser.add_argument("--ray", action="store_true", help="one and two workers of one thread too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = directory(options.shape, Path(folder))
        hf = AutoModelForCausalLM.from_pretrained(path).eval()
        model = mi.load_model(path)
    generator = torch.Generator().manual_seed(0)
    shape = (options.sequences, options.length)
    tokens = torch.randint(0, 50_000, shape, generator=generator)
    size = options.batch

    def ours(*reducers: Any) -> Callable[[], Any]:
        return lambda: sweep(model, tokens, reducers, options=SweepOptions(batch_size=size))

    ways: dict[str, Callable[[], Any]] = {
        "bare Hugging Face body": lambda: body(hf, tokens, size),
        "sweep: fraction": ours(Fraction()),
        "sweep: fraction, moments": ours(Fraction(), Moments()),
        "sweep: fraction, moments, top 10, histogram": ours(
            Fraction(), Moments(), TopExamples(), Histogram()
        ),
        "plain hooks on the body: fraction": lambda: hooked(hf, tokens, size),
        "run_with_cache, names_filter: fraction": lambda: cached(model, tokens, size, every=False),
    }
    if options.everything:
        ways["run_with_cache, all: fraction"] = lambda: cached(model, tokens, size, every=True)
    if options.ray:
        with_workers(model, tokens, size, options.repeats)
        return
    for run in ways.values():  # the first call of anything is slow
        run()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.repeats):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    base = times["bare Hugging Face body"]
    print(
        f"{options.shape}, {shape[0]} x {shape[1]} tokens, batches of {size}, "
        f"{torch.get_num_threads()} threads, medians of {options.repeats}"
    )
    print(f"bare body: {tokens.numel() / statistics.median(base):.0f} tokens/s")
    for name, taken in times.items():
        ratio = statistics.median(b / t for b, t in zip(base, taken, strict=True))
        print(f"{ratio:6.2f}x  {peak(ways[name]):7.0f} MB  {name}")
    ours_counts = sweep(model, tokens, Fraction(), options=SweepOptions(batch_size=size))[
        "fraction.pre"
    ]["count"]
    off = (torch.tensor(ours_counts.values) - hooked(hf, tokens, size)).abs().max()
    print(f"largest difference in counts from plain hooks: {float(off):.0f} (rounding at zero)")


if __name__ == "__main__":
    main()
