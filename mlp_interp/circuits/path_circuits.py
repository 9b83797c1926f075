"""Circuits of paths: what runs along them is the clean prompt, all else is the corrupted run's.

A component that lies on several paths is computed once for each way that leads from it to the
logits, from what reaches it on the paths that go on that way: the model unfolded into a tree.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mlp_interp.circuits.node_circuits import node_of
from mlp_interp.interchange import Exchange, Pair, Write
from mlp_interp.interchange.graph import LOGITS, check_own_keys, writes_at
from mlp_interp.metrics.rows import batches
from mlp_interp.models import Weights
from mlp_interp.models.writes import change_written
from mlp_interp.paths.direct_paths import DirectPaths, Item
from mlp_interp.paths.labels import Receivers, Target, targets_of
from mlp_interp.sites import HEADS, Site

__all__ = ["Path", "Tree", "measure_paths", "path_of", "random_paths", "sites_of"]

Path = tuple[Site, ...]
"""From where it starts to what tells the logits; the embedding may only come first."""


def path_of(weights: Weights, labels: Sequence[str]) -> Path:
    """The path of these labels.

    Raises:
        ValueError: One is unknown or not in its place, or writes after the next one reads.
    """
    inner = [label for n, label in enumerate(labels) if label != LOGITS or n < len(labels) - 1]
    if not inner or LOGITS in inner or "embed" in inner[1:]:
        raise ValueError(
            f"nodes={list(labels)!r} is no path; wanted components in order, the embedding only "
            "first and the logits only last"
        )
    path = tuple(node_of(weights, label) or Site("embed") for label in inner)
    for sender, reader in pairwise(path):
        if reader.head is not None:
            check_own_keys(weights, f"nodes={reader.label!r}")
        times = [t.reads_at(parallel=weights.parallel) for t in targets_of(reader)]
        if writes_at(sender) >= min(times):
            raise ValueError(
                f"nodes={list(labels)!r} is no path: {sender.label} writes after {reader.label} "
                "reads; wanted components in the order of their work"
            )
    return path


def random_paths(weights: Weights, paths: Sequence[Path], rng: np.random.Generator) -> list[Path]:
    """The same paths with other heads and neurons of the same layers, each always the same one."""
    heads = [rng.permutation(weights.n_heads) for _ in range(weights.n_layers)]
    neurons: dict[int, Any] = {}

    def other(site: Site) -> Site:
        layer = site.layer or 0
        if site.head is not None:
            return replace(site, head=int(heads[layer][site.head]))
        if site.neuron is not None:
            if layer not in neurons:
                neurons[layer] = rng.permutation(weights.d_mlp)
            return replace(site, neuron=int(neurons[layer][site.neuron]))
        return site

    return [tuple(other(site) for site in path) for path in paths]


@torch.no_grad()
def measure_paths(
    pair: Pair, size: int, *, circuits: Sequence[Sequence[Path]]
) -> Float[Tensor, "circuit prompt"]:
    """The metric of every circuit; at most `size` prompts run together."""
    exchange = Exchange(pair.corrupted, pair.clean)
    exchange.check_unedited("evaluate_hypothesis of paths")
    return torch.stack([pair.measured(Tree.of(paths).final(exchange, size)) for paths in circuits])


def sites_of(circuits: Sequence[Sequence[Path]], weights: Weights) -> list[Site]:
    """Activations that both runs must keep."""
    found = {Site(name, i) for name in weights.outputs for i in range(weights.n_layers)}
    for site in {site for paths in circuits for path in paths for site in path} - {Site("embed")}:
        names = {t.name for t in targets_of(site)}
        names |= {*HEADS} if names & {"q", "k", "v"} else set()
        found |= {Site(name, site.layer) for name in names}
    return sorted(found, key=lambda site: site.label)


@dataclass
class Tree:
    """A component at the end of some paths, and what reaches it.

    Attributes:
        site: The component; None for the logits.
        reaching: What reaches each of its inputs, by the input's activation.
        whole: Inputs (for a component without several: itself) that are the clean run's altogether.
    """

    site: Site | None = None
    reaching: dict[str, dict[Site, "Tree"]] = field(default_factory=dict)
    whole: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, paths: Sequence[Path]) -> "Tree":
        """Unfold paths from the logits back."""
        root = cls()
        for path in paths:
            root._grow("resid", path)
        return root

    def final(self, exchange: Exchange, size: int) -> Float[Tensor, "prompt pos d_model"]:
        """The final stream with the paths from the source, all else from the base run."""
        final = exchange.base.final
        for tree in self.reaching.get("resid", {}).values():
            final = final + tree._writes(exchange, size).delta
        return final

    def _grow(self, name: str, path: Path) -> None:
        site = path[-1]
        component = replace(site, name="z") if site.head is not None else site
        here = self.reaching.setdefault(name, {})
        tree = here.setdefault(component, Tree(component))
        for target in targets_of(site) or [Target(0, "embed", None)]:
            if len(path) == 1:
                tree.whole.add(target.name)
            else:
                tree._grow(target.name, path[:-1])

    def _writes(self, exchange: Exchange, size: int) -> Write:
        """What this component writes anew."""
        site = self.site or Site("embed")
        targets = targets_of(site)
        if all(target.name in self.whole for target in targets):
            return exchange.writes([site])[0]
        new = {t: value for t in targets for value in self._computes(exchange, t, size)}
        layer, weights = targets[0].layer, exchange.forward.weights
        if site.name == "mlp_out":
            own = exchange.base.at(Site("mlp_out", layer))
            return Write(writes_at(site), layer, new[targets[0]] - own)
        if site.name == "post":
            whole, values, units = Site("post", layer), new[targets[0]], [site.unit]
        else:
            whole, values, units = Site("z", layer), _mixed(exchange, new), None
            if site.name != "attn_out":
                units = [site.unit]
                values = values[:, :, units]
        exchange.check_units(whole)
        own = exchange.base.at(whole)
        return Write(writes_at(site), layer, change_written(weights, whole, own, values, units))

    def _computes(self, exchange: Exchange, target: Target, size: int) -> Iterator[Tensor]:
        """What the component computes from one input ``[prompt, pos, ...]``, if paths reach it."""
        if target.name in self.whole:
            values = exchange.source.at(Site(target.name, target.layer))
            yield values if target.unit is None else values[:, :, [target.unit]]
        elif target.name in self.reaching:
            writes = [tree._writes(exchange, size) for tree in self.reaching[target.name].values()]
            receivers = Receivers(name="", targets=(target,), logits=False, reads_at=0)
            paths = DirectPaths(exchange, receivers, freeze="all", positions=None, read=[])
            items = [Item((), prompt, writes) for prompt in range(exchange.base.batch)]
            computed = [paths.receive(some)[0] for some in batches(items, size)]
            yield torch.cat([some[target.name, target.layer] for some in computed])


def _mixed(exchange: Exchange, new: dict[Target, Tensor]) -> Float[Tensor, "prompt pos head d"]:
    """Heads' mixed values in the base run with some of their inputs new."""
    found: list[Tensor] = []
    layer = next(iter(new)).layer

    def observe(name: str, _layer: int, x: Tensor) -> Tensor:
        if name == "z":
            found.append(x)
        for target, values in new.items():
            if target.name == name:
                x = x.clone()
                x[:, :, slice(None) if target.unit is None else [target.unit]] = values
        return x

    exchange.forward.run(exchange.base.streams[layer], start=layer, stop=layer + 1, observe=observe)
    return found[0]
