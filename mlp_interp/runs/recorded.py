"""One recorded forward pass: a mapping of hook names to activations, and where later ones start."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, SupportsIndex

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.edits import Edit, Fired, edits_of
from mlp_interp.edits.applying import Applier
from mlp_interp.models import Forward, HookForward, Weights, forward_of
from mlp_interp.models.protocol import Cache, Model
from mlp_interp.models.stream import check_stream
from mlp_interp.models.tokens import tokens_in
from mlp_interp.models.unembed import Unembed
from mlp_interp.runs.attention import Attention
from mlp_interp.runs.keys import Key, site_of_key
from mlp_interp.runs.of_cache import cached_sites, cached_streams
from mlp_interp.runs.padded import at_positions, warn_of_padding
from mlp_interp.runs.recording import Recorder, comes_after
from mlp_interp.sites import Site

__all__ = ["Run"]


@dataclass(frozen=True, eq=False, repr=False)
class Run(Mapping[str, Tensor]):
    """One recorded forward pass, with edits or without.

    A run is a mapping of TransformerLens hook names to activations, so that whatever takes an
    `ActivationCache` takes a run: `decompose`, `attribute_logits`, `ablate_direct`, `Edit.replace`.
    Besides hook names it takes sites, labels and pairs: ``run["blocks.3.hook_mlp_out"]``,
    ``run[Site("mlp_out", 3)]``, ``run["3.mlp"]`` and ``run["mlp_out", 3]`` are the same, and
    ``run["L3H5"]`` is one head's part. Every run holds the stream at the input and output of every
    block; of the rest, what it was asked to keep. Nothing in it may be changed in place.

    Made by `run`, `Run.edited` and `Run.of_cache`.

    Attributes:
        forward: The forward pass that made it, or that goes on from it.
        tokens: What was run.
        streams: The stream at every block's input, and the final one last.
        kept: Activations by site, as the model went on with them: edited, where the run was.
        edits: The edits in force, in order.
        fired: What each of them did.
        foreign: Whether it is a cache that somebody else made.
        borrows: Whether it holds activations of such a cache, below its edits.
    """

    forward: Forward | HookForward
    tokens: Int[Tensor, "batch pos"]
    streams: tuple[Float[Tensor, "batch pos d_model"], ...]
    kept: dict[Site, Tensor]
    edits: tuple[Edit, ...] = ()
    fired: tuple[Fired, ...] = ()
    foreign: bool = False
    _attention: dict[int, Attention] = field(default_factory=dict)
    borrows: bool = False

    @classmethod
    @torch.no_grad()
    def of_cache(cls, model: Model, cache: Cache, *, tokens: Tensor | None = None) -> "Run":
        """Take a cache that the user made, without running the model.

        The cache must be of a forward pass without hooks that changed anything: later passes go on
        from it as the model would.

        Args:
            model: The model that made the cache.
            cache: An `ActivationCache`, with batch dimension or without, or any mapping of hook
                names. It must hold the stream at every block: ``hook_resid_pre`` or the
                ``hook_resid_post`` before it, or what is added to it (``hook_attn_out`` and
                ``hook_mlp_out``).
            tokens: What was run, ``[batch, pos]``, one row for all or each its own; None reads them
                off the embeddings.

        Raises:
            ValueError: An entry is missing (the text says which ``names_filter`` lets it pass), the
                cache is of another model, or its embeddings are those of no tokens.

        Example:
            >>> from mlp_interp import load_model
            >>> model = load_model("nano")
            >>> _, cache = model.run_with_cache(torch.tensor([[0, 5, 6]]))
            >>> Run.of_cache(model, cache).tokens
            tensor([[0, 5, 6]])
        """
        forward = forward_of(model)
        if isinstance(cache, Run):
            if cache.weights.model is not model:
                raise ValueError(f"cache={cache!r} is a run of another model; wanted one of this")
            if tokens is not None and not bool((cache.tokens == tokens).all()):
                raise ValueError(f"tokens={tokens!r} beside a run of others; wanted None, or those")
            return cache
        streams = cached_streams(forward.weights, cache)
        given = tokens_in(forward.weights, cache) if tokens is None else tokens
        tokens = forward.weights.checked(given)
        if len(tokens) == 1:
            tokens = tokens.expand(len(streams[0]), -1)
        if tokens.shape != streams[0].shape[:2]:
            raise ValueError(
                f"tokens={tuple(tokens.shape)} beside a cache of {tuple(streams[0].shape[:2])}; "
                "wanted the tokens that were run"
            )
        sites = cached_sites(forward.weights, cache)
        return cls(forward, tokens, streams, sites, foreign=True, borrows=True)

    @classmethod
    @torch.no_grad()
    def record(
        cls,
        forward: Forward | HookForward,
        tokens: Int[Tensor, "batch pos"],
        *,
        sites: Collection[Site] = (),
        edits: Edit | Sequence[Edit] = (),
        embedded: Float[Tensor, "batch pos d_model"] | None = None,
        attention: bool = False,
    ) -> "Run":
        """Run a model and keep every block's input, and what is at `sites`: what `run` calls.

        Args:
            forward: The model's forward pass.
            tokens: Token ids, checked.
            sites: Which activations to keep, whole, whatever head or neuron a site names.
            edits: What to do on the way; those of one place in the order given.
            embedded: The stream before the first block, in place of the tokens' own.
            attention: Keep what patched runs read of every block's heads; only of lean passes.

        Raises:
            ValueError: A site cannot be kept, an edit does not fit this model and these tokens, or
                without edits the final stream is not finite.
        """
        edits, shape = edits_of(edits), (tokens.shape[0], tokens.shape[1])
        recorder = Recorder(forward, shape, sites, edits, attention=attention)
        if embedded is None:
            embedded = forward.embed(tokens, observe=recorder)
        streams = recorder.run(embedded)
        if not edits:  # which may be there to break something
            check_stream(streams[-1])
        fired, heads = recorder.applier.fired, recorder.attention()
        return cls(forward, tokens, streams, recorder.kept, edits, fired, False, heads)

    @torch.no_grad()
    def edited(self, edits: Edit | Sequence[Edit], *, sites: Sequence[Site] | None = None) -> "Run":
        """The run of the same tokens with `edits` on top of those in force, in the order given.

        Only blocks from the first newly edited one on are run; what lies below is shared.

        Args:
            edits: What to do on the way: an edit, or several.
            sites: Which activations to keep; None for those that this run keeps.

        Raises:
            ValueError: An edit does not fit the model and the tokens, or never fires; a site below
                the first edited block that this run did not keep; a cache that the model does not
                repeat.

        Example:
            >>> from mlp_interp import load_model
            >>> from mlp_interp.runs import run
            >>> clean = run(load_model("nano"), torch.tensor([[0, 5, 6]]))
            >>> without = clean.edited([Edit.set("2.mlp", 0.0)])
            >>> without.fired[0].times, without.streams[2] is clean.streams[2]
            (1, True)
        """
        edits = edits_of(edits)
        if not edits:
            return self
        if self.foreign:
            self.check_repeats("cache")
        warn_of_padding(self.weights, self.tokens, edits)
        forward, shape = self.forward, (self.batch, self.length)
        start = Applier(edits, self.weights, shape).first
        sites = list(self.kept) if sites is None else sites
        if start < 0:  # the embedding itself: nothing is shared
            self.at(Site("embed"))  # refuses runs that did not start from tokens
            every = (*self.edits, *edits)
            return Run.record(forward, self.tokens, sites=sites, edits=every)
        again = [n for n, edit in enumerate(self.edits) if comes_after(edit.site, start)]
        here = [*(self.edits[n] for n in again), *edits]
        recorder = Recorder(forward, shape, sites, here)
        shared = self._below(start, recorder.wanted)
        # What block `start` wrote is known, unless edits there are to be made again, or all that
        # is known of a cache is that the model repeats its final stream.
        clean = not self.borrows and all(edit.place[1] != start for edit in self.edits)
        kept = self.kept if clean else {}
        streams = recorder.run(self.streams[start], start=start, kept=kept)
        fired = list(self.fired)
        for n, anew in zip(again, recorder.applier.fired, strict=False):
            fired[n] = anew
        return Run(
            forward,
            self.tokens,
            (*self.streams[:start], *streams),
            shared | recorder.kept,
            (*self.edits, *edits),
            (*fired, *recorder.applier.fired[len(again) :]),
            False,
            {layer: a for layer, a in self._attention.items() if layer < start},
            self.borrows,
        )

    @torch.no_grad()
    def check_repeats(self, name: str) -> None:
        """Refuse a run that the model does not repeat, from the same embeddings on.

        Args:
            name: What the caller calls it, for the error.

        Raises:
            ValueError: It ends elsewhere.
        """
        if self._apart > (1e-3 if self.final.dtype in (torch.float32, torch.float64) else 5e-2):
            raise ValueError(
                f"{name} ends elsewhere than the model does from the same embeddings, by "
                f"{self._apart:.1e} of the stream; wanted a run of this model without hooks that "
                "change anything and without a mask of padding"
            )

    @cached_property
    def _apart(self) -> float:
        """Where the model ends from the same embeddings, less where this run did: largest share."""
        apart = (self.forward.run(self.streams[0]) - self.final).norm(dim=-1)
        return float((apart / self.final.norm(dim=-1)).max())

    def _below(self, start: int, wanted: Collection[tuple[str, int]]) -> dict[Site, Tensor]:
        """What is kept below block `start`; what is wanted there must be kept already."""
        kept = {s: x for s, x in self.kept.items() if s.layer is None or s.layer < start}
        for name, layer in wanted:
            if name != "embed" and layer < start:
                kept[Site(name, layer)] = self.at(Site(name, layer))
        return kept

    @property
    def final(self) -> Float[Tensor, "batch pos d_model"]:
        """The final stream."""
        return self.streams[-1]

    @property
    def weights(self) -> Weights:
        """The model's weights."""
        return self.forward.weights

    @property
    def lean(self) -> Forward:
        """The lean forward pass.

        Raises:
            ValueError: The run was made through hooks.
        """
        if not isinstance(self.forward, Forward):
            raise ValueError("the run was made through hooks; wanted one by the lean forward")
        return self.forward

    @property
    def batch(self) -> int:
        """How many sequences were run."""
        return int(self.final.shape[0])

    @property
    def length(self) -> int:
        """Positions of every sequence."""
        return int(self.final.shape[1])

    @property
    def n_layers(self) -> int:
        """Blocks of the model."""
        return len(self.streams) - 1

    @torch.no_grad()
    def logits(
        self, positions: SupportsIndex | Sequence[SupportsIndex] | slice = slice(None)
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits at some positions, up to a constant per position on raw weights.

        Args:
            positions: One, or several: negative ones count from the end of each text, where rows
                are padded, as in `attribute_logits`. Or a slice of the rows, padding and all.

        Raises:
            ValueError: A position that the run, or a text, has not, or one named twice; negative
                ones in a run of texts padded at the left, which attend to their padding.
        """
        final = at_positions(self.weights, self, self.final, positions)
        return Unembed.of(self.weights.model).logits(final)

    def at(self, site: Site) -> Tensor:
        """The whole activation at a site, whatever head or neuron it names.

        Raises:
            ValueError: The run did not keep it.
        """
        whole = site.whole
        try:
            return self[whole.hook_name]
        except KeyError:
            raise ValueError(self._lacks(whole.label)) from None

    def _lacks(self, label: str) -> str:
        kept = ", ".join(s.label for s in self.kept) or "no sites"
        return f"site={label!r} was not kept by the run, which has the streams and {kept}"

    def __getitem__(self, key: Key) -> Tensor:
        site = None if key == "tokens" else site_of_key(self.weights, key)
        name = "tokens" if site is None else site.whole.hook_name
        value = self._entries[name] if name in self._entries else self._derived(name, site)
        if site is None or (site.head is None and site.neuron is None):
            return value
        return value[:, site.unit] if site.name == "pattern" else value[:, :, site.unit]

    def __contains__(self, key: object) -> bool:
        if key in self._entries:
            return True
        try:
            site = site_of_key(self.weights, key)
        except KeyError:
            return False
        whole = site.whole
        return whole.hook_name in self._entries or self._derives(whole)

    # Two runs are one only if they are the same object: a mapping would compare their tensors.
    __eq__, __hash__ = object.__eq__, object.__hash__  # pyright: ignore[reportAssignmentType]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        names = sorted({site.name for site in self.kept})
        done = f", {len(self.edits)} edits" if self.edits else ""
        return (
            f"Run of {self.weights.model.cfg.model_name}: {self.batch} x {self.length} tokens"
            f"{done}; keeps the streams{', ' if names else ''}{', '.join(names)}"
        )

    def attention(self, layer: int) -> Attention:
        """Rotated queries and keys, values and mixes of one block, computed anew if not kept."""
        if layer not in self._attention:
            q, k, v, z = (self.kept.get(Site(name, layer)) for name in "qkvz")
            if q is None or k is None or v is None:
                normalized = self.lean.normalize(self.streams[layer])
                q, k, v = self.lean.heads(layer, normalized)
            self._attention[layer] = Attention.of(self.lean, layer, q, k, v, z)
        return self._attention[layer]

    def scores(self, layer: int) -> Float[Tensor, "batch head query key"]:
        """Attention scores of one layer, minus infinity where a query may not look."""
        attention = self.attention(layer)
        return self.lean.scores(attention.q, attention.k)

    def pattern(self, layer: int) -> Float[Tensor, "batch head query key"]:
        """Attention pattern of one layer: how much each position attends to each."""
        return self["pattern", layer]

    def with_attention(
        self, layer: int, change: Float[Tensor, "*rest d_model"], at: Any = ...
    ) -> Float[Tensor, "*rest d_model"]:
        """The stream after a block to whose attention output `change` has been added.

        Args:
            layer: The block.
            change: What is added.
            at: To which ``[batch, pos]``, as an index; all if left out.
        """
        end = self.streams[layer + 1][at]
        if self.weights.parallel:
            return end + change
        middle = self.read_by_mlp(layer, at)
        return end + change + self.lean.mlp(layer, middle + change) - self.lean.mlp(layer, middle)

    def read_by_mlp(self, layer: int, at: Any = ...) -> Float[Tensor, "*rest d_model"]:
        """The stream that a block's MLP reads, at some ``[batch, pos]``, as an index."""
        stream = self.streams[layer][at]
        if self.weights.parallel:
            return stream
        p = self.lean.projections(layer)
        z = self.attention(layer).z[at].flatten(-2)
        return stream + p.project("out", z)

    def cut(self, *, rows: slice | Sequence[int] = slice(None), length: int | None = None) -> "Run":
        """The same of some sequences, up to a position: what comes after it cannot matter to it."""
        length = self.length if length is None else length
        rows = rows if isinstance(rows, slice) else list(rows)

        def part(name: str, x: Tensor) -> Tensor:
            return x[rows, :, :length, :length] if name == "pattern" else x[rows, :length]

        return Run(
            self.forward,
            self.tokens[rows, :length],
            tuple(stream[rows, :length] for stream in self.streams),
            {site: part(site.name, x) for site, x in self.kept.items()},
            self.edits,
            self.fired,
            self.foreign,
            {layer: a.cut(rows, length) for layer, a in self._attention.items()},
            self.borrows,
        )

    @cached_property
    def _entries(self) -> dict[str, Tensor]:
        """What is there without being computed, by hook name."""
        n = self.n_layers
        entries = {"tokens": self.tokens}
        for layer in range(n):
            entries[Site("resid_pre", layer).hook_name] = self.streams[layer]
            entries[Site("resid_post", layer).hook_name] = self.streams[layer + 1]
        if self.weights.has_pos_embed:
            embedded = self.weights.W_pos[: self.length].expand_as(self.final)
            entries[Site("pos_embed").hook_name] = embedded
        return entries | {site.hook_name: x for site, x in self.kept.items()}

    def _derived(self, name: str, site: Site | None) -> Tensor:
        """An attention pattern, which is computed where it is asked for."""
        if site is not None and self._derives(site):
            return self.scores(site.layer or 0).softmax(-1)
        label = name if site is None else site.whole.label
        raise KeyError(self._lacks(label))

    def _derives(self, site: Site) -> bool:
        lean = isinstance(self.forward, Forward)
        return site.name == "pattern" and lean and (site.layer or 0) < self.n_layers
