"""Some branches that go through the blocks together."""

from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.runs.patched import Branch
from mlp_interp.runs.rows import Rows
from mlp_interp.runs.trunk import Trunk

__all__ = ["Group"]


class Group:
    """Branches in the order in which they join: sorted by `Group.order`.

    Args:
        trunk: What they leave.
        branches: The branches.
        read: The positions wanted of the final stream.
    """

    def __init__(self, trunk: Trunk, branches: Sequence[Branch], read: Sequence[int]) -> None:
        self.trunk, self.forward, self.branches = trunk, trunk.forward, branches
        like = trunk.streams[0]
        self.every = Rows.every(branches, trunk.length, like.device)
        self.read = self.every.at(read)
        self.prompt = self.every.item.new_tensor([b.prompt for b in branches])
        self.start = self.every.item.new_tensor([b.start for b in branches])
        self.end = [0, *(trunk.length - self.start).cumsum(0).tolist()]
        self.rotary = self.forward.rotary(self.every.pos, like=like)
        self.x = like.new_empty(len(self.every.index), like.shape[-1])
        self.pins = self._pins()

    @staticmethod
    def order(branch: Branch) -> tuple[int, bool]:
        """At each layer: who runs it whole, then who leaves the trunk at it by one position."""
        return branch.whole_from, not branch.narrow

    def run(self) -> Float[Tensor, "branch read d_model"]:
        """Final streams at the positions read."""
        final = self.trunk.streams[-1][self.prompt][:, self.read.positions]
        n_layers = self.trunk.n_layers
        for layer in range(min(b.layer for b in self.branches), n_layers):
            whole = sum(b.whole_from <= layer for b in self.branches)
            reached = sum(b.layer <= layer for b in self.branches)
            self._enter(layer, whole)
            out = self.read if layer == n_layers - 1 else self.every
            found = self._block(layer, whole, out.between(0, whole))
            if reached > whole:
                begun = self._first_block(layer, whole, reached, out.between(whole, reached))
                found = torch.cat([found, begun])
            if out is self.every:
                self.x[: len(found)] = found
            else:
                final[out.item[: len(found)], out.column[: len(found)]] = found
        self._enter_final(final)
        return final

    def _enter(self, layer: int, whole: int) -> None:
        """Write the streams of the branches that differ at several positions from here on."""
        for i, branch in enumerate(self.branches[:whole]):
            if branch.layer == layer and not branch.narrow:
                rows, changed = self.x[self.end[i] : self.end[i + 1]], len(branch.stream)
                rows[:changed] = branch.stream
                rows[changed:] = self.trunk.streams[layer][branch.prompt, branch.start + changed :]

    def _enter_final(self, final: Float[Tensor, "branch read d_model"]) -> None:
        """Write the changes of the final stream itself."""
        positions = self.read.positions.tolist()
        for i, branch in enumerate(self.branches):
            if branch.layer < self.trunk.n_layers:
                continue
            for column, position in enumerate(positions):
                if 0 <= position - branch.start < len(branch.stream):
                    final[i, column] = branch.stream[position - branch.start]

    def _block(self, layer: int, whole: int, out: Rows) -> Float[Tensor, "row d_model"]:
        """A block at all rows of the first `whole` branches; its output at the rows `out`."""
        p, d = self.forward.projections(layer), self.x.shape[-1]
        rows = slice(self.end[whole])
        x = self.x[rows]
        normalized = self.forward.normalize(x)
        if len(out.index) == len(x):
            q, k, v = self._heads(F.linear(normalized, p.qkv, p.qkv_bias)).unbind(1)
        else:  # the last block: of most rows only keys and values are read
            k, v = self._heads(F.linear(normalized, p.qkv[d:], p.qkv_bias[d:])).unbind(1)
            x, normalized = x[out.index], normalized[out.index]
            q = self._heads(F.linear(normalized, p.qkv[:d], p.qkv_bias[:d]))[:, 0]
        keys, values = self._trunk_keys(layer, 0, whole)
        own = self.every.item[rows] * self.trunk.length + self.every.pos[rows]
        keys.flatten(0, 1).index_copy_(0, own, self.rotary[rows](k))
        values.flatten(0, 1).index_copy_(0, own, v)
        queries = q.new_zeros(whole, len(out.positions), *q.shape[1:])
        queries[out.item, out.column] = self.rotary[out.index](q)
        z = self._attend(queries, keys, values, out.positions)[out.item, out.column]
        return self._finish(layer, x, normalized, F.linear(z.flatten(1), p.out, p.out_bias), out)

    def _first_block(
        self, layer: int, first: int, last: int, out: Rows
    ) -> Float[Tensor, "row d_model"]:
        """The block at whose input branches `first` to `last` differ at one position each.

        That position's keys and values change, hence what later positions attend to; their own
        queries, and in parallel blocks their MLPs, are the trunk's.
        """
        p, trunk = self.forward.projections(layer), self.trunk
        prompt, start = self.prompt[first:last], self.start[first:last]
        item = out.item - first
        changed = torch.cat([b.stream for b in self.branches[first:last]])
        normalized = self.forward.normalize(changed)
        q, k, v = self._heads(F.linear(normalized, p.qkv, p.qkv_bias)).unbind(1)
        rotary = self.rotary[self.every.index.new_tensor(self.end[first:last])]
        each = torch.arange(last - first, device=start.device)
        keys, values = self._trunk_keys(layer, first, last)
        keys[each, start], values[each, start] = rotary(k), v
        queries = trunk.q[layer][prompt][:, out.positions]
        own, column = (start[:, None] == out.positions).nonzero(as_tuple=True)
        queries[own, column] = rotary(q)[own]
        z = self._attend(queries, keys, values, out.positions)[item, out.column]
        here = out.pos == start[item]
        resid = trunk.streams[layer][prompt[item], out.pos]
        resid[here] = changed[item[here]]
        if not self.forward.weights.parallel:
            attn_out = F.linear(z.flatten(1), p.out, p.out_bias)
            return self._finish(layer, resid, None, attn_out, out)
        # The difference goes through the matrix: where nothing changes, nothing moves.
        z[~here] -= trunk.z[layer][prompt[item], out.pos][~here]
        attn_out = F.linear(z.flatten(1), p.out)
        ends = trunk.streams[layer + 1][prompt[item], out.pos] + attn_out
        own = out.where(here)
        ends[here] = self._finish(
            layer, resid[here], normalized[item[here]], attn_out[here] + p.out_bias, own
        )
        return ends

    def _finish(
        self,
        layer: int,
        resid: Float[Tensor, "row d_model"],
        normalized: Float[Tensor, "row d_model"] | None,
        attn_out: Float[Tensor, "row d_model"],
        out: Rows,
    ) -> Float[Tensor, "row d_model"]:
        """From a block's attention output to the stream after it, at the rows `out`."""
        p = self.forward.projections(layer)
        attn_out = self._pinned("attn_out", layer, attn_out, out)
        resid = resid + attn_out
        if normalized is None or not self.forward.weights.parallel:
            normalized = self.forward.normalize(resid)
        post = self.forward.activate(F.linear(normalized, p.mlp_in, p.mlp_in_bias))
        mlp_out = F.linear(post, p.mlp_out, p.mlp_out_bias)
        return resid + self._pinned("mlp_out", layer, mlp_out, out)

    def _pinned(
        self, name: str, layer: int, values: Float[Tensor, "row d_model"], out: Rows
    ) -> Float[Tensor, "row d_model"]:
        """The same with what is held fixed there put in place."""
        if (name, layer) in self.pins and len(out.index):
            rows, held = self.pins[name, layer]
            at = torch.searchsorted(out.index, rows).clamp_max(len(out.index) - 1)
            given_out = out.index[at] == rows
            values[at[given_out]] = held[given_out]
        return values

    def _pins(self) -> dict[tuple[str, int], tuple[Tensor, Tensor]]:
        """For each output that is held somewhere: which rows, and at what."""
        found: dict[tuple[str, int], list[tuple[int, Tensor]]] = defaultdict(list)
        for i, branch in enumerate(self.branches):
            for pin in branch.pins:
                row = self.end[i] + pin.start - branch.start
                found[pin.name, pin.layer] += [(row + j, v) for j, v in enumerate(pin.value)]
        return {
            place: (
                self.every.index.new_tensor([r for r, _ in held]),
                torch.stack([v for _, v in held]),
            )
            for place, held in found.items()
        }

    def _trunk_keys(self, layer: int, first: int, last: int) -> tuple[Tensor, Tensor]:
        """The trunk's keys and values, a copy for each branch, to be written into."""
        prompts = self.prompt[first:last]
        return self.trunk.k[layer][prompts], self.trunk.v[layer][prompts]

    def _attend(
        self,
        q: Float[Tensor, "branch query head d_head"],
        k: Float[Tensor, "branch pos head d_head"],
        v: Float[Tensor, "branch pos head d_head"],
        positions: Int[Tensor, " query"],
    ) -> Float[Tensor, "branch query head d_head"]:
        sees = torch.arange(k.shape[1], device=k.device) <= positions[:, None]
        return F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=sees,
            scale=self.forward.attention_scale,
        ).transpose(1, 2)

    def _heads(self, x: Float[Tensor, "row some"]) -> Float[Tensor, "row kind head d_head"]:
        """Split the joint product of queries, keys and values."""
        heads, d_head = self.forward.weights.n_heads, self.forward.weights.d_head
        return x.view(len(x), x.shape[1] // (heads * d_head), heads, d_head)
