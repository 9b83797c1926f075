"""Which positions are computed, and what is kept of a forward pass for its backward pass."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mlp_interp.models.norm import Norm

__all__ = ["Normed", "Saved", "Span", "Tape"]


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
class Normed:
    """A norm's input and statistics, without scale and shift.

    Attributes:
        norm: Which norm.
        x: What was normalised.
        mean: What was taken out of it, ``[..., 1]``.
        rstd: What it was then multiplied by, alike.
    """

    norm: Norm
    x: Tensor
    mean: Tensor
    rstd: Tensor

    @classmethod
    def of(cls, x: Tensor, norm: Norm) -> tuple["Normed", Tensor]:
        """Normalise; gives the statistics and the result."""
        if norm.kind == "layer":
            y, mean, rstd = torch.native_layer_norm(x, [x.shape[-1]], None, None, norm.eps)
            return cls(norm, x, mean, rstd), y
        rstd = 1 / norm.scale(x)
        return cls(norm, x, torch.zeros_like(rstd), rstd), x * rstd

    def backward(self, grad: Tensor) -> Tensor:
        """From the gradient at the output to that at the input."""
        if self.norm.kind == "none":
            return grad
        if self.norm.kind == "rms":
            y = self.x * self.rstd
            return self.rstd * (grad - y * (grad * y).mean(-1, keepdim=True))
        return torch.ops.aten.native_layer_norm_backward(
            grad, self.x, [self.x.shape[-1]], self.mean, self.rstd, None, None, [True, False, False]
        )[0]

    def backward_heads(self, grad: Tensor, along: Tensor, matrices: Tensor) -> Tensor:
        """From the gradient at what each head reads to that at the input through it alone.

        Products with the stream are taken where they are small, in the heads' own dimensions.

        Args:
            grad: Gradient at what the heads read, ``[item, row, head, d_head]``.
            along: Its product with what they read, ``[item, row, head]``.
            matrices: What they read the normalised input with, ``[head, d_head, d_model]``.

        Returns:
            ``[head, item, row, d_model]``.
        """
        y = (self.x - self.mean) * self.rstd
        if self.norm.kind == "none":
            along = torch.zeros_like(along)  # nothing is divided by what grows along the stream
        along = (along * self.rstd / -y.shape[-1]).movedim(-1, 0).unsqueeze(-1)
        each = (grad * self.rstd.unsqueeze(-1)).movedim(-2, 0)
        found = along * y
        # In place: no second array of the size of the result.
        found.flatten(1, 2).baddbmm_(each.flatten(1, 2), self.norm.keep(matrices))
        return found

    def __getitem__(self, rows: list[int] | slice) -> "Normed":
        """Some of the rows."""
        return Normed(self.norm, *(x[:, rows] for x in (self.x, self.mean, self.rstd)))

    def items(self, some: slice) -> "Normed":
        """Some of the items."""
        return Normed(self.norm, *(x[some] for x in (self.x, self.mean, self.rstd)))


@dataclass(frozen=True)
class Saved:
    """What one block's backward needs; keys and values include the positions before the span.

    Queries and keys are rotated; heads come before rows, ``[item, head, row, d_head]``. `linear` is
    what a gated MLP multiplies its activations by; `inner` are queries and keys before norms of
    their own, ``[item, row, head, d_head]``, where they have some.
    """

    norm: Normed
    norm2: Normed
    q: Tensor
    k: Tensor
    v: Tensor
    pattern: Tensor
    pre: Tensor
    linear: Tensor | None = None
    inner: dict[str, Normed] | None = None

    def items(self, some: slice) -> "Saved":
        """What a backward of some of the items needs."""
        norm = self.norm.items(some)
        norm2 = norm if self.norm2 is self.norm else self.norm2.items(some)
        rest = (self.q, self.k, self.v, self.pattern, self.pre)
        linear = None if self.linear is None else self.linear[some]
        inner = self.inner and {name: x.items(some) for name, x in self.inner.items()}
        return Saved(norm, norm2, *(x[some] for x in rest), linear=linear, inner=inner)


@dataclass(frozen=True)
class Tape:
    """What a backward pass needs of a forward pass: the blocks, and the final streams read."""

    span: Span
    saved: list[Saved]
    final: Tensor

    def items(self, some: slice) -> "Tape":
        """The tape of some of the items."""
        return Tape(self.span, [saved.items(some) for saved in self.saved], self.final[some])
