"""The observer that applies edits to a forward pass and keeps what comes of it."""

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from jaxtyping import Float
from torch import Tensor

from mlp_interp.edits import Edit
from mlp_interp.edits.applying import Applier
from mlp_interp.edits.edit import EDITABLE
from mlp_interp.models import Forward, HookForward, Weights
from mlp_interp.models.reached import check_reached
from mlp_interp.runs.attention import Attention
from mlp_interp.sites import FAMILIES, GATED, HEADS, STREAM, Site

__all__ = ["Recorder", "comes_after"]

Place = tuple[str, int]


class Recorder:
    """Applies edits, and keeps every block's input and what is at some sites.

    Attributes:
        applier: The edits.
        wanted: The places whose activations are kept.
        streams: The streams that were shown.
        kept: The activations, as the model went on with them.
    """

    def __init__(
        self,
        forward: Forward | HookForward,
        shape: tuple[int, int],
        sites: Collection[Site],
        edits: Sequence[Edit],
        *,
        attention: bool = False,
    ) -> None:
        """Check sites and edits for tokens of this shape.

        Raises:
            ValueError: A site cannot be kept, or an edit does not fit the model and the tokens.
        """
        self.forward = forward
        self.applier = Applier(edits, forward.weights, shape)
        if not isinstance(forward, Forward):
            check_reached(forward.weights, (edit.site for edit in edits))
        self.wanted = _wanted(forward.weights, sites, edits)
        self.streams: list[Tensor] = []
        self.kept: dict[Site, Tensor] = {}
        keeps = attention and isinstance(forward, Forward)
        self._heads: dict[str, list[Tensor]] = {name: [] for name in "qkvz"} if keeps else {}

    def __call__(self, name: str, layer: int, x: Tensor) -> Tensor:
        """What the pass goes on with."""
        x = self.applier(name, layer, x)
        if name == "resid_pre":
            self.streams.append(x)
        if (name, layer) in self.wanted:
            self.kept[Site("embed") if name == "embed" else Site(name, layer)] = x
        if name in self._heads:
            self._heads[name].append(x)
        return x

    def run(
        self,
        stream: Float[Tensor, "batch pos d_model"],
        *,
        start: int = 0,
        kept: Mapping[Site, Tensor] = MappingProxyType({}),
    ) -> tuple[Float[Tensor, "batch pos d_model"], ...]:
        """Run the blocks from `start` on: their inputs, and the final stream.

        Args:
            stream: What enters the first of them.
            start: Which that is.
            kept: What a run without these edits held, of the same stream: what block `start` writes
                needs not be computed again where it is here, and nothing before it is edited.

        Raises:
            ValueError: An edit never fired.
        """
        patterns = {layer for name, layer in self.wanted if name == "pattern"}
        final = self.forward.run(
            stream,
            start=start,
            observe=self,
            patterns=self.applier.patterns | patterns,
            **self._written(start, kept),
        )
        self.applier.check()
        return (*self.streams, final)

    def _written(self, layer: int, kept: Mapping[Site, Tensor]) -> dict[str, Any]:
        """What a block's attention and MLP write, where all that is asked of them is behind it."""
        if not isinstance(self.forward, Forward):
            return {}
        shown = {("embed", 0), *((name, layer) for name in STREAM)}  # whether computed or not
        asked = self.applier.places | (self.wanted - shown)
        touched = {name for name, at in asked if at == layer}
        behind = {"mlp_out", "resid_post"}
        beside = {"attn_out", *FAMILIES["head"]} if self.forward.weights.parallel else set[str]()
        free = {
            "attn_out": {"attn_out", *FAMILIES["neuron"], *behind},
            "mlp_out": beside | behind,
        }
        names = [name for name, may in free.items() if touched <= may and Site(name, layer) in kept]
        return {"written": {name: kept[Site(name, layer)] for name in names}}

    def attention(self) -> dict[int, Attention]:
        """What patched runs read of every block's heads, if that was to be kept."""
        if not isinstance(self.forward, Forward) or not self._heads:
            return {}
        each = zip(*self._heads.values(), strict=True)
        return {
            layer: Attention.of(self.forward, layer, *heads) for layer, heads in enumerate(each)
        }


def comes_after(site: Site, start: int) -> bool:
    """Whether an edit acts beyond the kept input of block `start`, in which earlier ones are."""
    layer = -1 if site.layer is None else site.layer
    return layer > start or (layer == start and site.name != "resid_pre")


def _wanted(weights: Weights, sites: Collection[Site], edits: Sequence[Edit]) -> set[Place]:
    for site in sites:
        if site.name not in (*EDITABLE, *GATED) or (site.layer or 0) >= weights.n_layers:
            raise ValueError(
                f"site={site.label!r} cannot be kept; wanted one of {', '.join(EDITABLE)} at "
                f"layers 0 to {weights.n_layers - 1}"
            )
    weights.check_names([site.name for site in sites])
    wanted = {(site.name, site.layer or 0) for site in sites} | {("embed", 0)}
    return wanted.union(*(_kept_beside(edit.site) for edit in edits))


def _kept_beside(site: Site) -> set[Place]:
    """What a run must keep where it is edited, since it cannot be had from the streams any more."""
    layer = site.layer or 0
    if site.name == "resid_pre" and layer:
        return {("resid_post", layer - 1)}  # else that is the next block's input
    if site.name in (*HEADS, "pattern"):
        return {(name, layer) for name in (*HEADS, site.name)}
    return set()
