"""The graph of edges: who writes to the residual stream, who reads it, and who can hear whom."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool

from mlp_interp.models import Weights
from mlp_interp.sites import Site

__all__ = ["Graph"]


@dataclass(frozen=True)
class Graph:
    """Senders and receivers of a model.

    Senders are the embedding, every head's output and every MLP's output, layer by layer; receivers
    the inputs of every head's queries, keys and values, of every MLP, and of the logits. In a
    parallel block attention and MLP do not hear each other; in a sequential one the MLP hears the
    heads of its own block.

    Example:
        >>> graph = Graph(n_layers=1, n_heads=2, parallel=True)
        >>> graph.senders
        ['embed', 'L0H0', 'L0H1', '0.mlp']
        >>> graph.receivers
        ['L0H0.q', 'L0H1.q', 'L0H0.k', 'L0H1.k', 'L0H0.v', 'L0H1.v', '0.mlp', 'logits']
        >>> int(graph.edges.sum())
        11
    """

    n_layers: int
    n_heads: int
    parallel: bool

    @classmethod
    def of(cls, weights: Weights) -> "Graph":
        """A model's graph.

        Raises:
            ValueError: Several heads share keys and values: their inputs cannot be told apart.
        """
        shared = len(weights.block(0).W_K)
        if shared != weights.n_heads:
            raise ValueError(
                f"model={weights.model.cfg.model_name!r} has {shared} keys and values for "
                f"{weights.n_heads} heads; wanted a model in which every head has its own"
            )
        return cls(weights.n_layers, weights.n_heads, weights.parallel)

    @cached_property
    def senders(self) -> list[str]:
        """Labels of the senders, in order of writing."""
        names = ["embed"]
        for layer in range(self.n_layers):
            names += [Site("z", layer, head=head).label for head in range(self.n_heads)]
            names.append(Site("mlp_out", layer).label)
        return names

    @cached_property
    def receivers(self) -> list[str]:
        """Labels of the receivers, in order of reading."""
        names = []
        for layer in range(self.n_layers):
            for name in ("q", "k", "v"):
                names += [Site(name, layer, head=head).label for head in range(self.n_heads)]
            names.append(Site("mlp_out", layer).label)
        return [*names, "logits"]

    @cached_property
    def edges(self) -> Bool[np.ndarray, "sender receiver"]:
        """True where a sender writes before a receiver reads."""
        found = np.zeros((len(self.senders), len(self.receivers)), dtype=bool)
        for layer in range(self.n_layers):
            found[: self.heard(layer), self.heads(layer)] = True
            found[: self.heard(layer, by_mlp=True), self.mlp(layer)] = True
        found[:, -1] = True
        return found

    def heard(self, layer: int, *, by_mlp: bool = False) -> int:
        """How many senders, counted from the first, a block's attention (or MLP) can hear."""
        own = self.n_heads if by_mlp and not self.parallel else 0
        return 1 + layer * (self.n_heads + 1) + own

    def wrote(self, layer: int) -> slice:
        """The senders of a block: its heads and its MLP."""
        return slice(self.heard(layer), self.heard(layer + 1))

    def heads(self, layer: int, name: str = "") -> slice:
        """The receivers of a block's attention, or just its ``q``, ``k`` or ``v``."""
        start = layer * (3 * self.n_heads + 1)
        if not name:
            return slice(start, start + 3 * self.n_heads)
        start += "qkv".index(name) * self.n_heads
        return slice(start, start + self.n_heads)

    def mlp(self, layer: int) -> int:
        """The receiver that is a block's MLP."""
        return (layer + 1) * (3 * self.n_heads + 1) - 1

    def coords(self) -> dict[str, Any]:
        """Coordinates of the two dimensions."""
        return {"sender": np.array(self.senders), "receiver": np.array(self.receivers)}
