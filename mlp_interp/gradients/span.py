"""Which positions are computed, and what is kept of a forward pass for its backward pass."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Norm", "Saved", "Span", "Tape"]


@dataclass(frozen=True)
class Span:
    """Which positions are computed.

    Attributes:
        first: Before it clean and corrupted runs are the same.
        stop: After the last position that is read.
        read: The positions that the metric reads, in order, each once.
    """

    first: int
    stop: int
    read: tuple[int, ...]

    @property
    def rows(self) -> list[int]:
        """All positions that are computed."""
        return list(range(self.first, self.stop))

    def outputs(self, last: bool) -> list[int]:
        """Positions at which a block's output matters: in the last block those that are read."""
        return list(self.read) if last else self.rows


@dataclass(frozen=True)
class Norm:
    """A LayerNorm's input and statistics, without scale and shift."""

    x: Tensor
    mean: Tensor
    rstd: Tensor

    @classmethod
    def of(cls, x: Tensor, eps: float) -> tuple["Norm", Tensor]:
        """Normalise; gives the statistics and the result."""
        y, mean, rstd = torch.native_layer_norm(x, [x.shape[-1]], None, None, eps)
        return cls(x, mean, rstd), y

    def backward(self, grad: Tensor) -> Tensor:
        """From the gradient at the output to that at the input."""
        return torch.ops.aten.native_layer_norm_backward(
            grad, self.x, [self.x.shape[-1]], self.mean, self.rstd, None, None, [True, False, False]
        )[0]

    def backward_heads(self, grad: Tensor) -> Tensor:
        """The same for ``[head, *x.shape]`` at once; overwrites `grad`."""
        y = (self.x - self.mean) * self.rstd
        along = torch.einsum("h...d,...d->h...", grad, y).unsqueeze(-1) / -y.shape[-1]
        grad -= grad.mean(-1, keepdim=True)
        return grad.addcmul_(along, y).mul_(self.rstd)

    def __getitem__(self, rows: list[int] | slice) -> "Norm":
        """Some of the rows."""
        return Norm(self.x[:, rows], self.mean[:, rows], self.rstd[:, rows])


@dataclass(frozen=True)
class Saved:
    """What one block's backward needs; keys and values include the positions before the span."""

    norm: Norm
    norm2: Norm
    q: Tensor
    k: Tensor
    v: Tensor
    pattern: Tensor
    pre: Tensor


@dataclass(frozen=True)
class Tape:
    """What a backward pass needs of a forward pass: the blocks, and the final streams read."""

    span: Span
    saved: list[Saved]
    final: Tensor
