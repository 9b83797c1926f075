"""Some patched runs that go through the blocks together.

One run is a few rows, one for each position from its first changed one on; here three runs of a
text of four positions, changed at positions 1, 2 and 2::

    row       0  1  2    3  4    5  6
    run       0  0  0    1  1    2  2
    position  1  2  3    2  3    2  3

Matrix products take all rows at once. Attention needs each run's own keys and values: a copy of the
base run's, as far as they are read, with the run's rows written over them; but where it is read at
few positions only (`FewQueries`).
"""

from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.runs.entry import Entries
from mlp_interp.runs.few_queries import FewQueries
from mlp_interp.runs.patched_run import PatchedRun
from mlp_interp.runs.recorded import Run
from mlp_interp.runs.rows import Rows

__all__ = ["Group"]


class Group:
    """Patched runs in the order in which they join: sorted by `Group.order`.

    Args:
        base: The run that they leave.
        runs: The runs.
        entries: What they compute at the positions by which they leave it.
        read: The positions wanted of the final stream.
    """

    def __init__(
        self, base: Run, runs: Sequence[PatchedRun], entries: Entries, read: Sequence[int]
    ) -> None:
        self.base, self.forward, self.runs, self.entries = base, base.lean, runs, entries
        like = base.final
        self.every = Rows.every(runs, base.length, like.device)
        self.read = self.every.at(read)
        self.prompt = self.every.item.new_tensor([run.prompt for run in runs])
        self.start = self.every.item.new_tensor([run.start for run in runs])
        self.end = [0, *(base.length - self.start).cumsum(0).tolist()]
        self.prompts, self.starts = [run.prompt for run in runs], [run.start for run in runs]
        self.in_base = self.prompt[self.every.item] * base.length + self.every.pos
        self.rotary = self.forward.rotary(self.every.pos, like=like)
        self.x = like.new_empty(len(self.every.index), like.shape[-1])
        self.frozen = self._frozen()

    @staticmethod
    def order(run: PatchedRun) -> tuple[int, bool]:
        """At each layer: who runs it whole, then who leaves the base run at it by one position."""
        return run.whole_from, not run.narrow

    def run(self) -> Float[Tensor, "run read d_model"]:
        """Final streams at the positions read."""
        final = self.base.final[self.prompt][:, self.read.positions]
        n_layers = self.base.n_layers
        for layer in range(min(run.layer for run in self.runs), n_layers):
            whole = sum(run.whole_from <= layer for run in self.runs)
            reached = sum(run.layer <= layer for run in self.runs)
            self._enter(layer, whole)
            last = layer == n_layers - 1
            out = self.read if last else self.every
            old, new = out.between(0, whole), out.between(whole, reached)
            if whole:
                ends = self._block(layer, whole, old)
                if last:
                    final[old.item, old.column] = ends
            if reached > whole:
                ends = self._first_block(layer, whole, reached, new)
                if last:
                    final[new.item, new.column] = ends
                else:
                    self.x[self.end[whole] : self.end[reached]] = ends
        self._enter_final(final)
        return final

    def _enter(self, layer: int, whole: int) -> None:
        """Write the streams of the runs that differ at several positions from here on."""
        for i, run in enumerate(self.runs[:whole]):
            if run.layer == layer and not run.narrow:
                rows, changed = self.x[self.end[i] : self.end[i + 1]], len(run.stream)
                rows[:changed] = run.stream
                rows[changed:] = self.base.streams[layer][run.prompt, run.start + changed :]

    def _enter_final(self, final: Float[Tensor, "run read d_model"]) -> None:
        """Write the changes of the final stream itself."""
        positions = self.read.positions.tolist()
        for i, run in enumerate(self.runs):
            if run.layer < self.base.n_layers:
                continue
            for column, position in enumerate(positions):
                if 0 <= position - run.start < len(run.stream):
                    final[i, column] = run.stream[position - run.start]

    def _block(self, layer: int, whole: int, out: Rows) -> Float[Tensor, "row d_model"]:
        """A block at all rows of the first `whole` runs; its output at the rows `out`.

        Where those are all, it takes the place of their streams.
        """
        forward, p = self.forward, self.forward.projections(layer)
        rows = slice(self.end[whole])
        x = self.x[rows]
        normalized = forward.normalize(x)
        if len(out.index) == len(x):
            q, k, v = forward.heads(layer, normalized)
            z = self._attend_whole(layer, whole, out, q, k, v)
        else:  # the last block: few rows are read
            x, read = x[out.index], normalized[out.index]
            q = forward.queries(layer, read)
            if FewQueries.pay(forward, layer, len(out.positions)):
                z = self._attend_few(layer, whole, out, q, normalized)
            else:
                k, v = forward.keys_and_values(layer, normalized)
                z = self._attend_whole(layer, whole, out, q, k, v)
            normalized = read
        return self._finish(layer, x, normalized, p.project("out", z.flatten(1)), out)

    def _attend_whole(
        self, layer: int, whole: int, out: Rows, q: Tensor, k: Tensor, v: Tensor
    ) -> Float[Tensor, "row head d_head"]:
        """Mixes of values of the first `whole` runs at the rows `out`, keys and values at all."""
        rows, changed = slice(self.end[whole]), max(self.starts[:whole])
        attention = self.base.attention(layer)
        keys = self._copies(attention.k, 0, whole, changed)
        values = self._copies(attention.v, 0, whole, changed)
        own = self.every.item[rows] * self.base.length + self.every.pos[rows]
        k = self.forward.turned(layer, "k", k, self.rotary[rows])
        keys.flatten(0, 1).index_copy_(0, own, k)
        values.flatten(0, 1).index_copy_(0, own, v)
        z = self._attend(self._asked(layer, whole, out, q), keys, values, out.positions)
        return z.flatten(0, 1).index_select(0, out.place)

    def _attend_few(
        self, layer: int, whole: int, out: Rows, q: Tensor, normalized: Tensor
    ) -> Float[Tensor, "row head d_head"]:
        """The same where few rows are read."""
        few = FewQueries(
            self.forward,
            layer,
            self.base.attention(layer),
            self.prompt[:whole],
            self.start[:whole],
        )
        queries = self._asked(layer, whole, out, q)
        rows = self.every.between(0, whole)
        z = few.z(queries, out.positions, normalized, rows, self.rotary[rows.index])
        return z.flatten(0, 1).index_select(0, out.place)

    def _asked(self, layer: int, whole: int, out: Rows, q: Tensor) -> Tensor:
        """Queries of the rows `out`, rotated, by run and position; zeros where a run has none."""
        return out.padded(self.forward.turned(layer, "q", q, self.rotary[out.index]), whole)

    def _first_block(
        self, layer: int, first: int, last: int, out: Rows
    ) -> Float[Tensor, "row d_model"]:
        """The block at whose input runs `first` to `last` differ at one position each.

        That position's keys and values change, hence what later positions attend to; their own
        queries, and in parallel blocks their MLPs, are the base run's.
        """
        p, base, attention = self.forward.projections(layer), self.base, self.base.attention(layer)
        start, entry = self.start[first:last], self.entries[first:last]
        each = torch.arange(last - first, device=start.device)
        keys, values = (
            self._copies(x, first, last, base.length) for x in (attention.k, attention.v)
        )
        keys[each, start], values[each, start] = entry.k, entry.v
        queries = attention.q[self.prompt[first:last, None], out.positions]
        own, column = (start[:, None] == out.positions).nonzero(as_tuple=True)
        queries[own, column] = entry.q[own]
        z = self._attend(queries, keys, values, out.positions).flatten(0, 1)
        z = z.index_select(0, out.place - first * len(out.positions))
        here = (out.pos == self.start[out.item]).nonzero()[:, 0]
        new = out.item[here] - first
        if not self.forward.weights.parallel:
            resid = self._of_base(base.streams[layer], out)
            resid[here] = entry.stream[new]
            return self._finish(layer, resid, None, p.project("out", z.flatten(1)), out)
        # The difference goes through the matrix: where nothing changes, nothing moves.
        z -= self._of_base(attention.z, out).index_fill_(0, here, 0)
        attn_out = F.linear(z.flatten(1), p.out)
        ends = self._of_base(base.streams[layer + 1], out).add_(attn_out)
        own, mlp_out = out.where(here), entry.mlp_out[new]
        attn_out = self._pinned("attn_out", layer, attn_out[here] + p.out_bias, own)
        mlp_out = self._pinned("mlp_out", layer, mlp_out, own)
        ends[here] = entry.stream[new] + attn_out + mlp_out
        return ends

    def _finish(
        self,
        layer: int,
        resid: Float[Tensor, "row d_model"],
        normalized: Float[Tensor, "row d_model"] | None,
        attn_out: Float[Tensor, "row d_model"],
        out: Rows,
    ) -> Float[Tensor, "row d_model"]:
        """From a block's attention output to the stream after it, at the rows `out`, in place."""
        forward = self.forward
        attn_out = self._pinned("attn_out", layer, attn_out, out)
        if forward.weights.parallel and normalized is not None:
            # Before the stream changes: without a norm that is what the MLP reads, not a copy.
            mlp_out = forward.mlp_of(layer, normalized)
            resid += attn_out
        else:
            resid += attn_out
            mlp_out = forward.mlp_of(layer, forward.normalize(resid))
        resid += self._pinned("mlp_out", layer, mlp_out, out)
        return resid

    def _pinned(
        self, name: str, layer: int, values: Float[Tensor, "row d_model"], out: Rows
    ) -> Float[Tensor, "row d_model"]:
        """The same with what is held fixed there put in place."""
        if (name, layer) in self.frozen and len(out.index):
            rows, held = self.frozen[name, layer]
            at = torch.searchsorted(out.index, rows).clamp_max(len(out.index) - 1)
            given_out = out.index[at] == rows
            values[at[given_out]] = held[given_out]
        return values

    def _frozen(self) -> dict[tuple[str, int], tuple[Tensor, Tensor]]:
        """For each output that is frozen somewhere: which rows, and at what."""
        places: dict[tuple[str, int], list[tuple[int, Tensor]]] = defaultdict(list)
        for i, run in enumerate(self.runs):
            for one in run.frozen:
                row = self.end[i] + one.start - run.start
                places[one.name, one.layer] += [(row + j, v) for j, v in enumerate(one.value)]
        return {
            place: (
                self.every.index.new_tensor([r for r, _ in held]),
                torch.stack([v for _, v in held]),
            )
            for place, held in places.items()
        }

    def _copies(
        self, x: Float[Tensor, "prompt pos kv_head d_head"], first: int, last: int, before: int
    ) -> Float[Tensor, "run pos kv_head d_head"]:
        """For each run those of its prompt before a position, and room for others from it on."""
        prompts = set(self.prompts[first:last])
        copies = x.new_empty(last - first, *x.shape[1:])
        if len(prompts) == 1:
            copies[:, :before] = x[prompts.pop(), :before]
        else:
            copies[:, :before] = x[:, :before].index_select(0, self.prompt[first:last])
        return copies

    def _of_base(self, x: Float[Tensor, "prompt pos *rest"], out: Rows) -> Tensor:
        """What the base run has at the rows `out`."""
        return x.flatten(0, 1).index_select(0, self.in_base[out.index])

    def _attend(
        self,
        q: Float[Tensor, "run query head d_head"],
        k: Float[Tensor, "run pos kv_head d_head"],
        v: Float[Tensor, "run pos kv_head d_head"],
        positions: Int[Tensor, " query"],
    ) -> Float[Tensor, "run query head d_head"]:
        reads = torch.arange(k.shape[1], device=k.device) <= positions[:, None]
        return self.forward.mix(q, k, v, mask=reads)
