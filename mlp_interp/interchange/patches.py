"""A grid of exchanges as patched runs of the base run."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mlp_interp.interchange.exchange import Exchange
from mlp_interp.interchange.grid import Grid
from mlp_interp.runs import Frozen, PatchedRun, Run
from mlp_interp.sites import Site

__all__ = ["Patch", "Patches", "entered", "spans", "whole"]

Patch = tuple[tuple[int, ...], PatchedRun]
"""The place of a value, the cell's and then the prompt, and the run that it is read from."""


@dataclass(frozen=True)
class Patches:
    """Every patch of a grid that changes anything, layer by layer.

    Attributes:
        grid: Which patches.
        exchange: The two runs, by the lean forward.
    """

    grid: Grid
    exchange: Exchange

    def __iter__(self) -> Iterator[Patch]:
        for number, name in enumerate(self.grid.sites):
            for place, layer in enumerate(self.grid.layers):
                where = (number, place)
                if self.grid.family == "stream":
                    yield from self._streams(where, name, layer)
                elif self.grid.family == "neuron":
                    yield from self._neurons(where, name, layer)
                elif name in ("k", "v") and self.grid.positions is not None:
                    yield from self._single_keys(where, name, layer)
                else:
                    yield from self._heads(where, name, layer)

    def _streams(self, where: tuple[int, ...], name: str, layer: int) -> Iterator[Patch]:
        """A vector at each position is exchanged: whatever the site, a new stream from it on."""
        base, pair = self.exchange.base, self.exchange.pair
        window = self.grid.window_at(layer)
        first = window[0]
        taken, own = pair(name, first)
        differs = (taken != own).any(-1)
        for each in window[1:]:
            differs |= torch.ne(*pair(name, each)).any(-1)
        entry, stream = entered(base, Site(name, first), taken - own)
        if name in ("resid_pre", "resid_post"):
            stream = taken  # to the last bit
        for suffix, prompt, positions in spans(differs, self.grid.positions):
            frozen = tuple(
                Frozen(each, name, positions.start, pair(name, each)[0][prompt, positions])
                for each in window[1:]
            )
            run = PatchedRun(prompt, entry, positions.start, stream[prompt, positions], frozen)
            yield (*where, *suffix, prompt), run

    def _heads(self, where: tuple[int, ...], name: str, layer: int) -> Iterator[Patch]:
        """Heads' outputs with q, pattern or z exchanged by position, or with any of them at all."""
        base = self.exchange.base
        change = self.exchange.z(layer, [name]) - base.attention(layer).z
        differs = self.exchange.differs(name, layer)
        for place, head in enumerate(self.grid.units or ()):
            stream = base.with_attention(layer, self._written(name, layer, head, change))
            for suffix, prompt, positions in spans(differs[:, :, head], self.grid.positions):
                run = PatchedRun(prompt, layer + 1, positions.start, stream[prompt, positions])
                yield (*where, place, *suffix, prompt), run

    def _single_keys(self, where: tuple[int, ...], name: str, layer: int) -> Iterator[Patch]:
        """A key or value at one position, which every later position may read."""
        base = self.exchange.base
        scores, differs = base.scores(layer), self.exchange.differs(name, layer)
        for place, position in enumerate(self.grid.positions or ()):
            if position >= base.length:
                continue  # after all that the metric reads
            change = (
                self._change_by_value(scores.softmax(-1), layer, position)
                if name == "v"
                else self._change_by_key(scores, layer, position)
            )
            for number, head in enumerate(self.grid.units or ()):
                written = self._written(name, layer, head, change)
                later = (slice(None), slice(position, None))
                stream = base.with_attention(layer, written, later)
                for prompt in differs[:, position, head].nonzero()[:, 0].tolist():
                    run = PatchedRun(prompt, layer + 1, position, stream[prompt])
                    yield (*where, number, place, prompt), run

    def _change_by_value(
        self, pattern: Float[Tensor, "prompt head query key"], layer: int, position: int
    ) -> Float[Tensor, "prompt later head d_head"]:
        """Of heads' mixes from `position` on when that position's value is the source's."""
        taken, own = self.exchange.attention(layer)
        change = self._shared(taken.v[:, position] - own.v[:, position], 1)[:, None]
        return pattern[:, :, position:, position].transpose(1, 2)[..., None] * change

    def _change_by_key(
        self, scores: Float[Tensor, "prompt head query key"], layer: int, position: int
    ) -> Float[Tensor, "prompt later head d_head"]:
        """Of heads' mixes from `position` on when that position's key is the source's."""
        taken, own = self.exchange.attention(layer)
        scores = scores[:, :, position:].clone()
        q, key = own.q[:, position:], self._shared(taken.k[:, position], 1)
        scores[..., position] = torch.einsum("pqhd,phd->phq", q, key)
        scores[..., position] *= self.exchange.base.lean.attention_scale
        mixed = torch.einsum("phqk,pkhd->pqhd", scores.softmax(-1), self._shared(own.v, 2))
        return mixed - own.z[:, position:]

    def _neurons(self, where: tuple[int, ...], name: str, layer: int) -> Iterator[Patch]:
        base = self.exchange.base
        taken, own = self.exchange.pair(name, layer)
        if name == "pre":
            taken, own = base.lean.activate(taken), base.lean.activate(own)
        change, vectors = taken - own, base.lean.projections(layer).mlp_out.T
        if name != "post" and base.weights.gated:  # the other factor stays the base run's
            read = base.lean.normalize(base.read_by_mlp(layer))
            linear: Any = base.lean.linear(layer, read)
            activated = base.lean.activate(base.lean.pre(layer, read))
            change = change * (linear if name == "pre" else activated)
        after = base.streams[layer + 1]
        for place, neuron in enumerate(self.grid.units or ()):
            for suffix, prompt, positions in spans(change[..., neuron] != 0, self.grid.positions):
                written = change[prompt, positions, neuron, None] * vectors[neuron]
                stream = after[prompt, positions] + written
                run = PatchedRun(prompt, layer + 1, positions.start, stream)
                yield (*where, place, *suffix, prompt), run

    def _shared(self, x: Tensor, dim: int) -> Tensor:
        return self.exchange.base.lean.shared(x, dim)

    def _written(
        self, name: str, layer: int, head: int, change: Float[Tensor, "prompt pos head d_head"]
    ) -> Float[Tensor, "prompt pos d_model"]:
        """What changes of mixes write: of one head, or of all that read one of its keys, values."""
        weights = self.exchange.base.weights
        together = weights.n_heads // weights.heads_at(name)
        heads = slice(head * together, (head + 1) * together)
        rows = slice(heads.start * weights.d_head, heads.stop * weights.d_head)
        out = self.exchange.base.lean.projections(layer).out.T[rows]
        return change[:, :, heads].flatten(2) @ out


