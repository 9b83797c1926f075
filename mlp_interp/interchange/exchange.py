"""What the stream gets where activations of one run take the place of another's."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mlp_interp.interchange.graph import writes_at
from mlp_interp.models import Forward, HookForward
from mlp_interp.models.remember import has_hooks
from mlp_interp.models.writes import change_written
from mlp_interp.residual.edited import check_units, differ, written_by_edits
from mlp_interp.runs import Run
from mlp_interp.runs.attention import Attention
from mlp_interp.sites import EDITED, Site

__all__ = ["Exchange", "Write"]


@dataclass(frozen=True, eq=False)
class Write:
    """What changes in the stream where one block's attention or MLP, or the embedding, writes.

    Attributes:
        order: When it is written; see `writes_at`.
        layer: The block; -1 for the embedding.
        delta: The change.
        neurons: The neurons that are exchanged, where it is not the whole MLP.
        of_edit: Whether it is an edit of the stream that writes.
    """

    order: int
    layer: int
    delta: Float[Tensor, "prompt pos d_model"]
    neurons: tuple[int, ...] = ()
    of_edit: bool = False

    @cached_property
    def moves(self) -> Bool[Tensor, "prompt pos"]:
        """Where there is any change."""
        return (self.delta != 0).any(-1)


@dataclass(eq=False)
class Exchange:
    """Two runs of the same prompts and what is exchanged between them.

    Attributes:
        base: The run that is changed.
        source: The run whose activations are put in: of as many prompts, or of one for all.
    """

    base: Run
    source: Run
    _z: dict[tuple[int, frozenset[str]], Tensor] = field(default_factory=dict)

    @property
    def forward(self) -> Forward | HookForward:
        """What computes."""
        return self.base.forward

    def pair(self, name: str, layer: int) -> tuple[Tensor, Tensor]:
        """An activation in the source and in the base, of one shape."""
        site = Site(name, layer)
        own, taken = self.base.at(site), self.source.at(site)
        return taken.expand_as(own), own

    def attention(self, layer: int) -> tuple[Attention, Attention]:
        """What a block's heads computed in the source and in the base, of one shape."""
        return self.source.attention(layer).expand(self.base.batch), self.base.attention(layer)

    def differs(self, name: str, layer: int) -> Bool[Tensor, "prompt pos head"]:
        """Where ``q``, ``k``, ``v``, ``z`` or ``pattern`` itself is another in the source."""
        if name == "pattern":
            other = self.source.pattern(layer) != self.base.pattern(layer)
            return other.any(-1).transpose(1, 2)
        taken, own = (getattr(attention, name) for attention in self.attention(layer))
        return (taken != own).any(-1)

    def z(self, layer: int, names: Iterable[str]) -> Float[Tensor, "prompt pos head d_head"]:
        """Heads' mixes of values with some of ``q k v pattern`` taken from the source.

        With ``z`` among the names it is the source's own.
        """
        chosen = frozenset(names)
        if (layer, chosen) not in self._z:
            # One layer's at a time: those of all layers would be as large as the runs.
            self._z = {key: z for key, z in self._z.items() if key[0] == layer}
            self._z[layer, chosen] = self._mixed(layer, chosen)
        return self._z[layer, chosen]

    def _mixed(self, layer: int, names: frozenset[str]) -> Tensor:
        if not isinstance(self.forward, Forward):
            return self._mixed_by_hooks(layer, names)
        taken, own = self.attention(layer)
        if "z" in names:
            return taken.z
        v = taken.v if "v" in names else own.v
        if "pattern" in names:
            v = self.forward.shared(v, 2)
            return torch.einsum("phqk,pkhd->pqhd", self.source.pattern(layer), v)
        q, k = taken.q if "q" in names else own.q, taken.k if "k" in names else own.k
        return self.forward.mix(q, k, v)

    def _mixed_by_hooks(self, layer: int, names: frozenset[str]) -> Tensor:
        """The same by running the block with those activations set."""
        if "z" in names:
            return self.pair("z", layer)[0]
        mixed: list[Tensor] = []

        def observe(name: str, _layer: int, x: Tensor) -> Tensor:
            if name == "z":
                mixed.append(x)
            return self.pair(name, layer)[0] if name in names else x

        self.forward.run(self.base.streams[layer], start=layer, stop=layer + 1, observe=observe)
        return mixed[0]

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
        return [
            *(self._whole(site) for site in whole),
            *(self._heads(x, heads[x]) for x in heads if ("attn_out", x) not in done),
            *(
                self._neurons(x, tuple(sorted(neurons[x])))
                for x in neurons
                if ("mlp_out", x) not in done
            ),
        ]

    def everything(self) -> list[Write]:
        """All that the model writes, exchanged: the stream becomes the source's."""
        layers, names = range(self.base.n_layers), self.forward.weights.outputs
        outputs = [Site(name, layer) for layer in layers for name in names]
        return self.writes([Site("embed"), *outputs, *self.edits])

    @cached_property
    def edits(self) -> dict[Site, Float[Tensor, "prompt pos d_model"]]:
        """What edits of the stream that hooks on the model make write, source less base."""
        weights = self.forward.weights
        if not has_hooks(weights.model):
            return {}
        taken, own = (
            written_by_edits(weights, run, run.n_layers, run.at) for run in (self.source, self.base)
        )
        found, zero = {}, torch.zeros_like(self.base.final)
        for site in sorted({*own, *taken}, key=writes_at):
            after = (site.layer or 0) + (site.name == "edit:resid_post")
            pair = taken.get(site, zero), own.get(site, zero)
            if differ(*pair, [run.streams[after] for run in (self.source, self.base)]):
                found[site] = pair[0] - pair[1]
        return found

    def check_unedited(self, what: str) -> None:
        """Refuse runs that differ by what edits of the stream write.

        Args:
            what: Who cannot take that, for the error.

        Raises:
            ValueError: They do.
        """
        if self.edits:
            places = ", ".join(site.label.removeprefix("edit:") for site in self.edits)
            raise ValueError(
                f"{what}: edits held on the model at {places} do not write the same in both runs, "
                "and are no node of its graph; wanted a model without them: path_patch takes "
                "'edit:…' as a sender"
            )

    def _whole(self, site: Site) -> Write:
        if site.name in EDITED:
            change = self.edits.get(site, torch.zeros_like(self.base.final))
            return Write(writes_at(site), site.layer or 0, change, of_edit=True)
        if site.layer is None:
            # Positions, where they are added, are the same in both.
            change = self.source.streams[0] - self.base.streams[0]
            edited = self.edits.get(Site("edit:resid_pre", 0))
            return Write(writes_at(site), -1, change if edited is None else change - edited)
        taken, own = self.pair(site.name, site.layer)
        return Write(writes_at(site), site.layer, taken - own)

    def check_units(self, whole: Site) -> None:
        """Refuse heads (``z``) or neurons (``post``) that hooks keep from being what a block wrote.

        Raises:
            ValueError: In one of the runs they do not sum to it.
        """
        weights = self.forward.weights
        if has_hooks(weights.model):
            for run in (self.source, self.base):
                check_units(weights, run, [whole], run.at)

    def _heads(self, layer: int, heads: dict[int, set[str]]) -> Write:
        whole = Site("z", layer)
        self.check_units(whole)
        each = [self.z(layer, names)[:, :, head] for head, names in heads.items()]
        weights, own = self.forward.weights, self.base.at(whole)
        delta = change_written(weights, whole, own, torch.stack(each, dim=2), [*heads])
        return Write(writes_at(Site("attn_out", layer)), layer, delta)

    def _neurons(self, layer: int, neurons: tuple[int, ...]) -> Write:
        whole, units = Site("post", layer), list(neurons)
        self.check_units(whole)
        taken, own = self.pair("post", layer)
        delta = change_written(self.forward.weights, whole, own, taken[..., units], units)
        return Write(writes_at(Site("mlp_out", layer)), layer, delta, neurons)
