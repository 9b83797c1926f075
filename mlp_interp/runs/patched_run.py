"""What a patched run is: where it leaves its base run, and what is frozen along it."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

__all__ = ["Frozen", "PatchedRun"]


@dataclass(frozen=True, eq=False)
class Frozen:
    """An output of a block that is held fixed at some positions of a patched run.

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
class PatchedRun:
    """A run that leaves its base run by a change of the stream at the input of one block.

    Attributes:
        prompt: Which prompt of the base run it leaves.
        layer: The block at whose input the stream differs; the number of blocks for the final
            stream.
        start: The first position that differs.
        stream: The new stream at `start` and the positions after it, ``[changed, d_model]``. Beyond
            them the stream at this block's input is the base run's.
        frozen: Outputs held fixed in this block and later ones, at `start` or later positions.
    """

    prompt: int
    layer: int
    start: int
    stream: Float[Tensor, "changed d_model"]
    frozen: tuple[Frozen, ...] = ()

    @property
    def narrow(self) -> bool:
        """Whether just one position differs, so that its block is mostly the base run's own."""
        return self.stream.shape[0] == 1 and all(
            one.layer != self.layer or (one.start == self.start and len(one.value) == 1)
            for one in self.frozen
        )

    @property
    def whole_from(self) -> int:
        """The first block that has to be run at every position from `start` on."""
        return self.layer + 1 if self.narrow else self.layer
