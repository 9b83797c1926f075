"""Time and memory on the shapes of larger Pythia models: ``python tests/bench/large.py``.

Random weights, float32 and bfloat16; one process for each model, as memory that one has freed may
stay with a process. The peak is above what the loaded model takes; grids are held to 512 MiB, which
is their default. Attributions need float32, and importance in bfloat16 says so in a warning.
"""

import argparse
import multiprocessing
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from rows import SHAPES, VOCABULARY, peak, random_model

import mlp_interp as mi
from mlp_interp.corpus import SweepOptions
from mlp_interp.corpus.reducers import Fraction, Moments


def loaded(shape: str, dtype: str) -> Any:
    """A random model of a shape, without tokenizer."""
    source = random_model(shape).to(getattr(torch, dtype)).eval()
    # Folding in half precision would round twice.
    processing = "folded" if dtype == "float32" else "raw"
    return mi.load_model(source, dtype=dtype, processing=processing, label=f"{shape}-random")


def works(model: Any) -> dict[str, Callable[[], Any]]:
    """A grid, an importance run and a sweep of random tokens."""
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, VOCABULARY - 1, (8, 128), generator=draw)
    clean = tokens[:1, :16]
    pair = mi.Contrast(
        clean_tokens=clean,
        corrupted_tokens=torch.cat((clean[:, :1], clean[:, 1:] + 1), dim=1),
        answers=torch.tensor([7]),
        foils=torch.tensor([11]),
    )
    kept = [Fraction(), Moments()]
    return {
        "first call (matrices in one layout, kept with the model)": lambda: mi.run(model, clean),
        "grid of resid_pre, T = 16": lambda: mi.patch(model, pair, sites="resid_pre"),
        "importance, 2 x 64 tokens": lambda: mi.subupdate_importance(model, tokens[:2, :64]),
        "sweep, 8 x 128 tokens": lambda: mi.sweep(
            model, tokens, kept, options=SweepOptions(batch_size=4)
        ),
    }


def measure(shape: str, dtype: str) -> None:
    """Print the lines of one model."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with torch.no_grad():
        model = loaded(shape, dtype)
        size = sum(x.numel() * x.element_size() for x in model.parameters()) / 1e6
        print(f"{shape}, {dtype}: {size:.0f} MB of weights, one thread", flush=True)
        for name, run in works(model).items():
            start = time.process_time()
            rise = peak(run)
            spent = time.process_time() - start
            print(f"  {name}: {spent:.1f} s of processor time, {rise:.0f} MB more", flush=True)


def main() -> None:
    """Each model in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="*", default=["410m", "1b"], choices=[*SHAPES])
    parser.add_argument("--dtypes", nargs="*", default=["float32", "bfloat16"])
    options = parser.parse_args()
    context, failed = multiprocessing.get_context("spawn"), False
    for shape in options.shapes:
        for dtype in options.dtypes:
            process = context.Process(target=measure, args=(shape, dtype))
            process.start()
            process.join()
            if process.exitcode:
                print(f"{shape}, {dtype}: ended with {process.exitcode}; -9 is want of memory")
                failed = True
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
