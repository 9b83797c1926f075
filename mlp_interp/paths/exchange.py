"""What senders write in one run less what they write in the other."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mlp_interp.models import Forward, HookForward
from mlp_interp.paths.labels import Receivers, Senders
from mlp_interp.runs import Run
from mlp_interp.sites import Site

__all__ = ["Exchange", "Write", "kept_sites"]


@dataclass(frozen=True, eq=False)
class Write:
    """What changes in the stream where one block's attention or MLP, or the embedding, writes.

    Attributes:
        order: When it is written.
        layer: The block; -1 for the embedding.
        delta: The change.
        neurons: The neurons that are exchanged, where it is not the whole MLP.
    """

    order: int
    layer: int
    delta: Float[Tensor, "prompt pos d_model"]
    neurons: tuple[int, ...] = ()

    @cached_property
    def moves(self) -> Bool[Tensor, "prompt pos"]:
        """Where there is any change."""
        return (self.delta != 0).any(-1)


def kept_sites(
    n_layers: int, senders: Sequence[Senders], receivers: Sequence[Receivers]
) -> list[Site]:
    """Activations that both runs must keep."""
    found = {Site(name, layer) for name in ("attn_out", "mlp_out") for layer in range(n_layers)}
    for group in senders:
        for site in group.sites:
            found.add(Site(site.name, site.layer))
            if site.name in ("q", "k", "v"):
                found.add(Site("z", site.layer))
    found |= {Site(t.name, t.layer) for chosen in receivers for t in chosen.targets}
    return sorted(found - {Site("embed")}, key=lambda site: site.label)


@dataclass
class Exchange:
    """Two runs of the same prompts and what is exchanged between them.

    Attributes:
        forward: The model's forward pass.
        base: The run in which outputs are exchanged.
        source: The run that they come from.
    """

    forward: Forward | HookForward
    base: Run
    source: Run
    _z: dict[tuple[int, frozenset[str]], Tensor] = field(default_factory=dict)

    def writes(self, sites: Iterable[Site]) -> list[Write]:
        """The changes of the stream where these components' outputs are exchanged together."""
        whole: list[Site] = []
        heads: dict[int, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
        neurons: dict[int, set[int]] = defaultdict(set)
        for site in sites:
            if site.head is not None:
                heads[site.layer or 0][site.head].add(site.name)
            elif site.neuron is not None:
                neurons[site.layer or 0].add(site.neuron)
            else:
                whole.append(site)
        done = {(site.name, site.layer) for site in whole}
        found = [self._whole(site) for site in whole]
        found += [self._heads(x, heads[x]) for x in heads if ("attn_out", x) not in done]
        found += [
            self._neurons(x, tuple(sorted(neurons[x])))
            for x in neurons
            if ("mlp_out", x) not in done
        ]
        return found

    def everything(self) -> list[Write]:
        """All that the model writes, exchanged: the stream becomes the source's."""
        layers = range(self.forward.weights.n_layers)
        names = ("attn_out", "mlp_out")
        return self.writes([Site("embed"), *(Site(n, layer) for layer in layers for n in names)])

    def _whole(self, site: Site) -> Write:
        if site.layer is None:
            # Positions, where they are added, are the same in both.
            return Write(-1, -1, self.source.streams[0] - self.base.streams[0])
        delta = self.source.at(site) - self.base.at(site)
        return Write(2 * site.layer + int(site.name == "mlp_out"), site.layer, delta)

    def _heads(self, layer: int, heads: dict[int, set[str]]) -> Write:
        out = self.forward.weights.block(layer).W_O
        own = self.base.at(Site("z", layer))
        delta = torch.zeros_like(self.base.streams[layer])
        for head, names in heads.items():
            new = self._new_z(layer, frozenset(names))
            delta += (new[:, :, head] - own[:, :, head]) @ out[head]
        return Write(2 * layer, layer, delta)

    def _new_z(self, layer: int, names: frozenset[str]) -> Float[Tensor, "prompt pos head d_head"]:
        """Heads' mixed values from the source, or with just some of their inputs from it."""
        if "z" in names:
            return self.source.at(Site("z", layer))
        if (layer, names) not in self._z:
            found: list[Tensor] = []

            def observe(name: str, _layer: int, x: Tensor) -> Tensor:
                if name == "z":
                    found.append(x)
                return self.source.at(Site(name, layer)) if name in names else x

            self.forward.run(self.base.streams[layer], start=layer, stop=layer + 1, observe=observe)
            self._z[layer, names] = found[0]
        return self._z[layer, names]

    def _neurons(self, layer: int, neurons: tuple[int, ...]) -> Write:
        site = Site("post", layer)
        change = (self.source.at(site) - self.base.at(site))[..., list(neurons)]
        delta = change @ self.forward.weights.block(layer).W_out[list(neurons)]
        return Write(2 * layer + 1, layer, delta, neurons)
