"""What the stream becomes when activations of one run take the place of another's."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from mlp_interp.patching.cells import Grid
from mlp_interp.runs import Branch, Pin, Trunk
from mlp_interp.sites import Site

__all__ = ["Exchange", "Job", "kept_sites"]

Job = tuple[tuple[int, ...], Branch]
"""A branch to run and the place of its value: the cell's, then the prompt."""

_KEPT = {"attn_out", "mlp_out", "pre", "post"}


def kept_sites(grid: Grid) -> set[str]:
    """Activations that both runs must keep for this grid."""
    return _KEPT & set(grid.sites)


@dataclass(frozen=True)
class Exchange:
    """Two runs and the grid of exchanges between them.

    Attributes:
        grid: Which patches.
        base: The run that is patched.
        source: The run whose activations are put in, of as many prompts, or of one for all.
    """

    grid: Grid
    base: Trunk
    source: Trunk

    def jobs(self) -> Iterator[Job]:
        """The branches of every patch that changes anything, layer by layer."""
        for number, name in enumerate(self.grid.sites):
            for place, layer in enumerate(self.grid.layers):
                where = (number, place)
                if self.grid.family == "stream":
                    yield from self._stream_jobs(where, name, layer)
                elif self.grid.family == "neuron":
                    yield from self._neuron_jobs(where, name, layer)
                elif name in ("k", "v") and self.grid.positions is not None:
                    yield from self._source_jobs(where, name, layer)
                else:
                    yield from self._head_jobs(where, name, layer)

    def whole(self, prompt: int, *, changed: bool) -> Branch:
        """A branch from the first block on: everything of the source, or of the base itself."""
        run = self.source if changed else self.base
        stream = run.streams[0].expand_as(self.base.streams[0])[prompt]
        return Branch(prompt, 0, 0, stream)

    def _stream_jobs(self, where: tuple[int, ...], name: str, layer: int) -> Iterator[Job]:
        """A vector at each position is exchanged: whatever the site, a new stream from it on."""
        window = self.grid.window_at(layer)
        first = window[0]
        entry = first if name == "resid_pre" else first + 1
        differs = torch.zeros_like(self.base.streams[0][..., 0], dtype=torch.bool)
        for each in window:
            differs |= (self._taken(name, each) != self._own(name, each)).any(-1)
        if name in ("resid_pre", "resid_post"):
            stream = self.source.streams[entry].expand_as(self.base.streams[entry])
        elif name == "attn_out":
            change = self._taken(name, first) - self._own(name, first)
            stream = self.base.with_attention(first, change)
        else:
            stream = self.base.streams[entry] + (self._taken(name, first) - self._own(name, first))
        for suffix, prompt, positions in self._spans(differs):
            pins = tuple(
                Pin(each, name, positions.start, self._taken(name, each)[prompt, positions])
                for each in window[1:]
            )
            branch = Branch(prompt, entry, positions.start, stream[prompt, positions], pins)
            yield (*where, *suffix, prompt), branch

    def _head_jobs(self, where: tuple[int, ...], name: str, layer: int) -> Iterator[Job]:
        """Heads' outputs with q, pattern or z exchanged by position, or with any of them at all."""
        change = self._changed_z(name, layer) - self.base.z[layer]
        differs = self._heads_differ(name, layer)
        for place, head in enumerate(self.grid.units or ()):
            written = change[:, :, head] @ self._out(layer, head)
            stream = self.base.with_attention(layer, written)
            for suffix, prompt, positions in self._spans(differs[:, :, head]):
                branch = Branch(prompt, layer + 1, positions.start, stream[prompt, positions])
                yield (*where, place, *suffix, prompt), branch

    def _source_jobs(self, where: tuple[int, ...], name: str, layer: int) -> Iterator[Job]:
        """A key or value at one position, which every later position may read."""
        scores, differs = self.base.scores(layer), self._heads_differ(name, layer)
        pattern = scores.softmax(-1)
        for place, position in enumerate(self.grid.positions or ()):
            if position >= self.base.length:
                continue  # after all that the metric reads
            if name == "v":
                new = self._expanded(self.source.v)[layer][:, position]
                change_v = (new - self.base.v[layer][:, position])[:, None]
                weight = pattern[:, :, position:, position].transpose(1, 2)[..., None]
                change = weight * change_v
            else:
                z = self._z_with_key(scores, layer, position)
                change = z - self.base.z[layer][:, position:]
            for number, head in enumerate(self.grid.units or ()):
                written = change[:, :, head] @ self._out(layer, head)
                stream = self.base.with_attention(
                    layer, written, (slice(None), slice(position, None))
                )
                for prompt in differs[:, position, head].nonzero()[:, 0].tolist():
                    branch = Branch(prompt, layer + 1, position, stream[prompt])
                    yield (*where, number, place, prompt), branch

    def _z_with_key(
        self, scores: Float[Tensor, "prompt head query key"], layer: int, position: int
    ) -> Float[Tensor, "prompt later head d_head"]:
        """Heads' outputs from `position` on when that position's key is the source's."""
        q = self.base.q[layer][:, position:]
        key = self._expanded(self.source.k)[layer][:, position]
        scores = scores[:, :, position:].clone()
        scores[..., position] = torch.einsum("pqhd,phd->phq", q, key)
        scores[..., position] *= self.base.forward.attention_scale
        return torch.einsum("phqk,pkhd->pqhd", scores.softmax(-1), self.base.v[layer])

    def _heads_differ(self, name: str, layer: int) -> Bool[Tensor, "prompt pos head"]:
        """Where the activation itself differs between the runs."""
        if name == "pattern":
            differs = self.source.pattern(layer) != self.base.pattern(layer)
            return differs.any(-1).transpose(1, 2)
        taken, own = self._expanded(getattr(self.source, name))[layer], getattr(self.base, name)
        return (taken != own[layer]).any(-1)

    def _changed_z(self, name: str, layer: int) -> Float[Tensor, "prompt pos head d_head"]:
        """Heads' outputs with one of their inputs taken from the source at every position."""
        if name == "z":
            return self._expanded(self.source.z)[layer]
        if name == "pattern":
            pattern = self.source.pattern(layer)
            return torch.einsum("phqk,pkhd->pqhd", pattern, self.base.v[layer])
        q, k, v = (
            self._expanded(getattr(self.source if name == part else self.base, part))[layer]
            for part in ("q", "k", "v")
        )
        return F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            is_causal=True,
            scale=self.base.forward.attention_scale,
        ).transpose(1, 2)

    def _neuron_jobs(self, where: tuple[int, ...], name: str, layer: int) -> Iterator[Job]:
        forward = self.base.forward
        taken, own = self._taken(name, layer), self._own(name, layer)
        if name == "pre":
            taken, own = forward.activate(taken), forward.activate(own)
        change, vectors = taken - own, forward.projections(layer).mlp_out.T
        entered = self.base.streams[layer + 1]
        for place, neuron in enumerate(self.grid.units or ()):
            for suffix, prompt, positions in self._spans(change[..., neuron] != 0):
                written = change[prompt, positions, neuron, None] * vectors[neuron]
                stream = entered[prompt, positions] + written
                yield (
                    (*where, place, *suffix, prompt),
                    Branch(prompt, layer + 1, positions.start, stream),
                )

    def _spans(
        self, differs: Bool[Tensor, "prompt pos"]
    ) -> Iterator[tuple[tuple[int, ...], int, slice]]:
        """What changes in each cell: its place on the position axis, the prompt, the positions."""
        if self.grid.positions is None:
            for prompt, row in enumerate(differs.tolist()):
                if True in row:
                    yield (), prompt, slice(row.index(True), self.base.length)
            return
        rows = differs.tolist()
        for place, position in enumerate(self.grid.positions):
            for prompt, row in enumerate(rows):
                if position < len(row) and row[position]:
                    yield (place,), prompt, slice(position, position + 1)

    def _taken(self, name: str, layer: int) -> Float[Tensor, "prompt pos width"]:
        return self._activation(self.source, name, layer).expand_as(self._own(name, layer))

    def _own(self, name: str, layer: int) -> Float[Tensor, "prompt pos width"]:
        return self._activation(self.base, name, layer)

    def _activation(self, run: Trunk, name: str, layer: int) -> Float[Tensor, "some pos width"]:
        if name in ("resid_pre", "resid_post"):
            return run.streams[layer + (name == "resid_post")]
        return run.seen[Site(name, layer)]

    def _expanded(self, layers: tuple[Tensor, ...]) -> list[Tensor]:
        return [x.expand(self.base.prompts, *x.shape[1:]) for x in layers]

    def _out(self, layer: int, head: int) -> Float[Tensor, "d_head d_model"]:
        d_head = self.base.forward.weights.d_head
        return self.base.forward.projections(layer).out.T[head * d_head : (head + 1) * d_head]