def whole(base: Run, stream: Float[Tensor, "#prompt pos d_model"]) -> list[Patch]:
    """From the first block on, another stream; of each prompt."""
    stream = stream.expand_as(base.streams[0])
    return [((i,), PatchedRun(i, 0, 0, stream[i])) for i in range(base.batch)]


def entered(
    base: Run, site: Site, change: Float[Tensor, "prompt pos d_model"]
) -> tuple[int, Float[Tensor, "prompt pos d_model"]]:
    """The first block that reads a change of a place of the stream, and what it then reads."""
    layer = site.layer or 0
    if site.name == "resid_pre":
        return layer, base.streams[layer] + change
    if site.name == "attn_out":
        return layer + 1, base.with_attention(layer, change)
    return layer + 1, base.streams[layer + 1] + change


def spans(
    differs: Bool[Tensor, "prompt pos"], positions: Sequence[int] | None
) -> Iterator[tuple[tuple[int, ...], int, slice]]:
    """What changes in each cell: its place on the position axis, the prompt, the positions.

    Args:
        differs: Where anything does.
        positions: Those that are exchanged one at a time; None for all together.
    """
    rows = differs.tolist()
    if positions is None:
        for prompt, row in enumerate(rows):
            if True in row:
                yield (), prompt, slice(row.index(True), len(row))
        return
    for place, position in enumerate(positions):
        for prompt, row in enumerate(rows):
            if position < len(row) and row[position]:
                yield (place,), prompt, slice(position, position + 1)
