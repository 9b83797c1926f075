"""A number for all entries of a tensor and their places: what tells changed weights from others."""

import torch
import xxhash
from torch import Tensor

__all__ = ["checksum"]

_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_BLOCK = 1 << 24  # words that are mixed at once: a few times 128 MB


@torch.no_grad()
def checksum(x: Tensor) -> str:
    """Hexadecimal digits that change with any entry of a tensor, and where entries change places.

    On the CPU a hash of its bytes, as fast as memory is read; elsewhere a sum over words, each
    mixed with its place, so that weights on a GPU stay there. The two differ.

    Example:
        >>> x = torch.arange(6.0).reshape(2, 3)
        >>> checksum(x) == checksum(x.clone()), checksum(x) == checksum(x[:, [1, 0, 2]])
        (True, False)
    """
    octets = x.detach().contiguous().reshape(-1).view(torch.uint8)
    if x.device.type == "cpu":
        return xxhash.xxh3_128_hexdigest(octets.numpy().data)
    return f"{_mixed_sum(octets):016x}"


def _mixed_sum(octets: Tensor) -> int:
    """The words' sum, each first mixed with its place by the finaliser of splitmix64."""
    padded = torch.nn.functional.pad(octets, (0, -len(octets) % 8))
    total, first = 0, 1
    for words in padded.view(torch.int64).split(_BLOCK):
        places = torch.arange(first, first + len(words), device=octets.device)
        mixed = words + places * _signed(_GOLDEN)
        mixed = (mixed ^ _shifted(mixed, 30)) * _signed(_FIRST)
        mixed = (mixed ^ _shifted(mixed, 27)) * _signed(_SECOND)
        total += int((mixed ^ _shifted(mixed, 31)).sum())
        first += len(words)
    return total % (1 << 64)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Shifted to the right with zeros; torch itself would fill in the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(constant: int) -> int:
    """The same 64 bits as torch's integers read them."""
    return constant - (1 << 64)
