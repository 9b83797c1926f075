"""Direct logit attribution: what does each component add to a logit?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mlp_interp.dictionaries import Dictionary
from mlp_interp.interchange import merged
from mlp_interp.models import Weights, describe
from mlp_interp.models.caches import CutCache, cached, cached_tokens, check_cached
from mlp_interp.models.indices import indices
from mlp_interp.models.options import check_choice
from mlp_interp.models.origin import check_origin
from mlp_interp.models.padding import padding_in, places
from mlp_interp.models.precision import warn_of_rounding
from mlp_interp.models.protocol import Cache, Model
from mlp_interp.models.slices import check_whole
from mlp_interp.models.unembed import directions, mean_direction
from mlp_interp.models.writes import frozen_scale
from mlp_interp.prompts import Contrast
from mlp_interp.prompts.single import one_each
from mlp_interp.prompts.tokenizing import token_strings
from mlp_interp.residual import Layout, Level, Residual, decompose
from mlp_interp.results import strings, to_numpy
from mlp_interp.runs import Run
from mlp_interp.sites import Site, SiteLike, component_coords

__all__ = ["attribute_logits", "attribute_sources"]

Tokens = int | str | Sequence[int] | Sequence[str] | Int[Tensor, " prompt"]
Foils = Tokens | Literal["mean"] | None


@torch.no_grad()
def attribute_logits(
    model: Model,
    cache: Cache,
    answers: Tokens | Contrast,
    foils: Foils = None,
    *,
    level: Level = "component",
    positions: int | Sequence[int] | None = -1,
    attention_mask: Any = None,
    norm: Literal["freeze", "recompute"] = "freeze",
    dictionaries: Dictionary | Sequence[Dictionary] = (),
) -> xr.DataArray:
    """What each component adds directly to a logit or a difference of logits.

    With ``norm="freeze"`` the final LayerNorm's scale is held at its value in the full run; the
    shares, with the readout's own ``bias``, then sum exactly to the model's logit. With
    ``"recompute"`` a share is how much the logit falls when the component is removed and the scale
    taken anew; those do not sum. Neither counts what a component does through later layers: see
    `mlp_interp.ablation`.

    Args:
        model: The model the cache was made with.
        cache: An `ActivationCache`, `Run` or dict of hook names with the entries of
            `needed(model, level=level)`.
        answers: One token (id or single-token string) for all prompts, or one for each; or the
            `Contrast` whose clean or corrupted prompts were run: its answers, and its foils unless
            others are given, and the result says which task, seed and split they come from.
        foils: The same, to attribute ``logit(answer) - logit(foil)``; ``"mean"`` attributes the
            logit less its mean over the vocabulary, which is the part of the log-probability that
            is linear in the stream (the other part, a log-sum-exp, is not); None attributes the
            plain logit, which depends on processing by a constant per position.
        level: How fine: ``"component"``, ``"head"``, or ``"neuron"`` (every neuron of every layer).
        positions: Which positions' logits, negative ones from the end of each text; None for all.
        attention_mask: 1 where text is, 0 where padding is; None tells it by the rule of
            `mlp_interp.models.padding`. Where texts end at different positions, ``positions=-1``
            gives all of these, NaN where a text does not end.
        norm: ``"freeze"`` or ``"recompute"``.
        dictionaries: What splits MLPs or attentions into latents, as in `decompose`; what they do
            not explain has a share of its own, ``3.error``.

    Returns:
        A DataArray ``[prompt, pos, component]`` in logits, components as in `decompose` plus
        ``bias``; answer and foil strings lie along ``prompt``. NaN at positions that a prompt of a
        `Contrast` does not have.

    Raises:
        ValueError: Missing cache entries, tokens that are not one each, wrong lengths or options,
            shares that are not finite.

    References:
        Elhage et al. 2021 (direct paths); nostalgebraist, "interpreting GPT: the logit lens", 2020.

    Example:
        >>> from mlp_interp import load_model, prompts
        >>> from mlp_interp.residual import cache_for
        >>> model = load_model("nano")
        >>> task = prompts.facts(model, n=4, seed=0)
        >>> cache = cache_for(model, task.clean_tokens, level="head")
        >>> shares = attribute_logits(model, cache, task, level="head")
        >>> shares.attrs["task"], shares.attrs["seed"], shares.attrs["data"]
        ('facts', 0, 'facts: 4 pairs of 10 tokens')
        >>> logits = model(task.clean_tokens)[:, -1]
        >>> index = torch.arange(4)
        >>> difference = logits[index, task.answers] - logits[index, task.foils]
        >>> bool(np.allclose(shares.sum("component").squeeze(), difference.detach(), atol=1e-4))
        True
    """
    check_choice("norm", norm, ("freeze", "recompute"))
    weights = Weights.of(model)
    if isinstance(answers, Contrast) and answers.lengths is not None:
        if dictionaries:
            raise ValueError(
                "dictionaries beside prompts of several lengths; wanted one length: see "
                "Contrast.by_length"
            )
        analysis = partial(attribute_logits, level=level, norm=norm)
        return _by_length(analysis, weights, cache, answers, foils, positions, attention_mask)
    warn_of_rounding(weights, "attribute_logits")
    residual = decompose(
        model,
        cache,
        level=level,
        positions=positions,
        attention_mask=attention_mask,
        dictionaries=dictionaries,
    )
    if isinstance(answers, Contrast):
        _check_ran(weights, cache, answers)
    readout = _Readout.of(weights, residual.total.shape[0], answers, foils)
    shares = _frozen(weights, residual, readout.directions)
    if norm == "recompute":
        shares = _recomputed(weights, residual, readout.directions, shares)
    bias = readout.bias[:, None, None].expand(*shares.shape[:2], 1)
    layout = Layout.of(weights, level, edits=residual.edits)
    if dictionaries:  # which latents are active is of these prompts alone
        labelled = _spread(
            component_coords([*residual.sites, Site("bias")]), shares.shape[0], residual.positions
        )
    else:
        labelled = _labelled(layout, shares.shape[0], residual.positions)
    found = labelled.copy(
        deep=False, data=_finite(torch.cat([shares, bias], dim=-1), residual.real)
    )
    attrs = {
        **readout.attrs(cache),
        **residual.attrs,
        "unit": "logits",
        "long_name": readout.long_name,
        "level": level,
        "norm": norm,
    }
    return found.assign_coords(readout.names).assign_attrs(attrs)


@torch.no_grad()
def attribute_sources(
    model: Model,
    cache: Cache,
    answers: Tokens | Contrast,
    foils: Foils = None,
    *,
    heads: SiteLike | Sequence[SiteLike] | None = None,
    positions: int | Sequence[int] = -1,
    attention_mask: Any = None,
) -> xr.DataArray:
    """Split each head's direct share over the tokens it read, through its attention pattern.

    A head's output is the sum over source positions of ``pattern * v W_O``; each term's share of
    the logit is its dot product with the answer's direction, the LayerNorm's scale held. Sources
    sum to the head's share in `attribute_logits` at level ``"head"``. Where value biases are not
    folded away (raw weights) they are part of ``v`` and so of every source. A norm after attention
    (Gemma 2, OLMo 2) has its scale held, too, which takes ``z``.

    Args:
        model: The model the cache was made with.
        cache: An `ActivationCache`, `Run` or dict of hook names with ``v``, ``pattern`` and the
            final stream.
        answers: As in `attribute_logits`.
        foils: As in `attribute_logits`.
        heads: Heads such as ``"L3H5"``, one or several; None for all.
        positions: The position whose logit is attributed, or several; negative ones count from
            the end of each text.
        attention_mask: As in `attribute_logits`; without the embeddings or the tokens in the cache
            nothing else says what is padding.

    Returns:
        A DataArray ``[prompt, component, source]`` in logits, or ``[prompt, pos, component,
        source]`` for several positions; ``source_token`` says what stands at each source, where the
        cache tells what was run (a `Run` does) and texts are of one length. Where texts end at
        different positions, ``pos`` of a single negative one lies along ``prompt``; sources that
        are padding are NaN.

    Raises:
        ValueError: Missing cache entries (the text says which ``names_filter`` to use); a component
            that is not a head; a position outside the text; wrong tokens.

    Example:
        >>> from mlp_interp import load_model, prompts
        >>> model = load_model("nano")
        >>> task = prompts.ioi(model, n=2, seed=0)
        >>> _, cache = model.run_with_cache(task.clean_tokens)
        >>> attribute_sources(model, cache, task, heads=["L3H0"]).dims
        ('prompt', 'component', 'source')
    """
    weights = Weights.of(model)
    if isinstance(answers, Contrast) and answers.lengths is not None:
        analysis = partial(attribute_sources, heads=heads)
        return _by_length(analysis, weights, cache, answers, foils, positions, attention_mask)
    sites = weights.heads
    if heads is not None:
        sites = weights.places(heads, kind="head", argument="heads")
    stream = Site("resid_post", weights.n_layers - 1)
    layers = sorted({site.layer or 0 for site in sites})
    names = ("pattern", "v", "z") if weights.post_norms else ("pattern", "v")
    read = [Site(name, layer) for layer in layers for name in names]
    check_cached(cache, [*read, stream])
    check_origin(weights, cache)
    check_whole(weights, cache, cached(cache, stream).shape[1])
    final = cached(cache, stream)
    batch, length = final.shape[:2]
    padding = padding_in(weights, cache, (batch, length), attention_mask=attention_mask)
    real = None if padding is None else padding.real.to(final.device)
    chosen, asked = places(positions, length, real)
    at = list(chosen)
    readout = _Readout.of(weights, final.shape[0], answers, foils)
    directions = readout.directions[:, None] / weights.final_norm.scale(final[:, at])
    shares = []
    for site in sites:
        pattern = cached(cache, Site("pattern", site.layer))[:, site.head, at]
        value = cached(cache, Site("v", site.layer))[:, :, weights.value_of(site.unit)]
        written = directions @ weights.parameter(site.layer or 0, "W_O")[site.head].T
        share = pattern * torch.einsum("bsh,bph->bps", value, written)
        if weights.post_norms:
            scale = frozen_scale(weights, site.whole, cached(cache, site.whole))
            share = share if scale is None else share / scale[:, at]
        shares.append(share)
    told = None
    if real is not None and asked is not None:
        told = (asked[:, :, None] & real[:, None])[:, :, None]
    found = xr.DataArray(
        _finite(torch.stack(shares, dim=2), told),
        dims=("prompt", "pos", "component", "source"),
        coords={
            **component_coords(sites),
            "prompt": np.arange(final.shape[0]),
            "source": np.arange(final.shape[1]),
            "pos": at,
            **_source_tokens(model, cache, real),
            **readout.names,
        },
        name="attribution",
        attrs={
            **readout.attrs(cache),
            **({} if padding is None else {"data": str(padding)}),
            **describe(model),
            "unit": "logits",
            "long_name": f"{readout.long_name}, by the token that the head read",
            "norm": "freeze",
            **({"post_norm": "frozen"} if weights.post_norms else {}),
        },
    )
    # As where a DataArray is indexed: one position leaves no axis, several do.
    if np.ndim(positions):
        return found
    if asked is None or len(at) == 1:
        return found.isel(pos=0)
    own = xr.DataArray(to_numpy(asked.int().argmax(1)), dims="prompt")
    return found.isel(pos=own, prompt=xr.DataArray(np.arange(batch), dims="prompt"))


def _by_length(
    analysis: Callable[..., xr.DataArray],
    weights: Weights,
    cache: Cache,
    contrast: Contrast,
    foils: Any,
    positions: Any,
    attention_mask: Any,
) -> xr.DataArray:
    """An attribution of prompts of several lengths, those of each length by themselves."""
    if attention_mask is not None:
        raise ValueError("attention_mask beside a Contrast, whose lengths are known; wanted None")
    groups = contrast.by_length()
    for _, part in groups:
        indices("positions", positions, part.length)
    _check_ran(weights, cache, contrast)
    listed: Any = foils.tolist() if isinstance(foils, Tensor | np.ndarray) else foils
    many = isinstance(listed, Sequence) and not isinstance(listed, str)
    if many and len(listed) != len(contrast):
        raise ValueError(
            f"foils has {len(listed)} tokens for {len(contrast)} prompts; wanted one each, or one"
        )
    results = []
    for rows, part in groups:
        own: Any = CutCache(cache, rows, part.length)
        if isinstance(cache, Run):
            own = cache.cut(rows=rows, length=part.length)
        wrong = [listed[row] for row in rows] if many else foils
        mask = torch.ones_like(part.clean_tokens)  # whatever token a prompt may end in
        found = analysis(weights.model, own, part, wrong, positions=positions, attention_mask=mask)
        results.append(found.assign_coords(prompt=rows).to_dataset(name="attribution"))
    return merged(results, {})["attribution"].assign_attrs(contrast.attrs)


def _check_ran(weights: Weights, cache: Cache, contrast: Contrast) -> None:
    """Refuse a cache of other prompts than a contrast's, or of some of their positions.

    Raises:
        ValueError: It is one.
    """
    ran = tuple(cached(cache, Site("resid_post", weights.n_layers - 1)).shape[:2])
    if ran != tuple(contrast.clean_tokens.shape):
        raise ValueError(
            f"cache is of {ran} tokens; wanted those of the contrast's prompts, "
            f"{tuple(contrast.clean_tokens.shape)}"
        )


@lru_cache(maxsize=16)
def _labelled(layout: Layout, prompts: int, positions: tuple[int, ...]) -> xr.DataArray:
    """An array of no values (one, spread out) with the coordinates of `attribute_logits`.

    Labelling tens of thousands of neurons anew would take longer than computing their shares. The
    coordinates cannot be written to, because all results of one shape share them.
    """
    labelled = _spread(layout.coordinates(), prompts, positions)
    for coordinate in labelled.coords.values():
        coordinate.values.flags.writeable = False
    return labelled


def _spread(coords: Any, prompts: int, positions: tuple[int, ...]) -> xr.DataArray:
    names = coords["component"]
    count = len(names[1]) if isinstance(names, tuple) else names.size
    return xr.DataArray(
        np.broadcast_to(np.float32(0), (prompts, len(positions), count)),
        dims=("prompt", "pos", "component"),
        coords={**coords, "prompt": np.arange(prompts), "pos": list(positions)},
        name="attribution",
    )


def _frozen(
    weights: Weights, residual: Residual, directions: Float[Tensor, "prompt d_model"]
) -> Float[Tensor, "prompt pos component"]:
    # Directions of the folded readout hold nothing that the norm takes out of a component.
    return residual.project(directions[:, None]) / weights.final_norm.scale(residual.total)


def _recomputed(
    weights: Weights,
    residual: Residual,
    directions: Float[Tensor, "prompt d_model"],
    frozen: Float[Tensor, "prompt pos component"],
) -> Float[Tensor, "prompt pos component"]:
    """Fall of the logit on removing each component, from norms and dot products alone."""
    norm = weights.final_norm
    kept, scale = residual.kept_by(norm), norm.scale(residual.total)
    dots, squares = kept.project(kept.total), kept.square_norms()
    removed_scale, _ = norm.after(scale, (2 * dots - squares) / residual.total.shape[-1])
    logit = (kept.total * directions[:, None]).sum(-1, keepdim=True) / scale
    # logit(r) - logit(r - c) with the scale of r - c
    return logit - (logit - frozen) * scale / removed_scale


@dataclass(frozen=True)
class _Readout:
    """The number that is attributed, per prompt: its direction in the stream, bias and names."""

    directions: Float[Tensor, "prompt d_model"]
    bias: Float[Tensor, " prompt"]
    names: dict[str, Any]
    long_name: str
    contrast: Contrast | None

    @classmethod
    def of(cls, weights: Weights, n_prompts: int, answers: Any, foils: Any) -> "_Readout":
        contrast = answers if isinstance(answers, Contrast) else None
        if contrast is not None:
            foils = contrast.foils if foils is None else foils
            answers = contrast.answers
        ids = one_each(weights, answers, n_prompts, "answers")
        names = {"answer": ("prompt", _strings(weights.model, ids))}
        long_name = "share of the answer's logit"
        if isinstance(foils, str) and foils == "mean":
            (chosen, bias), (mean, mean_bias) = directions(weights, ids), mean_direction(weights)
            chosen, bias = chosen - mean, bias - mean_bias
            long_name += " less the mean logit"
        elif foils is not None:
            foil_ids = one_each(weights, foils, n_prompts, "foils")
            if bool((foil_ids == ids).any()):
                raise ValueError("foils equal answers in some prompt; wanted two different tokens")
            (chosen, wrong), (bias, wrong_bias) = directions(weights, torch.stack([ids, foil_ids]))
            chosen, bias = chosen - wrong, bias - wrong_bias
            names["foil"] = ("prompt", _strings(weights.model, foil_ids))
            long_name = "share of logit(answer) - logit(foil)"
        else:
            chosen, bias = directions(weights, ids)
        if weights.cap is not None:
            long_name += ", before the cap on logits"
        return cls(chosen, bias, names, long_name, contrast)

    def attrs(self, cache: Cache) -> dict[str, Any]:
        """Where the prompts come from: all that the contrast knows, and which side was run."""
        if self.contrast is None:
            return {"data": f"{len(self.bias)} prompts", "exact": 1}
        attrs = {**self.contrast.attrs, "exact": 1}
        if (ran := cached_tokens(cache)) is not None:
            sides = {
                "clean": self.contrast.clean_tokens,
                "corrupted": self.contrast.corrupted_tokens,
            }
            found = [name for name, side in sides.items() if torch.equal(side.to(ran.device), ran)]
            attrs.update({"prompts": found[0]} if found else {})
        return attrs


def _strings(model: Model, ids: Int[Tensor, " prompt"]) -> list[str]:
    return token_strings(getattr(model, "tokenizer", None), ids.tolist())


def _source_tokens(model: Model, cache: Cache, real: Tensor | None) -> dict[str, Any]:
    """What stands at each source, where the cache says what was run; nothing where is no text."""
    ran, tokenizer = cached_tokens(cache), getattr(model, "tokenizer", None)
    if ran is None or tokenizer is None:
        return {}
    texts = strings([token_strings(tokenizer, row) for row in torch.atleast_2d(ran).tolist()])
    if real is not None:
        texts = np.where(to_numpy(real), texts, "")
    return {"source_token": (("prompt", "source"), texts)}


def _finite(shares: Tensor, real: Bool[Tensor, "prompt pos ..."] | None) -> np.ndarray:
    """Shares as an array, NaN where padding is.

    Raises:
        ValueError: Others are not finite.
    """
    values, told = to_numpy(shares), np.array(True)
    if real is not None:
        told = to_numpy(real.reshape(*real.shape, *[1] * (shares.ndim - real.ndim)))
    if not (np.isfinite(values) | ~told).all():
        raise ValueError(
            "shares hold NaN or infinity, which the cache does not; look at the weights with "
            "check_model(model)"
        )
    return values if real is None else np.where(told, values, np.nan)
