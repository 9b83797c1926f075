"""One walk over the vocabulary, in blocks that stay in the processor's cache."""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Largest", "blocks", "scan", "together", "top_tokens"]

_TOKENS = 1024
_PIECE = 64
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
        weight: The direction of every token (`Unembed.weight`); of other precision than the
            vectors, blocks of it are taken to theirs.
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
        part = weight[:, block].to(flat.dtype)
        for start in range(0, len(flat), step):
            some = slice(start, start + step)
            product = torch.addmm(added[some], flat[some], part)
            where = slice(start // rows, start // rows + len(product) // rows)
            yield where, product.view(-1, rows, product.shape[-1])

    for block in blocks(weight.shape[-1]):
        yield block, products(block)


class Largest:
    """The largest numbers of each row, while blocks of the vocabulary go by.

    Example:
        >>> x, found = torch.arange(8.0).view(2, 4), Largest(2)
        >>> best = [found.add(block, x[:, block]).tolist() for block in blocks(4, 2)]
        >>> best, found.result()[1].tolist()
        ([[1.0, 5.0], [3.0, 7.0]], [[3, 2], [3, 2]])
    """

    def __init__(self, k: int) -> None:
        """Nothing seen yet; `k` are wanted of each row."""
        self.k = k
        self._bound: Tensor | None = None  # k-th largest of what pieces of blocks have as maxima
        self._found: list[tuple[Tensor, Tensor, Tensor]] = []  # rows, numbers, tokens

    def add(self, block: slice, x: Float[Tensor, "*row block"]) -> Float[Tensor, "*row"]:
        """Look at the numbers of some tokens.

        Of most pieces of a block nothing is among the largest, which their own maxima tell.

        Returns:
            The largest of the block.
        """
        width = math.gcd(x.shape[-1], _PIECE)
        pieces = x.view(-1, x.shape[-1] // width, width)
        best = pieces.amax(-1)
        seen = best if self._bound is None else torch.cat([self._bound, best], -1)
        self._bound = seen.topk(min(self.k, seen.shape[-1]), -1).values
        least = self._bound[:, -1]
        if self._bound.shape[-1] < self.k:
            least = torch.full_like(least, -torch.inf)
        rows, places = (best >= least[:, None]).nonzero(as_tuple=True)
        some = pieces[rows, places]
        where, at = (some >= least[rows, None]).nonzero(as_tuple=True)
        tokens = block.start + places[where] * width + at
        self._found.append((rows[where], some[where, at], tokens))
        self._shape = x.shape[:-1]
        return best.amax(-1).view(self._shape)

    def result(self) -> tuple[Float[Tensor, "*row k"], Int[Tensor, "*row k"]]:
        """The largest numbers, in order, and whose they are; of equal ones the first tokens."""
        rows, numbers, tokens = (torch.cat(x) for x in zip(*self._found, strict=True))
        order = numbers.sort(descending=True, stable=True).indices
        order = order[rows[order].sort(stable=True).indices]
        begins = torch.searchsorted(rows[order], torch.arange(self._shape.numel()).to(rows))
        first = order[begins[:, None] + torch.arange(self.k).to(rows)]
        return numbers[first].view(*self._shape, self.k), tokens[first].view(*self._shape, self.k)


def top_tokens(
    weight: Float[Tensor, "d_model d_vocab"],
    vectors: Float[Tensor, "row d_model"],
    bias: Float[Tensor, " d_vocab"] | None = None,
) -> Int[Tensor, " row"]:
    """The token with the largest product with each vector; of equal ones the first.

    Args:
        weight: As in `scan`.
        vectors: One a row.
        bias: What is added to each token's products; None for nothing.

    Example:
        >>> top_tokens(torch.eye(3), torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]]))
        tensor([1, 0])
    """
    best = vectors.new_full((len(vectors),), -torch.inf)
    top = torch.zeros(len(vectors), dtype=torch.int64, device=vectors.device)
    for tokens, products in scan(weight, vectors[:, None], vectors.new_zeros(len(vectors), 1)):
        for rows, product in products:
            here = product[:, 0] if bias is None else product[:, 0] + bias[tokens]
            at = _places(here)
            value = here.gather(1, at[:, None])[:, 0]
            better = value > best[rows]
            best[rows] = torch.where(better, value, best[rows])
            top[rows] = torch.where(better, at + tokens.start, top[rows])
    return top


def _places(x: Float[Tensor, "row token"]) -> Int[Tensor, " row"]:
    """Where the largest number of each row is; numpy finds it many times faster than torch."""
    if x.device.type != "cpu" or x.requires_grad:
        return x.argmax(-1)
    return torch.from_numpy(x.numpy().argmax(-1))
