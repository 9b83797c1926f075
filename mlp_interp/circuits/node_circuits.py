"""Circuits of nodes: the clean prompt runs through them, all else is the corrupted run's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mlp_interp.interchange import Pair
from mlp_interp.interchange.graph import LOGITS, check_own_keys
from mlp_interp.models import Weights
from mlp_interp.paths.labels import check_range
from mlp_interp.runs import Run
from mlp_interp.sites import HEADS, Site, site_of

__all__ = ["Circuits", "node_of", "random_nodes"]

_NODES = "L3H5, L3H5.q (or .k, .v), 3.attn, 3.mlp, L3N669"


def node_of(weights: Weights, label: str) -> Site | None:
    """The node of this name; None for the embedding and the logits, which every circuit has.

    Raises:
        ValueError: It is unknown, or the model lacks it.
    """
    if label in ("embed", LOGITS):
        return None
    site = site_of(label, argument="nodes", words=("embed", LOGITS))
    known = site.head is not None and site.name in HEADS
    known = known or (site.neuron is not None and site.name == "post")
    if not known and site.name not in ("attn_out", "mlp_out"):
        raise ValueError(f"nodes={label!r} computes nothing; wanted such as {_NODES}")
    check_range(weights, "nodes", site)
    if site.name in ("q", "k", "v"):
        check_own_keys(weights, f"nodes={label!r}")
    return site


def random_nodes(weights: Weights, nodes: Sequence[Site], rng: np.random.Generator) -> list[Site]:
    """As many nodes of the same kinds, drawn from all of the model without putting back.

    Raises:
        ValueError: The model has not so many.
    """
    nodes_drawn: list[Site] = []
    for kind in ("head", "neuron", "attn_out", "mlp_out"):
        chosen = [node for node in nodes if _kind(node) == kind]
        size = {"head": weights.n_heads, "neuron": weights.d_mlp}.get(kind, 1)
        there = weights.n_layers * size
        if len(chosen) > there:
            raise ValueError(
                f"nodes={len(chosen)} of kind {kind}; wanted at most {there}, each once"
            )
        drawn = rng.choice(there, len(chosen), replace=False).tolist()
        for node, place in zip(chosen, drawn, strict=True):
            layer, unit = divmod(place, size)
            units = {kind: unit} if kind in ("head", "neuron") else {}
            nodes_drawn.append(Site(node.name, layer, **units))
    return nodes_drawn


def _kind(node: Site) -> str:
    if node.head is not None:
        return "head"
    return node.name if node.neuron is None else "neuron"


@dataclass(frozen=True)
class Circuits:
    """Some circuits, by what is kept of each activation that a node passes through.

    Attributes:
        kept: Masks by activation: ``z q k v`` as ``[circuit, layer, head]``, ``post`` as
            ``[circuit, layer, neuron]``.
    """

    kept: dict[str, Bool[Tensor, "circuit layer unit"]]

    @classmethod
    def of(cls, weights: Weights, circuits: Sequence[Sequence[Site]]) -> "Circuits":
        """From lists of nodes."""
        heads = (len(circuits), weights.n_layers, weights.n_heads)
        kept = {name: torch.zeros(heads, dtype=torch.bool) for name in HEADS}
        kept["post"] = torch.zeros(*heads[:2], weights.d_mlp, dtype=torch.bool)
        for number, nodes in enumerate(circuits):
            for node in nodes:
                unit = slice(None) if node.head is None else node.head
                if node.name == "mlp_out" or node.neuron is not None:
                    unit = slice(None) if node.neuron is None else node.neuron
                    kept["post"][number, node.layer, unit] = True
                    continue
                kept["z"][number, node.layer, unit] = True
                for name in ("q", "k", "v") if node.name in ("z", "attn_out") else (node.name,):
                    kept[name][number, node.layer, unit] = True
        for name in ("q", "k", "v"):
            kept[name] |= ~kept["z"]  # what other heads compute is not read
        return cls({name: mask.to(weights.device) for name, mask in kept.items()})

    @property
    def sites(self) -> list[Site]:
        """What the other run must have kept."""
        return [Site(*place) for place in self._masked]

    @property
    def _masked(self) -> list[tuple[str, int]]:
        return [
            (name, layer)
            for name, mask in self.kept.items()
            for layer in range(mask.shape[1])
            if not mask[:, layer].all()
        ]

    def measure(self, pair: Pair, size: int) -> Float[Tensor, "circuit prompt"]:
        """The metric of every circuit.

        Args:
            pair: The two runs and the metric.
            size: How many passes of one prompt to run together.
        """
        clean, corrupted, every = pair.clean, pair.corrupted, pair.prompts
        circuits = len(self.kept["z"])
        number = torch.arange(circuits, device=every.device).repeat_interleave(len(every))
        values: list[Tensor] = []
        for circuit, prompt in zip(
            number.split(size), every.repeat(circuits).split(size), strict=True
        ):
            # A circuit of no nodes is there as a check, from the corrupted embedding.
            none = ~self._any[circuit][:, None, None]
            embedded = torch.where(none, corrupted.streams[0][prompt], clean.streams[0][prompt])
            final = self._run(embedded, corrupted, circuit, prompt)
            values.append(pair.reading(final[:, pair.reading.read], prompt))
        return torch.cat(values).view(circuits, -1)

    @property
    def _any(self) -> Bool[Tensor, " circuit"]:
        return self.kept["z"].any((1, 2)) | self.kept["post"].any((1, 2))

    def _run(
        self,
        embedded: Float[Tensor, "item pos d_model"],
        other: Run,
        circuit: Int[Tensor, " item"],
        prompt: Int[Tensor, " item"],
    ) -> Float[Tensor, "item pos d_model"]:
        """Final streams, each of one circuit in one prompt; all other nodes as in `other`."""
        masked = set(self._masked)

        def observe(name: str, layer: int, x: Tensor) -> Any:
            if (name, layer) not in masked:
                return x
            mask = self.kept[name][circuit, layer][:, None]
            held = other.at(Site(name, layer))[prompt]
            return torch.where(mask if x.ndim == 3 else mask[..., None], x, held)

        return other.forward.run(embedded, observe=observe)
