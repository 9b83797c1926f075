"""Directions from what differs between two sets of prompts."""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from jaxtyping import Int
from torch import Tensor

from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Cache, Model
from mlp_interp.prompts import Contrast
from mlp_interp.prompts.tokenizing import single_token, tokenizer_of
from mlp_interp.steering.directions.activations import Positions, Prompts
from mlp_interp.steering.directions.result import as_direction, separation
from mlp_interp.steering.directions.sides import Sides

__all__ = ["by_answer", "mean_difference", "pca_direction"]


def by_answer(
    contrast: Contrast, answers: str | Sequence[str]
) -> tuple[Int[Tensor, "prompt pos"], Int[Tensor, "prompt pos"]]:
    """Of each pair of a contrast the prompt with one of these answers, and the other one.

    In a `Contrast` of refusals, say, clean is the harmful prompt of some pairs and the harmless one
    of others; directions want all harmful ones on one side.

    Args:
        contrast: Pairs of prompts.
        answers: What follows the prompts of the first side, for example ``" Sorry"``; several where
            the pairs have different ones.

    Returns:
        Tokens of both sides, in the order of the pairs.

    Raises:
        ValueError: Not exactly one prompt of each pair has such an answer; the pairs differ in
            length, so that one tensor would hold padding.

    Example:
        >>> from mlp_interp import load_model, prompts
        >>> contrast = prompts.refusal(load_model("nano"), n=8, seed=0)
        >>> harmful, harmless = by_answer(contrast, " Sorry")
        >>> harmful.shape == harmless.shape == contrast.clean_tokens.shape
        True
    """
    listed = [answers] if isinstance(answers, str) else list(answers)
    if contrast.lengths is not None:
        raise ValueError(
            f"contrast has prompts of {contrast.length_text} tokens; wanted one length, as of "
            "contrast[contrast.lengths == n], or both sides as texts"
        )
    if contrast.tokenizer is None:
        raise ValueError("contrast has no tokenizer to read answers with; wanted one with")
    tokenizer = tokenizer_of(contrast.tokenizer)
    ids = torch.tensor([single_token(tokenizer, word, what="answers") for word in listed])
    clean = torch.isin(contrast.answers.cpu(), ids)
    corrupted = torch.isin(contrast.foils.cpu(), ids)
    if bool((clean == corrupted).any()):
        wrong = int((clean == corrupted).nonzero()[0])
        raise ValueError(
            f"answers={answers!r}: pair {wrong} has answer {contrast.answer_text[wrong]!r} and "
            f"foil {contrast.foil_text[wrong]!r}; wanted exactly one of them"
        )
    first = clean[:, None].to(contrast.clean_tokens.device)
    sides = contrast.clean_tokens, contrast.corrupted_tokens
    return torch.where(first, *sides), torch.where(first, *reversed(sides))


@own_mode()
def mean_difference(
    model: Model,
    positive: Prompts | Cache,
    negative: Prompts | Cache,
    *,
    site: str = "resid_post",
    layers: int | Sequence[int] | None = None,
    positions: Positions = "last",
    heads: int | Sequence[int] | None = None,
    prepend_bos: bool = True,
    batch_size: int = 64,
) -> xr.DataArray:
    """Mean activation on positive prompts less that on negative ones.

    Added to the activation it moves the mean of the negative prompts exactly onto that of the
    positive ones, so coefficient 1 means something: one difference. Whether the model *uses* the
    direction is not said by it; steer with it, and with `random_direction`, to see.

    Args:
        model: The model.
        positive: Prompts that have the property, as texts or tokens ``[prompt, pos]``. Lengths may
            differ; nothing is padded. Or a run or cache of such prompts that holds the site.
        negative: Prompts that have not; as many or not.
        site: Where: ``resid_pre``, ``resid_post``, ``attn_out``, ``mlp_out``; ``z``, ``q``, ``k``,
            ``v`` give a direction for each head, ``pre`` and ``post`` one across neurons.
        layers: At which layers; None for all.
        positions: Which position of each prompt: ``"last"``, an index (negative from the end), or
            ``"mean"`` for the mean over all but a BOS at the beginning.
        heads: Which heads, where the site has heads; None for all.
        prepend_bos: Whether texts begin with BOS. Tokens are taken as they are.
        batch_size: How many prompts run at once.

    Returns:
        ``[layer, d_model]`` (``[layer, head, d_head]``, ``[layer, neuron]``) in units of the
        activation. Along the layers lie `norm`, the length, and `separation`: the chance that of a
        positive and a negative prompt the positive one lies further along the direction (AUROC; 0.5
        says nothing). It is in-sample, from the prompts that made the direction, and with fewer
        prompts than dimensions it is near 1 even for noise.

    Raises:
        ValueError: No prompts, an unknown site, layers, heads or positions that are not there.

    References:
        Arditi et al. 2024, "Refusal in Language Models Is Mediated by a Single Direction",
        arXiv:2406.11717, section 2.3.

    Example:
        >>> from mlp_interp import load_model, prompts
        >>> model = load_model("nano")
        >>> harmful, harmless = by_answer(prompts.refusal(model, n=16, seed=0), " Sorry")
        >>> refusal = mean_difference(model, harmful, harmless)
        >>> refusal.sizes, float(refusal.separation.sel(layer=3))
        (Frozen({'layer': 4, 'd_model': 192}), 1.0)
    """
    sides = Sides(model, site, layers, heads, positions, batch_size, prepend_bos)
    ours, theirs = sides.both(positive, negative)
    difference = ours.mean(0) - theirs.mean(0)
    about = "mean_difference", "difference of mean activations"
    return _direction(sides, ours, theirs, difference, about)


