"""Tables of tokens by tokens, against the product that they are made of.

Random factors of Pythia's shapes: the product alone in blocks that stay in cache, the product as
torch writes it to memory, the largest entries of every row of it. Memory is to stay under 200 MB.
"""

import time
from collections.abc import Iterator

import torch
from rows import VOCABULARY, Row, Setting, compare

from mlp_interp.weights.ranking import best_of_rows

D_HEAD, BLOCK, K = 64, 1024, 10


def measured(setting: Setting) -> Iterator[Row]:
    """The largest entries of every row, on one thread of the processor."""
    torch.set_num_threads(1)
    size, generator = 256 if setting.small else 4096, torch.Generator().manual_seed(0)
    left = torch.randn(size, D_HEAD, generator=generator)
    right = torch.randn(VOCABULARY, D_HEAD, generator=generator)
    across = right.T.contiguous()

    def ours() -> None:
        best_of_rows(left, right, K)

    def blocked() -> None:
        for rows in left.split(384):
            for start in range(0, VOCABULARY, BLOCK):
                torch.mm(rows, across[:, start : start + BLOCK])

    def written() -> None:
        for rows in left.split(512):
            torch.mm(rows, across)

    def torchs() -> None:
        for rows in left.split(512):
            (rows @ across).topk(K, dim=1)

    ways = {"the product in blocks": blocked, "the product": written, "product and topk": torchs}
    for what, theirs in ways.items():
        yield compare(
            f"best {K} of each of {size} x {VOCABULARY} entries, against {what}",
            ours,
            theirs,
            repeats=setting.repeats,
            bound="1x",
            clock=time.process_time,
        )
