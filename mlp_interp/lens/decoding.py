"""From the streams of a run to what the readout is given, by a lens."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.lens.lens import Lens
from mlp_interp.models import Forward, HookForward
from mlp_interp.models.forward import keep
from mlp_interp.models.norm import Norm
from mlp_interp.models.unembed import Unembed
from mlp_interp.results import single

__all__ = ["Decoded", "Rows"]

Rows = tuple[Int[Tensor, " row"], Int[Tensor, " row"]]
"""Positions of a batch: which text and which position of it, for each."""

_TOGETHER = 1024  # positions that go through the last blocks at a time
_OTHER = {"block": (), "attn": ("mlp_out",), "mlp": ("attn_out",)}


@dataclass(frozen=True)
class Decoded:
    """The streams of some layers as a lens gives them to the readout.

    Attributes:
        lens: The lens.
        norm: The final norm.
        streams: By layer, the stream, or what the last blocks make of it; the final one last.
    """

    lens: Lens
    norm: Norm
    streams: dict[int, Float[Tensor, "batch pos d_model"]]

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        forward: Forward | HookForward,
        unembed: Unembed,
        lens: Lens,
        streams: Sequence[Float[Tensor, "batch pos d_model"]],
        layers: Sequence[int],
    ) -> "Decoded":
        """Run the last blocks where the lens has some.

        Args:
            forward: The model's forward pass.
            unembed: The readout.
            lens: The lens.
            streams: Those that enter each block, and the final one.
            layers: Which are wanted, the final one among them.
        """
        final = len(streams) - 1
        early = [layer for layer in layers if layer != final]
        found = {layer: streams[layer] for layer in layers}
        if lens.blocks and early:
            batch, length = streams[0].shape[:2]
            each = max(1, _TOGETHER // (batch * length))
            for start in range(0, len(early), each):
                some = early[start : start + each]
                joined = torch.cat([streams[layer] for layer in some])
                ran = _through(forward, joined, final - lens.blocks, lens.part)
                found |= dict(zip(some, ran.split(batch), strict=True))
        return cls(lens, unembed.norm, found)

    def normalized(self, layer: int, rows: Rows) -> Float[Tensor, "row d_model"]:
        """What the readout is given of a layer at some positions, normalised."""
        x = single(self.streams[layer][rows])
        x = self.norm.keep(x) if self.lens.centred else x
        return self.norm.standardize(self.lens.translate(x, layer))

    def reference(self, rows: Rows) -> Float[Tensor, "row d_model"]:
        """What the model's own readout is given there."""
        return self.norm.standardize(single(self.streams[max(self.streams)][rows]))


def _through(
    forward: Forward | HookForward, stream: Tensor, start: int, part: str
) -> Float[Tensor, "batch pos d_model"]:
    """A stream after the last blocks, or what one half of each makes of it."""
    observe = partial(_without, _OTHER[part]) if _OTHER[part] else keep
    return forward.run(stream, start=start, observe=observe)


def _without(names: Sequence[str], name: str, _layer: int, x: Tensor) -> Tensor:
    return torch.zeros_like(x) if name in names else x
