"""All of ``make bench`` in one go, or some of it: one table, and the same as JSON.

``python tests/bench/everything.py --small`` tries every line in a few minutes and measures nothing.
Random weights of Pythia's shapes, float32; ours and theirs run in turn, so that a busy machine
slows both. What is not begun when `--minutes` are over is left out, and said so.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")  # before the library imports it

import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
import ablations
import gradients
import heads
import importance
import lens
import patching
import reach
import rows
import sweeps
import weights

WORKS = {
    "ablations": ablations.measured,
    "importance": importance.measured,
    "gradients": gradients.measured,
    "lens": lens.measured,
    "weights": weights.measured,
    "heads": heads.measured,
    "reach": reach.measured,
    "sweeps": sweeps.measured,
    "patching": patching.measured,
}


def main() -> None:
    """Measure and print; or print two measurements side by side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[*WORKS], choices=[*WORKS])
    parser.add_argument("--shape", choices=[*rows.SHAPES], help="of the model; the bars are on 70m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3, help="medians of so many")
    parser.add_argument("--small", action="store_true", help="try every line, measure nothing")
    parser.add_argument("--minutes", type=float, default=29.0, help="after which no row begins")
    parser.add_argument("--out", type=Path, default=Path("build/bench.json"))
    parser.add_argument("--base", type=Path, help="print `--out` beside this file; measure nothing")
    options = parser.parse_args()
    if options.base:
        print(rows.beside(options.base, options.out))
        return
    begun, threads = time.monotonic(), torch.get_num_threads()
    device = torch.cuda.get_device_name() if options.device == "cuda" else options.device
    about = {"torch": torch.__version__, "device": device, "threads": threads}
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    print(rows.HEAD, flush=True)
    found, left_out = [], []
    with tempfile.TemporaryDirectory() as root:
        shape = options.shape or ("14m" if options.small else "70m")
        setting = rows.Setting(Path(root), shape, options.device, options.small, options.repeats)
        for name in options.only:
            if time.monotonic() - begun > 60 * options.minutes:  # a row takes up to a minute
                left_out.append(name)
                continue
            torch.set_num_threads(threads)
            for row in WORKS[name](setting):
                print(rows.line(row), flush=True)
                found.append(row)
                rows.keep(found, options.out, about | {"seconds": time.monotonic() - begun})
                if time.monotonic() - begun > 60 * options.minutes:
                    left_out.append(name)
                    break
    if left_out:
        print(f"{options.minutes:g} minutes were over in {', '.join(left_out)}: not all was run")
    print(f"{time.monotonic() - begun:.0f} s; {options.out} has the same")


if __name__ == "__main__":
    main()
