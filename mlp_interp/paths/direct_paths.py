"""Many exchanges along direct paths to one set of receivers, run together."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.interchange import Exchange, Write
from mlp_interp.interchange.graph import writes_at
from mlp_interp.interchange.measuring import ROWS
from mlp_interp.models import Forward, Weights
from mlp_interp.models.writes import change_written
from mlp_interp.paths.labels import Receivers
from mlp_interp.runs import PatchedRun, final_streams
from mlp_interp.sites import Site

__all__ = ["Computed", "DirectPaths", "Freeze", "Item", "items_in"]

Freeze = Literal["all", "attention"]
Computed = dict[tuple[str, int], Tensor]
"""What receivers compute from their new inputs, by activation and layer, ``[item, pos, ...]``."""


def items_in(weights: Weights, length: int, memory: float | int) -> int:
    """How many passes of one prompt of so many tokens fit into `memory` MiB together.

    A position holds its stream in some copies, its queries, keys and values, what it attends to,
    and the widest hidden layer.
    """
    per_position = 3 * weights.d_mlp + 20 * weights.d_model + weights.n_heads * length
    return max(1, int(memory * 2**20 / (weights.W_U.element_size() * length * per_position)))


@dataclass(frozen=True, eq=False)
class Item:
    """One exchange in one prompt.

    Attributes:
        where: Its place in the array of results.
        prompt: The prompt.
        writes: What the senders write anew.
        position: The only position at which they do; None for all.
        start: A position before which nothing changes.
    """

    where: tuple[int, ...]
    prompt: int
    writes: Sequence[Write]
    position: int | None = None
    start: int = 0

    @property
    def at(self) -> slice:
        """The positions at which the senders write anew."""
        return slice(None) if self.position is None else slice(self.position, self.position + 1)


@dataclass
class DirectPaths:
    """Exchanges to one set of receivers.

    Attributes:
        exchange: The two runs.
        receivers: The receivers.
        freeze: What is held fixed between senders and receivers.
        positions: Where receivers get new inputs; None for everywhere.
        read: Positions of the final stream that are wanted.
    """

    exchange: Exchange
    receivers: Receivers
    freeze: Freeze
    positions: tuple[int, ...] | None
    read: list[int]

    def __post_init__(self) -> None:
        base = self.exchange.base
        like = torch.zeros(base.length, dtype=torch.bool, device=base.final.device)
        self._renewed, self._read = like.clone(), like.clone()
        self._renewed[slice(None) if self.positions is None else list(self.positions)] = True
        self._read[self.read] = True
        parallel = base.weights.parallel
        times = (t.reads_at(parallel=parallel) for t in self.receivers.targets)
        self._last = max(times, default=-1)

    def changing(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items in which some receiver's input changes, and from which position on.

        Along direct paths nothing moves across positions.
        """
        for item in items:
            changes = torch.zeros_like(self._renewed)
            for write in item.writes:
                moves = write.moves[item.prompt, item.at]
                if write.order < self._last:
                    changes[item.at] |= moves & self._renewed[item.at]
                if self.receivers.logits:
                    changes[item.at] |= moves & self._read[item.at]
            if changes.any():
                yield replace(item, start=int(changes.nonzero()[0]))

    def finals(self, items: Sequence[Item]) -> Float[Tensor, "item read d_model"]:
        """Final streams at the positions read, one for each item."""
        computed, direct = self.receive(items)
        return self._answer(self._prompts(items), computed, direct, [i.start for i in items])

    def whole(self) -> Float[Tensor, "prompt read d_model"]:
        """Final streams where the receivers have the whole inputs of the source: patched there."""
        source, base = self.exchange.source, self.exchange.base
        computed = {
            (name, layer): _units(source.at(Site(name, layer)), units)
            for layer in self.receivers.layers
            for name, units in self.receivers.at(layer).items()
        }
        direct = (source.final - base.final)[:, self.read] if self.receivers.logits else None
        prompts = torch.arange(base.batch, device=base.final.device)
        return self._answer(prompts, computed, direct, [0] * len(prompts))

    def _prompts(self, items: Sequence[Item]) -> Int[Tensor, " item"]:
        return torch.tensor([i.prompt for i in items], device=self.exchange.base.final.device)

    def _change(
        self, items: Sequence[Item], wanted: Callable[[int], bool]
    ) -> Float[Tensor, "item pos d_model"]:
        """What the senders add to the stream, at the orders wanted."""
        final = self.exchange.base.final
        change = final.new_zeros(len(items), *final.shape[1:])
        for row, item in zip(change, items, strict=True):
            for write in item.writes:
                if wanted(write.order):
                    row[item.at] += write.delta[item.prompt, item.at]
        return change

    def receive(self, items: Sequence[Item]) -> tuple[Computed, Tensor | None]:
        """What the receivers compute from new inputs, and what the logits get directly."""
        if self.freeze == "attention":
            return self._receive_through_mlps(items)
        base, prompts = self.exchange.base, self._prompts(items)
        computed: Computed = {}
        for layer in self.receivers.layers:
            x = base.streams[layer][prompts] + self._change_before(items, layer)
            self._run_frozen(items, x, layer, layer + 1, computed)
        if not self.receivers.logits:
            return computed, None
        return computed, self._change_before(items, base.n_layers)[:, self.read]

    def _receive_through_mlps(self, items: Sequence[Item]) -> tuple[Computed, Tensor | None]:
        base, prompts = self.exchange.base, self._prompts(items)
        start = max(0, min((w.layer for item in items for w in item.writes), default=0))
        start = min([start, *self.receivers.layers])
        stop = base.n_layers if self.receivers.logits else self.receivers.layers[-1] + 1
        x = base.streams[start][prompts] + self._change_before(items, start)
        computed: Computed = {}
        final = self._run_frozen(items, x, start, stop, computed)
        if not self.receivers.logits:
            return computed, None
        return computed, (final - base.final[prompts])[:, self.read]

    def _change_before(
        self, items: Sequence[Item], layer: int
    ) -> Float[Tensor, "item pos d_model"]:
        """What the senders add to the stream until a block's input."""
        entry = writes_at(Site("attn_out", layer))
        return self._change(items, lambda order: order < entry)

    def _run_frozen(
        self, items: Sequence[Item], x: Tensor, start: int, stop: int, computed: Computed
    ) -> Float[Tensor, "item pos d_model"]:
        """Some blocks, attention frozen but for senders; notes what receivers compute."""
        base, prompts = self.exchange.base, self._prompts(items)
        sending = {w.order for item in items for w in item.writes if not w.of_edit}
        post: dict[int, Tensor] = {}

        def observe(name: str, layer: int, x: Tensor) -> Tensor:
            here = self.receivers.at(layer)
            if name in here:
                computed[name, layer] = _units(x, here[name])
            if name == "attn_out":
                held = base.at(Site(name, layer))[prompts]
                own = writes_at(Site(name, layer))
                return held + self._change(items, lambda order: order == own)
            if name == "post":
                post[layer] = x
            if name == "mlp_out" and writes_at(Site(name, layer)) in sending:
                return self._with_senders(items, layer, x, post.pop(layer))
            return x

        return self.exchange.forward.run(x, start=start, stop=stop, observe=observe)

    def _with_senders(
        self, items: Sequence[Item], layer: int, x: Tensor, post: Tensor
    ) -> Float[Tensor, "item pos d_model"]:
        """An MLP's output with the sending neurons', or all of it, the source's."""
        x, source = x.clone(), self.exchange.source
        weights, whole = self.exchange.forward.weights, Site("post", layer)
        for row, now, item in zip(x, post, items, strict=True):
            for write in item.writes:
                if write.of_edit or write.order != writes_at(Site("mlp_out", layer)):
                    continue
                if not write.neurons:
                    row[item.at] = source.at(Site("mlp_out", layer))[item.prompt, item.at]
                    continue
                neurons = list(write.neurons)
                new = source.at(whole)[item.prompt, item.at][:, neurons]
                change = change_written(weights, whole, now[item.at][None], new[None], neurons)
                row[item.at] += change[0]
        return x

    def _answer(
        self,
        prompts: Int[Tensor, " item"],
        computed: Computed,
        direct: Float[Tensor, "item read d_model"] | None,
        starts: Sequence[int],
    ) -> Float[Tensor, "item read d_model"]:
        """Final streams of the base run with what the receivers have computed."""
        base = self.exchange.base
        final = (
            self._run_on(prompts, computed, starts)
            if computed
            else base.final[prompts][:, self.read]
        )
        return final if direct is None else final + direct

    def _run_on(
        self, prompts: Int[Tensor, " item"], computed: Computed, starts: Sequence[int]
    ) -> Float[Tensor, "item read d_model"]:
        first, last = self.receivers.layers[0], self.receivers.layers[-1]
        at = self._renewed.nonzero()[:, 0]

        def observe(name: str, layer: int, x: Tensor) -> Tensor:
            if (name, layer) in computed:
                x, values = x.clone(), computed[name, layer][:, at]
                units = self.receivers.at(layer)[name]
                if units is None:
                    x[:, at] = values
                else:
                    x[:, at[:, None], units] = values
            return x

        base, forward = self.exchange.base, self.exchange.forward
        x = base.streams[first][prompts]
        if not isinstance(forward, Forward):
            return forward.run(x, start=first, observe=observe)[:, self.read]
        x = forward.run(x, start=first, stop=last + 1, observe=observe)
        patched = [
            PatchedRun(prompt, last + 1, start, row[start:])
            for prompt, start, row in zip(prompts.tolist(), starts, x, strict=True)
        ]
        return final_streams(base, patched, self.read, rows=ROWS)


def _units(x: Tensor, units: list[int] | None) -> Tensor:
    """Some heads or neurons of an activation ``[item, pos, unit, ...]``."""
    return x if units is None else x[:, :, units]
