"""Tables of tokens by tokens, against the product that they are made of: ``make bench``.

``python tests/bench/weights.py``: random factors of Pythia's shapes. Processor time of one thread,
all in turn, medians of three: the product alone in blocks that stay in cache, the product as torch
writes it to memory, the largest entries of every row of either. Memory is what the process had at
most above what it had before.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import torch

from mlp_interp.weights.ranking import best_of_rows

VOCABULARY, D_HEAD = 50_304, 64
BLOCK, MOST = 1024, 200


def peak() -> float:
    """Most memory that the process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def seconds(work: Callable[[], object]) -> float:
    """Processor time of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=4096, help="of the matrix; all: 50304")
    parser.add_argument("-k", type=int, default=10)
    given = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(given.rows, D_HEAD, generator=generator)
    right = torch.randn(VOCABULARY, D_HEAD, generator=generator)
    across = right.T.contiguous()

    def blocked() -> None:
        for rows in left.split(384):
            for start in range(0, VOCABULARY, BLOCK):
                torch.mm(rows, across[:, start : start + BLOCK])

    def written() -> None:
        for rows in left.split(512):
            torch.mm(rows, across)

    def torchs() -> None:
        for rows in left.split(512):
            (rows @ across).topk(given.k, dim=1)

    def ours() -> None:
        best_of_rows(left, right, given.k)

    before = peak()
    ours()
    memory = peak() - before
    ways = {"blocked product": blocked, "product": written, "product, topk": torchs, "ours": ours}
    times = {name: statistics.median(seconds(f) for _ in range(3)) for name, f in ways.items()}
    print(f"{given.rows} x {VOCABULARY}, top {given.k} of every row, factors of {D_HEAD}")
    for name, took in times.items():
        print(f"{name:<16} {took:6.2f} s   {times['ours'] / took:5.2f}x is ours")
    print(f"ours, most memory {memory:.0f} MB (bar {MOST})")


if __name__ == "__main__":
    main()
