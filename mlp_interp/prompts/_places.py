"""Averages over prompts by what stands at a position, where positions do not line up."""

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool
from torch import Tensor

from mlp_interp.prompts.contrast import Contrast

__all__ = ["by_place", "places"]

Result = TypeVar("Result", xr.DataArray, xr.Dataset)

_KINDS = "fiub"


def places(contrast: Contrast) -> dict[str, Bool[Tensor, "prompt pos"]]:
    """What stands at each token of each prompt, in the terms of causal tracing.

    The subject is the phrase that was exchanged (`Contrast.subject`; where that is not known, the
    tokens that differ). Every token of a prompt has one place: the first, before the subject, the
    subject's first, middle and last token, the next one, further ones, and the prompt's last. A
    subject of one token is its last; what is the prompt's last token is nothing else.

    Args:
        contrast: Pairs of prompts, padded or not.

    Returns:
        True where a token has the place, ``[prompt, pos]``, for the places that occur, in order.

    References:
        Meng et al. (2022), "Locating and Editing Factual Associations in GPT", section 2.2.

    Example:
        >>> from mlp_interp import load_model, prompts
        >>> task = prompts.facts(load_model("nano"), n=4, seed=0)
        >>> [name for name, at in places(task).items() if at[1].any()]
        ['first', 'before', 'subject last', 'next', 'further', 'last']
    """
    real = contrast.real.cpu()
    subject = contrast.differs if contrast.subject is None else contrast.subject
    subject = subject.cpu() & real
    positions = torch.arange(contrast.length).expand_as(real)
    last = real.sum(-1, keepdim=True) - 1
    never = torch.full_like(last, contrast.length)
    begins = torch.where(subject, positions, never).amin(-1, keepdim=True)
    ends = torch.where(subject, positions, -1).amax(-1, keepdim=True)
    found = {"last": positions == last}
    found["first"] = positions == 0
    found["subject last"] = positions == ends
    found["subject first"] = positions == begins
    found["subject middle"] = (positions > begins) & (positions < ends)
    found["next"] = (positions == ends + 1) & (ends >= 0)
    found["before"] = positions < begins
    found["further"] = positions > ends
    free = real.clone()
    for name, at in found.items():  # who comes first has the token
        found[name] = at & free
        free &= ~at
    order = ("first", "before", "subject first", "subject middle", "subject last")
    order = (*order, "next", "further", "last")
    return {name: found[name] for name in order if found[name].any()}


def by_place(
    result: Result,
    contrast: Contrast,
    at: Mapping[str, int | Sequence[int] | Tensor] | None = None,
) -> Result:
    """A result by what stands at a position in place of the position itself.

    Prompts of other shapes have their subject elsewhere, and a mean over prompts at one position
    mixes places. This gives each prompt its mean over the tokens of each place; then ``mean``,
    `mi.table` and figures go over prompts.

    Args:
        result: Of dims ``pos`` and, of more than one prompt, ``prompt``: what `patch`,
            `attribution_patch`, `attribute_logits`, `ablate_total`, `causal_trace` and others give.
        contrast: The prompts that it is of, in its order.
        at: Places by name: a position (negative ones from each prompt's own end), a position for
            each prompt, or a mask ``[prompt, pos]``; None for `places`.

    Returns:
        The same with dimension ``place`` for ``pos``; NaN where a prompt has no token of a place.
        A flag becomes the share of tokens that have it. A standard error (``*_se``) of several
        tokens' mean is at most the mean of theirs, which stands there.

    Raises:
        ValueError: The result has no positions, not those of `contrast`, or not its prompts; or a
            place of `at` is outside a prompt, or has not one entry for each.

    Example:
        >>> from mlp_interp import load_model, patch, prompts
        >>> model = load_model("nano")
        >>> task = prompts.facts(model, n=4, seed=0)
        >>> grid = by_place(patch(model, task, sites="resid_pre"), task)
        >>> grid.normalized.mean("prompt").sel(place="last").values.round(2)
        array([[0.  , 0.  , 0.58, 0.93]], dtype=float32)
    """
    masks = places(contrast) if at is None else _chosen(contrast, at)
    positions = _checked(result, contrast)
    known = {"place": list(masks)}
    stacked = torch.stack(list(masks.values()))[..., positions].numpy()
    mask = xr.DataArray(stacked, dims=("place", "prompt", "pos"), coords=known)
    if "prompt" not in result.dims:
        mask = mask.isel(prompt=0)
    if isinstance(result, xr.DataArray):
        return _averaged(result, mask)
    kept = {
        name: _averaged(held, mask) if "pos" in held.dims else held
        for name, held in result.items()
        if "pos" not in held.dims or held.dtype.kind in _KINDS
    }
    return xr.Dataset(kept, attrs=result.attrs)


def _averaged(held: xr.DataArray, mask: xr.DataArray) -> xr.DataArray:
    order: list[Hashable] = ["place" if dim == "pos" else dim for dim in held.dims]
    plain = held.drop_vars("pos", errors="ignore")
    return plain.where(mask).mean("pos", keep_attrs=True).transpose(*order)


def _checked(result: xr.DataArray | xr.Dataset, contrast: Contrast) -> list[int]:
    """The positions that the result has, each within the prompts."""
    if "pos" not in result.dims:
        raise ValueError(
            f"result has dimensions {[*map(str, result.dims)]}; wanted 'pos': place by place is "
            "of results that have a number for each position"
        )
    prompts = result.sizes.get("prompt", 1)
    if prompts != len(contrast):
        raise ValueError(
            f"result is of {prompts} prompts and contrast of {len(contrast)}; wanted the same"
        )
    held = result["pos"].values if "pos" in result.coords else np.arange(result.sizes["pos"])
    positions = [int(pos) for pos in held]
    if not all(0 <= pos < contrast.length for pos in positions):
        raise ValueError(
            f"result is of positions {positions} and contrast of {contrast.length}; wanted "
            "positions of its prompts"
        )
    return positions


def _chosen(
    contrast: Contrast, at: Mapping[str, int | Sequence[int] | Tensor]
) -> dict[str, Bool[Tensor, "prompt pos"]]:
    """A mask for each place that the user names."""
    if not at:
        raise ValueError("at={}; wanted a position for each place by name, or None")
    return {str(name): _mask(contrast, name, given) for name, given in at.items()}


def _mask(
    contrast: Contrast, name: str, given: int | Sequence[int] | Tensor
) -> Bool[Tensor, "prompt pos"]:
    real = contrast.real.cpu()
    values = torch.as_tensor(given).cpu()
    if values.dtype == torch.bool:
        if values.shape != real.shape:
            raise ValueError(
                f"at[{name!r}] has shape {tuple(values.shape)}; wanted {tuple(real.shape)}: one "
                "for each token of each prompt"
            )
        return values & real
    if values.shape not in ((), (len(contrast),)):
        raise ValueError(
            f"at[{name!r}]={given!r}; wanted one position, or one for each of "
            f"{len(contrast)} prompts"
        )
    lengths = real.sum(-1)
    where = values.expand(len(contrast))
    where = torch.where(where < 0, where + lengths, where)
    if bool(((where < 0) | (where >= lengths)).any()):
        raise ValueError(
            f"at[{name!r}]={given!r} is outside prompts of {contrast.length_text} tokens"
        )
    return torch.arange(contrast.length) == where[:, None]