@own_mode()
def pca_direction(
    model: Model,
    positive: Prompts | Cache,
    negative: Prompts | Cache,
    *,
    site: str = "resid_post",
    layers: int | Sequence[int] | None = None,
    positions: Positions = "last",
    heads: int | Sequence[int] | None = None,
    prepend_bos: bool = True,
    batch_size: int = 64,
) -> xr.DataArray:
    """First principal component of the differences of contrast pairs.

    The differences are not centred: what all pairs share is what is looked for. It is the same as
    principal components of every pair taken both ways round, which is what shuffling the order
    within pairs comes to in the paper. The sign is such that positive prompts lie further along it
    on average, and the length is the root mean square of the pairs' differences along it, so that
    coefficient 1 is about one difference.

    Args:
        model: The model.
        positive: Prompts that have the property.
        negative: Their partners, as many.
        site: As of `mean_difference`, as are all that follow.
        layers: At which layers; None for all.
        positions: Which position of each prompt.
        heads: Which heads, where the site has heads.
        prepend_bos: Whether texts begin with BOS.
        batch_size: How many prompts run at once.

    Returns:
        As of `mean_difference`, with `explained` beside `norm` and `separation`: the share of the
        differences' squared length that lies along the direction.

    Raises:
        ValueError: As `mean_difference`; unequal numbers; pairs that do not differ at all.

    References:
        Zou et al. 2023, "Representation Engineering", arXiv:2310.01405, section 3.1.

    Example:
        >>> from mlp_interp import load_model, prompts
        >>> model = load_model("nano")
        >>> harmful, harmless = by_answer(prompts.refusal(model, n=16, seed=0), " Sorry")
        >>> bool((pca_direction(model, harmful, harmless, layers=[2, 3]).explained > 0.5).all())
        True
    """
    sides = Sides(model, site, layers, heads, positions, batch_size, prepend_bos)
    ours, theirs = sides.both(positive, negative, paired=True)
    pairs = np.moveaxis(ours - theirs, 0, -2)  # [..., pair, d]
    _, sizes, axes = np.linalg.svd(pairs, full_matrices=False)
    total = (sizes**2).sum(-1)
    if not (total > 0).all():
        raise ValueError("positive and negative do not differ at this site; wanted pairs that do")
    axis = axes[..., 0, :]
    sign = np.where((pairs.mean(-2) * axis).sum(-1) < 0, -1.0, 1.0)
    length = sizes[..., 0] / np.sqrt(pairs.shape[-2])
    about = "pca", "first component of pairs' differences"
    explained = sizes[..., 0] ** 2 / total
    component = (sign * length)[..., None] * axis
    return _direction(sides, ours, theirs, component, about, explained=explained)


def _direction(
    sides: Sides,
    ours: np.ndarray,
    theirs: np.ndarray,
    values: np.ndarray,
    about: tuple[str, str],
    **coords: np.ndarray,
) -> xr.DataArray:
    method, long_name = about
    return as_direction(
        sides.model,
        values,
        site=sides.site,
        layers=sides.layers,
        heads=sides.heads,
        coords={"separation": separation(ours, theirs, values), **coords},
        attrs={
            "method": method,
            "long_name": long_name,
            "data": f"{len(ours)} positive and {len(theirs)} negative prompts",
            "positive": len(ours),
            "negative": len(theirs),
            "positions": sides.positions,
        },
    )
