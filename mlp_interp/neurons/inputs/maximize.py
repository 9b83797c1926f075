"""The input that drives an activation highest."""

from typing import Any

import torch
import xarray as xr
from torch import Tensor

from mlp_interp.models import Forward, HookForward, Weights, describe, forward_of
from mlp_interp.models.finite import check_weights
from mlp_interp.models.options import check_counts
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.neurons.inputs.ascent import ascend
from mlp_interp.neurons.inputs.optima import Optima
from mlp_interp.neurons.inputs.options import AscentOptions
from mlp_interp.neurons.inputs.search import Search
from mlp_interp.neurons.inputs.space import Space
from mlp_interp.neurons.inputs.target import AscentTarget, check_site, unit_direction
from mlp_interp.neurons.inputs.vectors import decoded, prompt_tokens, vocabulary_of
from mlp_interp.sites import SiteLike

__all__ = ["maximize"]


@own_mode()
def maximize(
    model: Model,
    site: SiteLike,
    *,
    direction: Tensor | None = None,
    sign: int = 1,
    length: int = 8,
    position: int | None = -1,
    prompt: str | Tensor | None = None,
    prepend_bos: bool = True,
    max_new_tokens: int = 10,
    ascent: AscentOptions = AscentOptions(),
) -> xr.Dataset:
    """Search the input that drives a neuron, or a direction, highest (or lowest).

    The method ``"gradient"`` moves embeddings freely, by Adam from random ones. LayerNorms
    divide the stream's length out, so a longer vector says nothing more, but drowns what blocks add
    to it; and a very short one is all blocks' work. Each vector's norm is therefore held in the
    range of the middle 90% of the tokens' norms (of centred vectors: the mean over ``d_model`` is
    seen by no LayerNorm). The optimum is not a text: no tokens give it. ``near_tokens`` draws it to
    where they are. ``"coordinate"`` changes one token at a time, and what it finds is a text.

    Both find local optima: what is found is a lower bound of what the model can do, and need not
    look like any text that the model was trained on. Restarts that agree say more than one.

    A neuron ``"L3N669"`` is its activation (``post``), ``"L3N669.pre"`` its pre-activation. The
    activation is flat where the neuron does not fire; there the pre-activation is climbed instead,
    and wherever it fires the activation itself. (Not on models with hooks that somebody left.)

    Args:
        model: A TransformerLens model.
        site: A neuron (a label, a `Site` or the pair ``(layer, neuron)``); or with `direction` a
            head (``"L3H5"`` for its mixed values, ``"L3H5.q"``), ``"3.mlp"``, ``"3.attn"``,
            ``"3.resid_pre"``, ``"3.resid_post"``, or all of a layer's neurons (``"3.post"``).
        direction: ``[d]``, what the site is projected onto; its length does not matter.
        sign: -1 drives the activation down.
        length: How many free positions.
        position: Where it is read: -1 at the last position, None for the mean over the free ones.
            The model is causal, so at an earlier one the positions after it would be idle: choose a
            smaller `length`.
        prompt: What stands before the free positions: a text, or token ids ``[pos]`` or ``[1,
            pos]`` to which nothing is added.
        prepend_bos: Begin a text, or the lack of a prompt, with BOS, as training texts begin.
        max_new_tokens: How far to continue what was found; 0 for not at all.
        ascent: How to search, as `AscentOptions` says.

    Returns:
        A Dataset over ``restart`` (best first), ``pos`` (the free positions), ``step``, ``rank``
        and ``d_model``:

        - ``activation``: of the optimum; its unit is that of the site.
        - ``trace``: what was climbed, in the same units, at every step.
        - ``embedding``: the vectors that were found, or the tokens' embeddings, centred.
        - ``nearest_id``, ``nearest_text``, ``cosine``: tokens nearest to each vector by their
          angle; ``distance``: squared, to the nearest by distance, over the squared mean norm.
        - ``token_id``, ``token_text``, ``text``: the tokens found, or the nearest ones.
        - ``activation_of_tokens``: when these tokens are run.
        - ``continuation``, ``continuation_of_tokens``: greedy texts, after the optimum and after
          the tokens.

    Raises:
        ValueError: The site is not one number, the model does not have it, it cannot be
            differentiated, or an option is out of range or does not go with another,
            or weights are not finite.

    References:
        Olah et al., "Feature Visualization", 2017. Zou et al., "Universal and Transferable
        Adversarial Attacks on Aligned Language Models", 2023, for candidates by gradient.

    Example:
        >>> from mlp_interp import load_model
        >>> short = AscentOptions(steps=20, restarts=2)
        >>> optima = maximize(load_model("nano"), "L1N5", length=3, ascent=short)
        >>> optima["activation"].dims, bool(optima["activation"][0] > optima["trace"][0, 0])
        (('restart',), True)
    """
    # Enabling gradients does not leave inference mode, and what is made in it cannot be climbed on.
    with torch.inference_mode(False), torch.no_grad():
        _check_reading(sign, length, position, max_new_tokens)
        weights = Weights.of(model)
        place = check_site(weights, site, directed=direction is not None)
        along = None if direction is None else unit_direction(weights, place, direction)
        before = prompt_tokens(model, prompt, prepend_bos=prepend_bos)
        _check_room(model, before.shape[1], length, max_new_tokens)
        vocabulary = vocabulary_of(model, ascent.vocabulary)
        check_weights(model)
        forward = _forward(model, ascent.method)
        target = AscentTarget(forward, place, sign, along, length if position is None else 1)
        optima = _climb(target, Space(forward, before, vocabulary, length), ascent)
        result = optima.dataset(batch_size=ascent.batch_size, max_new_tokens=max_new_tokens)
        return result.assign_attrs(
            {
                **describe(model),
                **ascent.attrs(length),
                "sign": sign,
                "length": length,
                "position": "none" if position is None else position,
                "max_new_tokens": max_new_tokens,
                "analysis": "maximize",
                "exact": 0,
                "approximation": "a search: other inputs may drive it further",
                "long_name": f"inputs that drive {place.label} up (sign 1) or down (sign -1)",
                "data": "none but the prompt",
                "site": place.label,
                "unit": f"activation of {place.label}",
                "prompt": decoded(model, before)[0],
                "engine": forward.engine,
            }
        )


