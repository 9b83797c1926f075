"""What a branch is: where it leaves the trunk, and what is held fixed along it."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

__all__ = ["Branch", "Pin"]


@dataclass(frozen=True, eq=False)
class Pin:
    """An output of a block that is held fixed at some positions of a branch.

    Attributes:
        layer: Which block.
        name: Which output: ``attn_out`` or ``mlp_out``.
        start: The first of the positions.
        value: What it is held at there and at the positions that follow.
    """

    layer: int
    name: str
    start: int
    value: Float[Tensor, "held d_model"]


@dataclass(frozen=True, eq=False)
class Branch:
    """A change of the stream at the input of one block, from which a run goes on by itself.

    Attributes:
        prompt: Which prompt of the trunk it leaves.
        layer: The block at whose input the stream differs; the number of blocks for the final
            stream.
        start: The first position that differs.
        stream: The new stream at `start` and the positions after it, ``[changed, d_model]``. Beyond
            them the stream at this block's input is the trunk's.
        pins: Outputs held fixed in this block and later ones, at `start` or later positions.
    """

    prompt: int
    layer: int
    start: int
    stream: Float[Tensor, "changed d_model"]
    pins: tuple[Pin, ...] = ()

    @property
    def narrow(self) -> bool:
        """Whether just one position differs, so that its block is mostly the trunk's own."""
        return self.stream.shape[0] == 1 and all(
            pin.layer != self.layer or (pin.start == self.start and len(pin.value) == 1)
            for pin in self.pins
        )

    @property
    def whole_from(self) -> int:
        """The first block that has to be run at every position from `start` on."""
        return self.layer + 1 if self.narrow else self.layer
