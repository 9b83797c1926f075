"""Heads from weights and on data, beside TransformerLens' ways: ``make bench``.

Random weights of Pythia's shapes, one thread, processor time: ratios are medians of runs in turn.
Composition scores of all pairs of heads against `all_composition_scores`; three kinds of heads on
data against `detect_head`; and what has no counterpart in the library, as seconds.
"""

import argparse
import ctypes
import gc
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

sys.path.insert(0, str(Path(__file__).parent))
from rows import SHAPES, directory

import mlp_interp as mi
from mlp_interp.heads._repeated import Repeated
from mlp_interp.models import Weights, forward_of

KINDS = ("previous_token_head", "duplicate_token_head", "induction_head")


def seconds(function: Callable[[], Any]) -> float:
    """Processor time of one call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def grown(function: Callable[[], Any]) -> float:
    """By how many MB memory rises above what the process holds, at its peak.

    The peak is set back: that of loading a model is above all that follows; and what was freed goes
    back to the system: it would be used again unseen. On Linux with glibc.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _held("VmRSS")
    function()
    return (_held("VmHWM") - before) / 1024


def _held(name: str) -> int:
    """The kernel's number of KB of the process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def ratio(ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int) -> tuple[float, ...]:
    """Medians of runs in turn: theirs over ours, ours, theirs."""
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(repeats)]
    a, b = (statistics.median(x) for x in zip(*pairs, strict=True))
    return b / a, a, b


def composition(model: Any, repeats: int, library: bool) -> None:
    """All pairs, queries, keys and values."""
    mi.heads.compose(model, writers="L0H0", readers="L1H0.k")
    memory = grown(lambda: mi.heads.compose(model))

    def theirs() -> None:
        for kind in "QKV":
            model.all_composition_scores(kind)

    if not library:
        print(f"  compose: {seconds(lambda: mi.heads.compose(model)):.2f} s, {memory:.0f} MB more")
        return
    found = ratio(lambda: mi.heads.compose(model), theirs, repeats)
    print(
        f"  {found[0]:5.1f}x  compose, all pairs, with z: {found[1]:.2f} s, {found[2]:.2f} s; "
        f"{memory:.0f} MB more",
        flush=True,
    )


def detection(model: Any, repeats: int) -> None:
    """Eight texts of 101 tokens."""
    from transformer_lens.head_detector import detect_head

    tokens = Repeated.of(Weights.of(model), 8, 50, 0).tokens
    forward = forward_of(model)

    def body() -> None:
        with torch.no_grad():
            forward.run(forward.embed(tokens))

    def ours() -> None:
        mi.heads.detect(model, n=8, period=50)

    def theirs() -> None:
        for row in tokens:
            with torch.no_grad(), patch.object(model, "to_tokens", lambda given: given):
                for kind in KINDS:
                    detect_head(model, row[None], kind)

    found, bodies = ratio(ours, theirs, repeats), ratio(body, ours, repeats)
    print(
        f"  {found[0]:5.1f}x  detect, five kinds against three of the library: "
        f"{found[1]:.2f} s against {found[2]:.2f} s; {bodies[0]:.2f} passes of the body",
        flush=True,
    )


def from_weights(model: Any) -> None:
    """What the library has nothing for."""
    for name, function in {
        "roles": lambda: mi.heads.roles(model),
        "roles, whole vocabulary": lambda: mi.heads.roles(model, sample=None),
        "induction": lambda: mi.heads.induction(model, n=8),
    }.items():
        print(f"  {name}: {seconds(function):.1f} s", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", default=["70m", "160m"], choices=[*SHAPES])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--alone", action="store_true", help="leave the library out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for shape in options.shapes:
        with tempfile.TemporaryDirectory() as root:
            model = mi.load_model(directory(shape, Path(root)))
        print(f"pythia-{shape} shape", flush=True)
        # The library's scores of 410m take 39 GB.
        library = not options.alone and shape != "410m" and hasattr(model, "all_composition_scores")
        composition(model, options.repeats, library)
        if library:
            detection(model, options.repeats)
        from_weights(model)


if __name__ == "__main__":
    main()
