"""Makes runs: records a forward pass, or goes on from one with more edits."""

from collections.abc import Collection, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.edits import Edit
from mlp_interp.edits.applying import Applier
from mlp_interp.edits.edit import EDITABLE
from mlp_interp.models import Forward, HookForward
from mlp_interp.runs.attention import Attention
from mlp_interp.runs.recorded import Run
from mlp_interp.sites import Site

__all__ = ["record", "resume"]

HEADS = ("q", "k", "v", "pattern", "z")
Place = tuple[str, int]


class _Recorder:
    """The observer that applies edits and keeps what comes of it."""

    def __init__(self, applier: Applier, wanted: Collection[Place], *, attention: bool) -> None:
        self.applier, self.wanted = applier, wanted
        self.streams: list[Tensor] = []
        self.kept: dict[Site, Tensor] = {}
        self.heads: dict[str, list[Tensor]] = {name: [] for name in "qkvz"} if attention else {}

    def __call__(self, name: str, layer: int, x: Tensor) -> Tensor:
        x = self.applier(name, layer, x)
        if name == "resid_pre":
            self.streams.append(x)
        if (name, layer) in self.wanted:
            self.kept[Site("embed") if name == "embed" else Site(name, layer)] = x
        if name in self.heads:
            self.heads[name].append(x)
        return x

    @property
    def patterns(self) -> set[int]:
        """Layers whose pattern must be there as a matrix."""
        return self.applier.patterns | {layer for name, layer in self.wanted if name == "pattern"}


@torch.no_grad()
def record(
    forward: Forward | HookForward,
    tokens: Int[Tensor, "batch pos"],
    *,
    sites: Collection[Site] = (),
    edits: Sequence[Edit] = (),
    embedded: Float[Tensor, "batch pos d_model"] | None = None,
    attention: bool = False,
) -> Run:
    """Run a model and keep every block's input, and what is at `sites`.

    Args:
        forward: The model's forward pass.
        tokens: Token ids, checked.
        sites: Which activations to keep, whole, whatever head or neuron a site names.
        edits: What to do on the way; those of one place in the order given.
        embedded: The stream before the first block, in place of the tokens' own.
        attention: Keep what patched runs read of every block's heads; only of lean passes.

    Raises:
        ValueError: A site cannot be kept, or an edit does not fit this model and these tokens.
    """
    applier = Applier(edits, forward.weights, (tokens.shape[0], tokens.shape[1]))
    wanted = _wanted(forward, sites, edits)
    recorder = _Recorder(applier, wanted, attention=attention and isinstance(forward, Forward))
    if embedded is None:
        embedded = forward.embed(tokens, observe=recorder)
    final = forward.run(embedded, observe=recorder, patterns=recorder.patterns)
    applier.check()
    run = Run(
        forward,
        tokens,
        (*recorder.streams, final),
        recorder.kept,
        tuple(edits),
        applier.fired,
    )
    if isinstance(forward, Forward) and recorder.heads:
        each = zip(*recorder.heads.values(), strict=True)
        run._attention.update(
            {layer: Attention.of(forward, *heads) for layer, heads in enumerate(each)}
        )
    return run


@torch.no_grad()
def resume(base: Run, edits: Sequence[Edit], *, sites: Collection[Site] | None = None) -> Run:
    """See `Run.edited`."""
    if not edits:
        return base
    forward, weights = base.forward, base.weights
    shape = (base.tokens.shape[0], base.tokens.shape[1])
    start = Applier(edits, weights, shape).first
    if sites is None:
        sites = list(base.kept)
    if start < 0:  # the embedding itself: nothing is shared
        base.at(Site("embed"))  # refuses runs that did not start from tokens
        return record(forward, base.tokens, sites=sites, edits=(*base.edits, *edits))
    again = [n for n, edit in enumerate(base.edits) if _comes_after(edit.site, start)]
    here = [*(base.edits[n] for n in again), *edits]
    wanted = _wanted(forward, sites, here)
    shared = _shared(base, start, wanted)
    applier = Applier(here, weights, shape)
    recorder = _Recorder(applier, wanted, attention=False)
    final = forward.run(
        base.streams[start], start=start, observe=recorder, patterns=recorder.patterns
    )
    applier.check()
    fired = list(base.fired)
    for n, new in zip(again, applier.fired, strict=False):
        fired[n] = new
    return Run(
        forward,
        base.tokens,
        (*base.streams[:start], *recorder.streams, final),
        shared | recorder.kept,
        (*base.edits, *edits),
        (*fired, *applier.fired[len(again) :]),
        {layer: a for layer, a in base._attention.items() if layer < start},
    )


def _shared(base: Run, start: int, wanted: Collection[Place]) -> dict[Site, Tensor]:
    """What is kept below block `start`, which must be there already."""
    kept = {s: x for s, x in base.kept.items() if s.layer is None or s.layer < start}
    for name, layer in wanted:
        if name != "embed" and layer < start:
            site = Site(name, layer)
            kept[site] = base.at(site)
    return kept


def _comes_after(site: Site, start: int) -> bool:
    """Whether an edit acts beyond the kept input of block `start`, in which earlier ones are."""
    layer = -1 if site.layer is None else site.layer
    return layer > start or (layer == start and site.name != "resid_pre")


def _wanted(
    forward: Forward | HookForward, sites: Collection[Site], edits: Sequence[Edit]
) -> set[Place]:
    layers = forward.weights.n_layers
    for site in sites:
        if site.name not in EDITABLE or (site.layer or 0) >= layers:
            raise ValueError(
                f"site={site.label!r} cannot be kept; wanted one of {', '.join(EDITABLE)} at "
                f"layers 0 to {layers - 1}"
            )
    wanted = {(site.name, site.layer or 0) for site in sites} | {("embed", 0)}
    return wanted.union(*(_kept_beside(edit.site) for edit in edits))


def _kept_beside(site: Site) -> set[Place]:
    """What a run must keep where it is edited, since it cannot be had from the streams any more."""
    layer = site.layer or 0
    if site.name == "resid_pre" and layer:
        return {("resid_post", layer - 1)}  # else that is the next block's input
    if site.name in HEADS:
        return {(name, layer) for name in ("q", "k", "v", "z", site.name)}
    return set()
