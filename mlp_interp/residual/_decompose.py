"""From an activation cache to the named components that sum to a residual stream."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor

from mlp_interp.dictionaries import Dictionary
from mlp_interp.models import Weights, describe
from mlp_interp.models.caches import cached, check_cached
from mlp_interp.models.indices import distinct, each
from mlp_interp.models.origin import check_origin
from mlp_interp.models.padding import Padding, padding_in, places
from mlp_interp.models.protocol import Cache, Model
from mlp_interp.models.remember import has_hooks
from mlp_interp.models.slices import check_whole
from mlp_interp.models.writes import frozen, frozen_scale
from mlp_interp.prompts.texts import padded_texts
from mlp_interp.residual.dictionaries import reads_of, split
from mlp_interp.residual.edited import (
    adds_up,
    between,
    check_units,
    outputs_of,
    streams_of,
    told_by,
    written_by_edits,
)
from mlp_interp.residual.layout import Layout, Units
from mlp_interp.residual.parts import Dense, Heads, Part, Scaled
from mlp_interp.residual.stream import LEVELS, Level, Residual
from mlp_interp.sites import Site, site_of

# Which activation tells, where a norm follows, what of a component gets to the stream.
_BIASES = ("b_O", "b_out")
_UNITS = {"z": "z", "b_O": "z", "post": "post", "b_out": "post"}

__all__ = ["cache_for", "check_site", "components", "decompose", "needed"]


def needed(
    model: Model,
    *,
    level: Level = "component",
    layer: int | None = None,
    dictionaries: Dictionary | Sequence[Dictionary] = (),
) -> list[str]:
    """Hook names that `decompose` reads: the ``names_filter`` to run the model with.

    Raises:
        ValueError: Unknown level, a layer that the model does not have, or a dictionary of another
            model.

    Example:
        >>> from mlp_interp import load_model
        >>> needed(load_model("nano"), level="head", layer=1)
        ['hook_embed', 'blocks.0.attn.hook_z', 'blocks.0.hook_mlp_out', 'blocks.1.hook_resid_pre']
    """
    weights = Weights.of(model)
    layer = _checked_layer(weights, layer)
    runs = Layout.of(weights, level, layer).runs()
    reads = reads_of(weights, each(dictionaries))
    sites = [*_read(weights, runs, _stream(weights, layer)), *reads]
    if has_hooks(model):  # what they write is told by these
        sites += [*outputs_of(weights, layer), *streams_of(weights, layer)]
    return list(dict.fromkeys(site.hook_name for site in sites))


@torch.no_grad()
def cache_for(
    model: Model,
    tokens: Any,
    *,
    attention_mask: Any = None,
    level: Level = "component",
    dictionaries: Dictionary | Sequence[Dictionary] = (),
) -> Any:
    """Run the model and cache just what `decompose` needs at this level, and at coarser ones.

    Args:
        model: The model.
        tokens: Tokens ``[batch, pos]``, padded or not, a text or several, or a list of token ids
            for each.
        attention_mask: 1 where text is, 0 where padding is; None tells it by the rule of
            `mlp_interp.models.padding`.
        level: As in `decompose`.
        dictionaries: As in `decompose`: transcoders read what components do not tell.

    Returns:
        The model's `ActivationCache`, with the tokens under the key ``"tokens"`` so that losses can
        be computed from it. Texts begin at position 0; ``"attention_mask"`` says where they end.

    Raises:
        ValueError: Unknown level, tokens that the model cannot take, or a dictionary of another
            model.
    """
    if hasattr(tokens, "clean_tokens"):
        raise ValueError(
            f"tokens={type(tokens).__name__} has two sides; wanted its clean_tokens or its "
            "corrupted_tokens"
        )
    weights, texts = Weights.of(model), padded_texts(model, tokens, attention_mask)
    ran = weights.checked(texts.tokens)
    # A little more than the heads or neurons themselves, so that one cache serves every level.
    names = {
        *needed(model, level=level, dictionaries=dictionaries),
        *needed(model, level="component"),
    }
    _, cache = model.run_with_cache(ran, names_filter=list(names))
    cache.cache_dict["tokens"] = ran
    # Also where nothing is padding, for a text may end in what pads others.
    real = torch.ones_like(ran) if texts.real is None else texts.real.to(ran)
    cache.cache_dict["attention_mask"] = real
    return cache


@torch.no_grad()
def decompose(
    model: Model,
    cache: Cache,
    *,
    level: Level = "component",
    layer: int | None = None,
    positions: int | Sequence[int] | None = None,
    attention_mask: Any = None,
    dictionaries: Dictionary | Sequence[Dictionary] = (),
) -> Residual:
    """Split a residual stream into the components that wrote it.

    At level ``"component"`` these are the embedding(s) and every layer's whole attention and MLP
    output, biases inside, as TransformerLens caches them and as ablating them removes them. Level
    ``"head"`` splits the attention outputs into heads and the bias ``3.b_O``; level ``"neuron"``
    splits the MLP outputs too, into neurons and the bias ``3.b_out``. Where the stream was edited,
    as by `steer`, what the edit wrote is a component of its own, such as ``edit:3.resid_post``. At
    every level the components sum to the stream (`Residual.error`).

    Where a norm follows attention and MLP (Gemma 3, OLMo 2), heads and neurons have its scale held
    as it was in this pass, and `attrs` say so (``post_norm="frozen"``): they sum to what was added,
    but one of them taken away would change what the norm makes of the others.

    Dictionaries split what their place wrote, at any level but where its neurons or heads already
    do: into the latents that are active somewhere (``L3F17``), the dictionary's bias
    (``3.b_dec``), what passes by them (``3.skip``), and always what none of these explains
    (``3.error``), so that the sum is the stream still.

    Args:
        model: The model the cache was made with.
        cache: An `ActivationCache`, with its batch dimension or without, a `Run`, or a dict of
            hook names to tensors, that holds at least `needed` names.
        level: How fine to split.
        layer: The stream at the input of this block; None or ``n_layers`` for the final stream.
        positions: One position or several; negative counts from the end of each text; None takes
            all.
        attention_mask: 1 where text is, 0 where padding is; None tells it by the rule of
            `mlp_interp.models.padding`. Where texts end at different positions, `Residual.real`
            says which of them each is asked about; all else is NaN.
        dictionaries: SAEs or transcoders of MLPs' or attentions' outputs, one or several, at most
            one of a layer. Of a cross-layer transcoder all that write below `layer`: a latent is
            one component, with what it writes to all these layers.

    Raises:
        ValueError: Unknown level, layer or position; a dictionary of another model or place;
            missing cache entries (the text says which ``names_filter`` to use); NaN in the
            stream; a mask that fits no texts; heads or neurons that do not sum to what their block
            wrote, because that was edited or the cache is of another model.

    References:
        Elhage et al., "A Mathematical Framework for Transformer Circuits", 2021.

    Example:
        >>> import torch
        >>> from mlp_interp import load_model
        >>> model = load_model("nano")
        >>> _, cache = model.run_with_cache(torch.tensor([[0, 5, 6]]))
        >>> residual = decompose(model, cache, level="head", layer=1)
        >>> residual.labels
        ['embed', 'L0H0', 'L0H1', 'L0H2', 'L0H3', 'L0H4', 'L0H5', '0.b_O', '0.mlp']
        >>> residual.error() < 1e-4
        True
    """
    weights = Weights.of(model)
    layer = _checked_layer(weights, layer)
    runs = Layout.of(weights, level, layer).runs()
    dictionaries = each(dictionaries)
    _check(weights, cache, runs, layer, level, reads_of(weights, dictionaries))
    padding = padding_in(
        weights, cache, _shape(weights, cache, layer), attention_mask=attention_mask
    )
    residual = _collect(weights, cache, runs, layer, positions, level, padding)
    if not adds_up(residual.parts, residual.total):
        residual = _with_edits(weights, cache, residual, layer, level)
    return split(weights, residual, dictionaries, partial(_at, cache, positions=residual.positions))


@torch.no_grad()
def components(
    model: Model,
    cache: Cache,
    sites: Site | str | Sequence[Site | str],
    *,
    positions: int | Sequence[int] | None = None,
    attention_mask: Any = None,
    tokens: Tensor | None = None,
) -> Residual:
    """Just some components of the final stream, of any kinds: ``["3.mlp", "L4H2", "L5N7"]``.

    Args:
        model: The model the cache was made with.
        cache: As in `decompose`.
        sites: Which components.
        positions: As in `decompose`.
        attention_mask: As in `decompose`.
        tokens: What was run, where the cache does not say and padding is to be told by it.

    Returns:
        A `Residual` of level ``"selected"`` whose `total` is the whole final stream, so its parts
        need not sum to it.

    Raises:
        ValueError: As `decompose`; also for a label that is no component of this model, and, where
            hooks are on it, for a cache without the outputs that heads or neurons are part of.
    """
    weights = Weights.of(model)
    listed = [sites] if isinstance(sites, str | Site) else sites
    parsed = [site_of(site, argument="sites") for site in listed]
    distinct("sites", [site.label for site in parsed])
    for site in parsed:
        check_site(weights, site)
    # Parts hold neighbours of one kind, so bring those of one layer and kind together.
    ordered = sorted(parsed, key=lambda s: (-1 if s.layer is None else s.layer, s.name))
    grouped = groupby(ordered, key=lambda site: site.whole)
    runs = [(whole, tuple(sites)) for whole, sites in grouped]
    layer = weights.n_layers
    _check(weights, cache, runs, layer, "selected")
    wholes = [whole for whole, _ in runs]
    check_cached(cache, told_by(weights, wholes))
    check_units(weights, cache, wholes, partial(_at, cache, positions=None))
    shape = _shape(weights, cache, layer)
    padding = padding_in(weights, cache, shape, attention_mask=attention_mask, tokens=tokens)
    return _collect(weights, cache, runs, layer, positions, "selected", padding)


def _with_edits(
    weights: Weights, cache: Cache, residual: Residual, layer: int, level: Level
) -> Residual:
    """The same with what edits wrote to the stream.

    Raises:
        ValueError: The cache does not tell it, or heads or neurons are not what their block wrote.
    """
    at = partial(_at, cache, positions=residual.positions)
    wanted = [*between(weights, layer), *streams_of(weights, layer)]
    names = [*needed(weights.model, level=level), *(site.hook_name for site in wanted)]
    check_cached(
        cache,
        between(weights, layer),
        f"names_filter={list(dict.fromkeys(names))}: components do not sum to the stream, as where "
        "it was edited, and these tell what an edit wrote",
    )
    check_units(weights, cache, [part.sites[0].whole for part in residual.parts], at)
    written = written_by_edits(weights, cache, layer, at)
    parts = {part.sites[0].whole: part for part in residual.parts}
    parts |= {site: Dense((site,), x.unsqueeze(2)) for site, x in written.items()}
    runs = Layout.of(weights, level, layer, edits=tuple(written)).runs()
    found = replace(residual, parts=tuple(parts[whole] for whole, _ in runs))
    if not adds_up(found.parts, found.total):
        raise ValueError(
            f"cache: components do not sum to the stream, by {found.error():.1e}; wanted the cache "
            "of one pass of this model"
        )
    return found


def _check(
    weights: Weights,
    cache: Cache,
    runs: Sequence[tuple[Site, Sequence[Site]]],
    layer: int,
    level: Level | Literal["selected"],
    reads: Sequence[Site] = (),
) -> None:
    asked = f"level={level!r}{', dictionaries=dictionaries' if reads else ''}"
    how = f"names_filter=needed(model, {asked}), or use cache_for(model, tokens, {asked})"
    sites = [*_read(weights, runs, _stream(weights, layer)), *reads]
    check_cached(cache, sites, how if level in LEVELS else None)
    check_origin(weights, cache)
    check_whole(weights, cache, _shape(weights, cache, layer)[1])


def _shape(weights: Weights, cache: Cache, layer: int) -> tuple[int, int]:
    batch, pos, *_ = cached(cache, _stream(weights, layer)).shape
    return batch, pos


def _collect(
    weights: Weights,
    cache: Cache,
    runs: Sequence[tuple[Site, Sequence[Site]]],
    layer: int,
    positions: Any,
    level: Level | Literal["selected"],
    padding: Padding | None,
) -> Residual:
    stream = _stream(weights, layer)
    real = None if padding is None else padding.real.to(weights.device)
    positions, real = places(positions, _shape(weights, cache, layer)[1], real)
    total = _at(cache, stream, positions)
    if not bool(torch.isfinite(total).all()):
        raise ValueError(
            "cache holds NaN or infinity in the residual stream; wanted finite values: look at the "
            "weights with check_model(model)"
        )
    parts = tuple(_part(weights, cache, whole, run, positions, total) for whole, run in runs)
    where = "final" if layer == weights.n_layers else stream.label
    attrs = describe(weights.model) | ({} if padding is None else {"data": str(padding)})
    if weights.post_norms and any(whole.name in _UNITS for whole, _ in runs):
        attrs["post_norm"] = "frozen"
    return Residual(parts, total, positions, level, where, attrs, real)


def _part(
    weights: Weights,
    cache: Cache,
    whole: Site,
    sites: Sequence[Site],
    positions: tuple[int, ...],
    total: Tensor,
) -> Part:
    """The part that holds `sites`, which all lie in the activation (or bias) `whole`."""
    units = _UNITS.get(whole.name)
    if units is None:
        values = _at(cache, whole, positions)
        return Dense(sites, values.expand_as(total).unsqueeze(2))
    units = Site(units, whole.layer)
    if whole.name in _BIASES:
        scale = None
        if weights.post_norms:
            scale = frozen_scale(weights, units, _at(cache, units, positions))
        factor = total.new_ones(()) if scale is None else 1 / scale
        bias = weights.parameter(_layer(whole), whole.name)
        return Scaled(sites, factor.expand(*total.shape[:2], 1), bias[None])
    values = frozen(weights, units, _at(cache, units, positions))
    matrix = weights.parameter(_layer(whole), "W_O" if whole.name == "z" else "W_out")
    if not isinstance(sites, Units):  # of all of them nothing need be copied
        chosen = [site.unit for site in sites]
        values, matrix = values[:, :, chosen], matrix[chosen]
    return Heads(sites, values, matrix) if whole.name == "z" else Scaled(sites, values, matrix)


def _read(
    weights: Weights, runs: Sequence[tuple[Site, Sequence[Site]]], stream: Site
) -> list[Site]:
    """The activations that hold the components, then the stream; each once."""
    wholes = [whole for whole, _ in runs]
    if weights.post_norms:
        wholes = [Site(_UNITS.get(whole.name, whole.name), whole.layer) for whole in wholes]
    return list(dict.fromkeys([*(w for w in wholes if w.name not in _BIASES), stream]))


def check_site(weights: Weights, site: Site) -> None:
    """Refuse a site that is not a component of this model's stream.

    Raises:
        ValueError: It is not; the text says what is.
    """
    sizes = {
        "layer": (site.layer, weights.n_layers),
        "head": (site.head, weights.n_heads),
        "neuron": (site.neuron, weights.d_mlp),
    }
    outside = [f"{n} {k}s" for k, (v, n) in sizes.items() if v is not None and not v < n]
    weights.check_names([site.name])
    embedding = site.name == "embed" or (site.name == "pos_embed" and weights.has_pos_embed)
    layered = site.name in ("attn_out", "mlp_out", "b_O", "b_out")
    unit = site.head is not None if site.name == "z" else site.neuron is not None
    if outside or not (embedding or layered or (site.name in ("z", "post") and unit)):
        why = f": the model has {' and '.join(outside)}" if outside else ""
        raise ValueError(
            f"site {site.label!r} is not a component of this model{why}; wanted e.g. 'embed', "
            f"'0.attn', '{weights.n_layers - 1}.mlp', 'L0H{weights.n_heads - 1}' or "
            f"'L0N{weights.d_mlp - 1}'"
        )


def _stream(weights: Weights, layer: int) -> Site:
    return Site("resid_post", layer - 1) if layer == weights.n_layers else Site("resid_pre", layer)


def _layer(site: Site) -> int:
    return site.layer or 0


def _checked_layer(weights: Weights, layer: int | None) -> int:
    layer = weights.n_layers if layer is None else layer
    if not 0 <= layer <= weights.n_layers:
        raise ValueError(f"layer={layer}; wanted 0 to {weights.n_layers} (the final stream)")
    return layer


def _at(cache: Cache, site: Site, positions: tuple[int, ...] | None) -> Tensor:
    """A cached activation at some positions, or all, ``[batch, pos, ...]``."""
    value = cached(cache, site)
    if positions is None:
        return value
    if len(positions) == 1:  # a view
        return value[:, positions[0] : positions[0] + 1]
    whole = positions == tuple(range(value.shape[1]))
    return value if whole else value[:, list(positions)]
