"""What layers would say (`lens.read`), against the matrix products that it takes.

``python tests/bench/lens.py``: random weights of a Pythia shape, one text of 64 tokens. Processor
time of one thread, all in turn, medians. The products are those of every layer's stream with the
unembedding, one layer a product, as a plain lens does them, and all layers in one product.
"""

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")  # before the library imports it

import torch

sys.path.insert(0, str(Path(__file__).parent))
from run import SHAPES, VOCABULARY, directory

import mlp_interp as mi
from mlp_interp.models import Unembed, forward_of

BARS = {"products": 1.25, "forward": 5.5, "memory": 64}


def seconds(function: Callable[[], Any]) -> float:
    """Processor time of one call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def peak() -> float:
    """The most memory that the process has held, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@torch.no_grad()
def main() -> None:
    """Measure one shape and print the ratios beside their bars."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="70m")
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        model = mi.load_model(directory(given.shape, Path(root)))
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (1, given.length), generator=generator)
    # A vocabulary beyond the tokenizer's reads as numbers, in no time.
    forward, unembed = forward_of(model), Unembed.of(model)
    streams = mi.run(model, tokens, sites=()).streams
    normalized = torch.stack([unembed.normalize(x[0]) for x in streams])
    ways: dict[str, Callable[[], Any]] = {
        "read": lambda: mi.lens.read(model, tokens),
        "products": lambda: [x @ unembed.weight for x in normalized],
        "one product": lambda: normalized.flatten(0, 1) @ unembed.weight,
        "forward": lambda: unembed.logits(forward.run(forward.embed(tokens))),
        "body": lambda: forward.run(forward.embed(tokens)),
    }
    for way in ways.values():
        way()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(given.repeats):
        for name, way in ways.items():
            times[name].append(seconds(way))
    took = {name: statistics.median(each) for name, each in times.items()}
    print(f"lens.read, {given.shape} shape, {given.length} tokens, cpu s: {took['read']:.3f}")
    every, whole = took["body"] + took["products"], took["body"] + took["one product"]
    print(f"  of its products, a layer each (bar {BARS['products']}x): {took['read'] / every:.2f}x")
    print(f"  of its products, all in one: {took['read'] / whole:.2f}x")
    print(f"  of a forward (bar {BARS['forward']}x): {took['read'] / took['forward']:.2f}x")


if __name__ == "__main__":
    main()
