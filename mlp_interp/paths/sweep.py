"""Many exchanges of senders to one set of receivers, run together."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.paths.exchange import Exchange, Write
from mlp_interp.paths.labels import Receivers
from mlp_interp.runs import Branch, Trunk, grow
from mlp_interp.sites import Site

__all__ = ["Freeze", "Heard", "Item", "Sweep", "batches"]

Freeze = Literal["all", "attention"]
Heard = dict[tuple[str, int], Tensor]
"""What receivers compute from their new inputs, by activation and layer, ``[item, pos, ...]``."""

_GROW_ROWS = 2048  # more of them together gain nothing


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


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """So many items at a time."""
    chosen: list[Item] = []
    for item in items:
        chosen.append(item)
        if len(chosen) == size:
            yield chosen
            chosen = []
    if chosen:
        yield chosen


@dataclass
class Sweep:
    """Exchanges to one set of receivers.

    Attributes:
        exchange: The two runs.
        receivers: The receivers.
        freeze: What is held fixed between senders and receivers.
        positions: Where receivers hear; None for everywhere.
        read: Positions of the final stream that are wanted.
        trunk: The base run as branches leave it; None to run the model itself to its end.
    """

    exchange: Exchange
    receivers: Receivers
    freeze: Freeze
    positions: tuple[int, ...] | None
    read: list[int]
    trunk: Trunk | None

    def __post_init__(self) -> None:
        base = self.exchange.base
        self.n_layers = len(base.streams) - 1
        like = torch.zeros(base.tokens.shape[1], dtype=torch.bool, device=base.final.device)
        self._hears, self._reads = like.clone(), like.clone()
        self._hears[slice(None) if self.positions is None else list(self.positions)] = True
        self._reads[self.read] = True
        parallel = self.exchange.forward.weights.parallel
        self._horizon = max((t.horizon(parallel) for t in self.receivers.targets), default=-1)

    def changing(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items in which some receiver's input changes, and from which position on.

        Along direct paths nothing moves across positions.
        """
        for item in items:
            found = torch.zeros_like(self._hears)
            for write in item.writes:
                moves = write.moves[item.prompt, item.at]
                if write.order < self._horizon:
                    found[item.at] |= moves & self._hears[item.at]
                if self.receivers.logits:
                    found[item.at] |= moves & self._reads[item.at]
            if found.any():
                yield replace(item, start=int(found.nonzero()[0]))

    def finals(self, items: Sequence[Item]) -> Float[Tensor, "item read d_model"]:
        """Final streams at the positions read, one for each item."""
        heard, direct = self.hear(items)
        return self.answer(self._prompts(items), heard, direct, [i.start for i in items])

    def whole(self) -> Float[Tensor, "prompt read d_model"]:
        """Final streams where the receivers have the whole inputs of the source: patched there."""
        source, base = self.exchange.source, self.exchange.base
        heard = {
            (name, layer): _units(source.at(Site(name, layer)), units)
            for layer in self.receivers.layers
            for name, units in self.receivers.at(layer).items()
        }
        direct = (source.final - base.final)[:, self.read] if self.receivers.logits else None
        prompts = torch.arange(len(base.tokens), device=base.final.device)
        return self.answer(prompts, heard, direct, [0] * len(prompts))

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

    def hear(self, items: Sequence[Item]) -> tuple[Heard, Tensor | None]:
        """What the receivers compute from their inputs, and what the logits hear directly."""
        if self.freeze == "attention":
            return self._hear_through_mlps(items)
        base, prompts = self.exchange.base, self._prompts(items)
        heard: Heard = {}
        for layer in self.receivers.layers:
            x = base.streams[layer][prompts] + self._change(items, lambda o: o < 2 * layer)  # noqa: B023
            self._run_frozen(items, x, layer, layer + 1, heard)
        if not self.receivers.logits:
            return heard, None
        return heard, self._change(items, lambda o: True)[:, self.read]

    def _hear_through_mlps(self, items: Sequence[Item]) -> tuple[Heard, Tensor | None]:
        base, prompts = self.exchange.base, self._prompts(items)
        start = max(0, min((w.layer for item in items for w in item.writes), default=0))
        start = min([start, *self.receivers.layers])
        stop = self.n_layers if self.receivers.logits else self.receivers.layers[-1] + 1
        x = base.streams[start][prompts] + self._change(items, lambda o: o < 2 * start)
        heard: Heard = {}
        final = self._run_frozen(items, x, start, stop, heard)
        if not self.receivers.logits:
            return heard, None
        return heard, (final - base.final[prompts])[:, self.read]

    def _run_frozen(
        self, items: Sequence[Item], x: Tensor, start: int, stop: int, heard: Heard
    ) -> Float[Tensor, "item pos d_model"]:
        """Some blocks with attention held as it is, but for senders, noting what receivers hear."""
        base, prompts = self.exchange.base, self._prompts(items)
        sending = {w.order for item in items for w in item.writes}
        post: dict[int, Tensor] = {}

        def observe(name: str, layer: int, x: Tensor) -> Tensor:
            here = self.receivers.at(layer)
            if name in here:
                heard[name, layer] = _units(x, here[name])
            if name == "attn_out":
                held = base.at(Site(name, layer))[prompts]
                return held + self._change(items, lambda o: o == 2 * layer)
            if name == "post":
                post[layer] = x
            if name == "mlp_out" and 2 * layer + 1 in sending:
                return self._with_senders(items, layer, x, post.pop(layer))
            return x

        return self.exchange.forward.run(x, start=start, stop=stop, observe=observe)

    def _with_senders(
        self, items: Sequence[Item], layer: int, x: Tensor, post: Tensor
    ) -> Float[Tensor, "item pos d_model"]:
        """An MLP's output with the sending neurons', or all of it, the source's."""
        x, source = x.clone(), self.exchange.source
        for row, now, item in zip(x, post, items, strict=True):
            for write in item.writes:
                if write.order != 2 * layer + 1:
                    continue
                if not write.neurons:
                    row[item.at] = source.at(Site("mlp_out", layer))[item.prompt, item.at]
                    continue
                chosen = list(write.neurons)
                new = source.at(Site("post", layer))[item.prompt, item.at][:, chosen]
                change = new - now[item.at][:, chosen]
                row[item.at] += change @ self.exchange.forward.weights.block(layer).W_out[chosen]
        return x

    def answer(
        self,
        prompts: Int[Tensor, " item"],
        heard: Heard,
        direct: Float[Tensor, "item read d_model"] | None,
        starts: Sequence[int],
    ) -> Float[Tensor, "item read d_model"]:
        """Final streams of the base run with the receivers as they have heard."""
        base = self.exchange.base
        final = self._run_on(prompts, heard, starts) if heard else base.final[prompts][:, self.read]
        return final if direct is None else final + direct

    def _run_on(
        self, prompts: Int[Tensor, " item"], heard: Heard, starts: Sequence[int]
    ) -> Float[Tensor, "item read d_model"]:
        first, last = self.receivers.layers[0], self.receivers.layers[-1]
        at = self._hears.nonzero()[:, 0]

        def observe(name: str, layer: int, x: Tensor) -> Tensor:
            if (name, layer) in heard:
                x, values = x.clone(), heard[name, layer][:, at]
                units = self.receivers.at(layer)[name]
                if units is None:
                    x[:, at] = values
                else:
                    x[:, at[:, None], units] = values
            return x

        forward, x = self.exchange.forward, self.exchange.base.streams[first][prompts]
        if self.trunk is None:
            return forward.run(x, start=first, observe=observe)[:, self.read]
        x = forward.run(x, start=first, stop=last + 1, observe=observe)
        branches = [
            Branch(prompt, last + 1, start, row[start:])
            for prompt, start, row in zip(prompts.tolist(), starts, x, strict=True)
        ]
        return grow(self.trunk, branches, self.read, rows=_GROW_ROWS)


def _units(x: Tensor, units: list[int] | None) -> Tensor:
    """Some heads or neurons of an activation ``[item, pos, unit, ...]``."""
    return x if units is None else x[:, :, units]
