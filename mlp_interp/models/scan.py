"""One walk over the vocabulary, in blocks that stay in the processor's cache."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["blocks", "scan", "together"]

_TOKENS = 1024
_ROWS = 384
"""Of a block of products: 1.5 MiB in float32, for each thread that shares in it."""


def blocks(d_vocab: int, width: int = _TOKENS) -> Iterator[slice]:
    """The vocabulary in blocks of so many tokens.

    Example:
        >>> list(blocks(1000, 600))
        [slice(0, 600, None), slice(600, 1000, None)]
    """
    for start in range(0, d_vocab, width):
        yield slice(start, min(start + width, d_vocab))


def together(rows: int) -> int:
    """How many groups of so many rows have products of a block that stay in cache."""
    return max(1, torch.get_num_threads() * _ROWS // max(1, rows))


def scan(
    weight: Float[Tensor, "d_model d_vocab"],
    vectors: Float[Tensor, "*more row d_model"],
    offset: Float[Tensor, "*more row"],
) -> Iterator[tuple[slice, Iterator[tuple[slice, Float[Tensor, "some row block"]]]]]:
    """Products of vectors with the vocabulary's directions, a block of both at a time.

    All products of some hundred rows with a real vocabulary are a hundred megabytes, which travel
    to memory and back for each thing that is asked of them. A block of them stays in cache while
    everything is asked, and the directions in it are read from memory once for all vectors.

    Args:
        weight: The direction of every token (`Unembed.weight`).
        vectors: What they are multiplied by; the leading axes are taken as one.
        offset: What is added to each vector's products.

    Yields:
        For each block of the vocabulary: which tokens, and for some of the vectors after the other
        which (along the leading axis) and their products, which may be overwritten.

    Example:
        >>> weight, vectors = torch.eye(3, 2000), torch.ones(5, 4, 3)
        >>> for tokens, products in scan(weight, vectors, torch.zeros(5, 4)):
        ...     total = sum(float(x.sum()) for _, x in products)
        ...     print(tokens, total)
        slice(0, 1024, None) 60.0
        slice(1024, 2000, None) 0.0
    """
    rows, d_model = vectors.shape[-2:]
    flat, added = vectors.reshape(-1, d_model), offset.reshape(-1, 1)
    step = together(rows) * max(1, rows)

    def products(block: slice) -> Iterator[tuple[slice, Tensor]]:
        part = weight[:, block]
        for start in range(0, len(flat), step):
            some = slice(start, start + step)
            product = torch.addmm(added[some], flat[some], part)
            where = slice(start // rows, start // rows + len(product) // rows)
            yield where, product.view(-1, rows, product.shape[-1])

    for block in blocks(weight.shape[-1]):
        yield block, products(block)
