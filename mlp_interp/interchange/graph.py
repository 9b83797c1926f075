"""Who writes to the residual stream, who reads it, and who writes before whom reads.

Places are ordered by when they write to the stream or read it: the embedding at -1, block l's
attention at 2l, its MLP at 2l + 1. A reader reads whatever was written before its own time; in a
parallel block attention and MLP both read at 2l.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool

from mlp_interp.models import Weights
from mlp_interp.sites import EDITED, GATED, NEURONS, Site

__all__ = ["LEVELS", "LOGITS", "Graph", "check_own_keys", "reads_at", "writers", "writes_at"]

LEVELS = ("component", "head")
LOGITS = "logits"

_OF_MLP = ("mlp_out", *NEURONS, *GATED)


def writes_at(site: Site) -> int:
    """When a component writes: see the module."""
    if site.name in EDITED:  # between what one block writes and the next one reads
        return 2 * (site.layer or 0) + (1 if site.name == "edit:resid_post" else -1)
    return -1 if site.layer is None else 2 * site.layer + int(site.name in _OF_MLP)


def reads_at(name: str, layer: int, *, parallel: bool) -> int:
    """When the component that computes this activation reads: what is written before, it sees."""
    return 2 * layer + int(name in _OF_MLP and not parallel)


def writers(n_layers: int, n_heads: int, level: str, *, mlps: bool = True) -> list[Site]:
    """The embedding, every head (or whole attention output) and every MLP, in order of writing."""
    sites = [Site("embed")]
    for layer in range(n_layers):
        heads = [Site("z", layer, head=head) for head in range(n_heads)]
        sites += heads if level == "head" else [Site("attn_out", layer)]
        sites += [Site("mlp_out", layer)] if mlps else []
    return sites


def check_own_keys(weights: Weights, what: str, names: Collection[str] = ("q", "k", "v")) -> None:
    """Refuse to tell heads' inputs apart where heads share them, or what these are divided by.

    Args:
        weights: The model's.
        what: What asks for one head's, for the error.
        names: Which inputs.

    Raises:
        ValueError: Several heads share keys and values, or one norm takes all heads' queries, or
            keys, together.
    """
    if weights.joint_head_norms and {"q", "k"} & {*names}:
        raise ValueError(
            f"{what}: model={weights.model.cfg.model_name!r} normalises the queries, and the keys, "
            "of all heads together; wanted values (L3H5.v), or all heads of a layer (3.attn)"
        )
    if weights.n_kv_heads != weights.n_heads and {"k", "v"} & {*names}:
        raise ValueError(
            f"{what}: the {weights.n_heads} heads of model={weights.model.cfg.model_name!r} share "
            f"{weights.n_kv_heads} keys and values; wanted queries (L3H5.q), a head's output, or "
            "all heads of a layer (3.attn)"
        )


@dataclass(frozen=True)
class Graph:
    """Writers (senders) and readers (receivers) of a model, and the edges between them.

    Senders are the embedding, every head's output and every MLP's output, layer by layer; receivers
    the inputs of every head's queries, keys and values, of every MLP, and of the logits. In a
    parallel block attention and MLP do not read each other; in a sequential one the MLP reads the
    heads of its own block. Where heads share keys and values, these are receivers once
    (`n_kv_heads`; None where every head has its own): ``L0H1.k`` is the second key, whoever reads
    it.

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
    n_kv_heads: int | None = None

    @classmethod
    def of(cls, weights: Weights) -> "Graph":
        """A model's graph."""
        return cls(weights.n_layers, weights.n_heads, weights.parallel, weights.n_kv_heads)

    @cached_property
    def senders(self) -> list[str]:
        """Labels of the senders, in order of writing."""
        return [site.label for site in writers(self.n_layers, self.n_heads, "head")]

    @cached_property
    def receivers(self) -> list[str]:
        """Labels of the receivers, in order of reading."""
        names = []
        for layer in range(self.n_layers):
            for name, heads in self._reading.items():
                names += [Site(name, layer, head=head).label for head in range(heads)]
            names.append(Site("mlp_out", layer).label)
        return [*names, LOGITS]

    @cached_property
    def edges(self) -> Bool[np.ndarray, "sender receiver"]:
        """True where a sender writes before a receiver reads."""
        edges = np.zeros((len(self.senders), len(self.receivers)), dtype=bool)
        for layer in range(self.n_layers):
            edges[: self.written_before(layer), self.heads(layer)] = True
            edges[: self.written_before(layer, "mlp_out"), self.mlp(layer)] = True
        edges[:, -1] = True
        return edges

    def written_before(self, layer: int, name: str = "z") -> int:
        """How many senders, counted from the first, write before a block's ``z`` or MLP reads."""
        return int(np.searchsorted(self._times, reads_at(name, layer, parallel=self.parallel)))

    @cached_property
    def _times(self) -> list[int]:
        return [writes_at(site) for site in writers(self.n_layers, self.n_heads, "head")]

    def writing(self, layer: int) -> slice:
        """The senders of a block: its heads and its MLP."""
        return slice(self.written_before(layer), self.written_before(layer + 1))

    def heads(self, layer: int, name: str = "") -> slice:
        """The receivers of a block's attention, or just its ``q``, ``k`` or ``v``."""
        start = layer * self._per_layer
        if not name:
            return slice(start, start + self._per_layer - 1)
        for earlier, heads in self._reading.items():
            if earlier == name:
                return slice(start, start + heads)
            start += heads
        raise ValueError(f"name={name!r}; wanted one of {', '.join(self._reading)}")

    @cached_property
    def _reading(self) -> dict[str, int]:
        """How many queries, keys and values a block has."""
        shared = self.n_kv_heads or self.n_heads
        return {"q": self.n_heads, "k": shared, "v": shared}

    @property
    def _per_layer(self) -> int:
        return sum(self._reading.values()) + 1

    def mlp(self, layer: int) -> int:
        """The receiver that is a block's MLP."""
        return (layer + 1) * self._per_layer - 1

    def coords(self) -> dict[str, Any]:
        """Coordinates of the two dimensions."""
        return {"sender": np.array(self.senders), "receiver": np.array(self.receivers)}
