"""From the streams of a run to what the readout is given, by a lens."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.lens.context import in_clean_context
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
            found |= _decoded(forward, lens, streams, early)
        return cls(lens, unembed.norm, found)

    def normalized(self, layer: int, rows: Rows) -> Float[Tensor, "row d_model"]:
        """What the readout is given of a layer at some positions, normalised."""
        x = single(self.streams[layer][rows])
        x = self.norm.keep(x) if self.lens.centred else x
        return self.norm.standardize(self.lens.translate(x, layer))

    def reference(self, rows: Rows) -> Float[Tensor, "row d_model"]:
        """What the model's own readout is given there."""
        return self.norm.standardize(single(self.streams[max(self.streams)][rows]))


def _decoded(
    forward: Forward | HookForward,
    lens: Lens,
    streams: Sequence[Float[Tensor, "batch pos d_model"]],
    layers: Sequence[int],
) -> dict[int, Float[Tensor, "batch pos d_model"]]:
    """The streams of some layers after the last blocks, or what one half of each makes of them."""
    final, (batch, length) = len(streams) - 1, streams[0].shape[:2]
    start = final - lens.blocks
    left_out = _OTHER[lens.part]
    observe = partial(_without, left_out) if left_out else keep
    found: dict[int, Tensor] = {}
    if lens.context == "clean":
        clean = {layer: streams[layer] for layer in range(start, final)}
        parts = torch.arange(batch).split(max(1, _TOGETHER // length))  # scores are of all pairs
        for layer in layers:
            ran = [
                in_clean_context(
                    forward, {n: x[rows] for n, x in clean.items()}, streams[layer][rows], observe
                )
                for rows in parts
            ]
            found[layer] = torch.cat(ran)
        return found
    each = max(1, _TOGETHER // (batch * length))
    for at in range(0, len(layers), each):
        some = layers[at : at + each]
        joined = torch.cat([streams[layer] for layer in some])
        ran = forward.run(joined, start=start, observe=observe)
        found |= dict(zip(some, ran.split(batch), strict=True))
    return found


def _without(names: Sequence[str], name: str, _layer: int, x: Tensor) -> Tensor:
    return torch.zeros_like(x) if name in names else x