def _climb(target: AscentTarget, space: Space, ascent: AscentOptions) -> Optima:
    steps = ascent.max_steps(space.length)
    if ascent.method == "gradient":
        vectors, trace = ascend(
            target,
            space,
            space.start_vectors(ascent.restarts, ascent.seed),
            steps=steps,
            rate=float(ascent.rate),
            near_tokens=float(ascent.near_tokens),
        )
        return Optima(target, space, vectors, None, trace)
    some = ascent.candidates is not None and ascent.candidates < len(space.vocabulary)
    search = Search(
        target,
        space,
        steps=steps,
        candidates=ascent.candidates if some else None,
        batch_size=ascent.batch_size,
        seed=ascent.seed,
    )
    tokens, trace = search.climb(space.start_tokens(ascent.restarts, ascent.seed))
    return Optima(target, space, space.rows[tokens.to(space.rows.device)], tokens, trace)


def _forward(model: Model, method: str) -> Forward | HookForward:
    """A forward pass that can be differentiated, if the method needs one.

    Raises:
        ValueError: It needs one, and there is none.
    """
    forward = forward_of(model)
    if isinstance(forward, Forward):
        # Matrices folded in inference mode cannot be differentiated through; copies can.
        return Forward(forward.weights, [block.outside_inference() for block in forward.blocks])
    if method == "gradient":
        raise ValueError(
            f"method='gradient' on model={model.cfg.model_name!r}, which the lean forward does not "
            "serve, or which has hooks left on it; wanted method='coordinate'"
        )
    return forward


def _check_reading(sign: Any, length: Any, position: Any, max_new_tokens: Any) -> None:
    if sign not in (1, -1):
        raise ValueError(f"sign={sign}; wanted 1 (highest) or -1 (lowest)")
    check_counts(length=length)
    check_counts(0, max_new_tokens=max_new_tokens)
    if position not in (None, -1, length - 1):
        raise ValueError(
            f"position={position} of length={length} free positions; wanted -1, the last (those "
            "after it would be idle: take a smaller length), or None, their mean"
        )


def _check_room(model: Model, before: int, length: int, new: int) -> None:
    context = int(model.cfg.n_ctx)
    if before + length + new > context:
        raise ValueError(
            f"length={length} and max_new_tokens={new} after {before} tokens exceed the model's "
            f"context of {context}"
        )
