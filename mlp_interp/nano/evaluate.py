"""Check the trained model against its bars: ``python -m mlp_interp.nano.evaluate``.

Tasks count the held-out prompts after which the answer is the likeliest token of the
vocabulary; greater-than those on which the valid years together outweigh the invalid ones.
The exit status is 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mlp_interp.nano import weights_path
from mlp_interp.nano.bars import Measurement, measure
from mlp_interp.nano.checkpoint import load

__all__ = ["main", "table"]


def table(lines: Sequence[Measurement]) -> str:
    """Format measurements as a Markdown table."""
    rows = ["| measured | value | bar | | besides |", "|---|---|---|---|---|"]
    for line in lines:
        if line.bar is None:
            bar, verdict = "", ""
        else:
            bar = f"{'<=' if line.at_most else '>='} {line.bar:.2f}"
            verdict = "pass" if line.passed else "FAIL"
        rows.append(f"| {line.name} | {line.value:.3f} | {bar} | {verdict} | {line.note} |")
    return "\n".join(rows)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m mlp_interp.nano.evaluate", description=__doc__)
    parser.add_argument("--weights", type=Path, default=weights_path(), help="directory to check")
    parser.add_argument("--prompts", type=int, default=200, help="held-out prompts per task")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    lines = measure(*load(chosen.weights), n=chosen.prompts, seed=chosen.seed)
    print(table(lines))
    return 0 if all(line.passed for line in lines) else 1


if __name__ == "__main__":
    raise SystemExit(main())
