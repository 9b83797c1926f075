"""The input that drives an activation highest."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Literal

import torch
import xarray as xr
from torch import Tensor

from mlp_interp.models import Forward, HookForward, Weights, describe, forward_of
from mlp_interp.models.protocol import Model
from mlp_interp.neurons.checks import checked_weights
from mlp_interp.neurons.inputs.ascent import ascend
from mlp_interp.neurons.inputs.optima import Found
from mlp_interp.neurons.inputs.options import AscentOptions
from mlp_interp.neurons.inputs.search import Search
from mlp_interp.neurons.inputs.space import Space
from mlp_interp.neurons.inputs.target import AscentTarget, check_site, unit_direction
from mlp_interp.neurons.inputs.vectors import decoded, prompt_tokens, vocabulary_of
from mlp_interp.sites import SiteLike

__all__ = ["maximize"]


def maximize(
    model: Model,
    site: SiteLike,
    *,
    method: Literal["gradient", "coordinate"] = "gradient",
    direction: Tensor | None = None,
    sign: int = 1,
    length: int = 8,
    position: int | None = -1,
    prompt: str | Tensor | None = None,
    prepend_bos: bool = True,
    steps: int | None = None,
    restarts: int = 4,
    near_tokens: float | int = 0.0,
    rate: float | int = 0.1,
    candidates: int | None = 64,
    vocabulary: Sequence[int] | Tensor | None = None,
    max_new_tokens: int = 10,
    batch_size: int = 256,
    seed: int = 0,
) -> xr.Dataset:
    """Search the input that drives a neuron, or a direction, highest (or lowest).

    ``method="gradient"`` moves embeddings freely, by Adam from random ones. LayerNorms
    divide the stream's length out, so a longer vector says nothing more, but drowns what blocks add
    to it; and a very short one is all blocks' work. Each vector's norm is therefore held in the
    range of the middle 90% of the tokens' norms (of centred vectors: the mean over ``d_model`` is
    seen by no LayerNorm). The optimum is not a text: no tokens give it. ``near_tokens`` draws it to
    where they are. ``method="coordinate"`` changes one token at a time, and what it finds is a
    text.

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
        method: How to search. Gradients need a model that the lean forward serves.
        direction: ``[d]``, what the site is projected onto; its length does not matter.
        sign: -1 drives the activation down.
        length: How many free positions.
        position: Where it is read: -1 at the last position, None for the mean over the free ones.
            The model is causal, so at an earlier one the positions after it would be idle: choose a
            smaller `length`.
        prompt: What stands before the free positions: a text, or token ids ``[pos]`` or ``[1,
            pos]`` to which nothing is added.
        prepend_bos: Begin a text, or the lack of a prompt, with BOS, as training texts begin.
        steps: How many; None for 200 (gradient) or 12 for each position (coordinate).
        restarts: Searches from different random tokens or vectors.
        near_tokens: Gradient only. What it costs, in units of the activation, if the squared
            distance to the nearest token's embedding is on average the squared mean norm of the
            tokens. The cost rises over the first half of the steps. 0 leaves the vectors free.
        rate: Gradient only. Length of the first steps, over the length of the vectors.
        candidates: Coordinate only. How many tokens to try at a step: three quarters those whose
            gain is largest to first order, the others random (all random where there is no
            gradient, on models that the lean forward does not serve). None tries the whole
            vocabulary, and ends where no change of a single token could help.
        vocabulary: Token ids to choose among (or to be near to); None for all that the tokenizer
            has.
        max_new_tokens: How far to continue what was found; 0 for not at all.
        batch_size: Texts in a forward pass.
        seed: Of the random starts and candidates. torch's own random state is neither read nor
            changed.

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
        >>> found = maximize(load_model("nano"), "L1N5", length=3, steps=20, restarts=2)
        >>> found["activation"].dims, bool(found["activation"][0] > found["trace"][0, 0])
        (('restart',), True)
    """
    # Enabling gradients does not leave inference mode, and what is made in it cannot be climbed on.
    with torch.inference_mode(False), torch.no_grad():
        options = AscentOptions(
            method=method,
            sign=sign,
            length=length,
            position=position,
            steps=steps,
            restarts=restarts,
            near_tokens=near_tokens,
            rate=rate,
            candidates=candidates,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            seed=seed,
        )
        weights = Weights.of(model)
        place = check_site(weights, site, directed=direction is not None)
        along = None if direction is None else unit_direction(weights, place, direction)
        before = prompt_tokens(model, prompt, prepend_bos=prepend_bos)
        _check_room(model, before.shape[1], options)
        allowed = vocabulary_of(model, vocabulary)
        checked_weights(model)
        forward = _forward(model, method)
        target = AscentTarget(forward, place, sign, along, length if position is None else 1)
        space = Space(forward, before, allowed, length)
        found = _climb(target, space, options)
        return found.dataset(batch_size=batch_size, max_new_tokens=max_new_tokens).assign_attrs(
            {
                **describe(model),
                **options.attrs(),
                "analysis": "maximize",
                "long_name": f"inputs that drive {place.label} up (sign 1) or down (sign -1)",
                "data": "none but the prompt",
                "site": place.label,
                "unit": f"activation of {place.label}",
                "prompt": decoded(model, before)[0],
                "engine": forward.engine,
            }
        )


def _climb(target: AscentTarget, space: Space, options: AscentOptions) -> Found:
    if options.method == "gradient":
        vectors, trace = ascend(
            target,
            space,
            space.start_vectors(options.restarts, options.seed),
            steps=options.max_steps,
            rate=float(options.rate),
            near_tokens=float(options.near_tokens),
        )
        return Found(target, space, vectors, None, trace)
    some = options.candidates is not None and options.candidates < len(space.vocabulary)
    search = Search(
        target,
        space,
        steps=options.max_steps,
        candidates=options.candidates if some else None,
        batch_size=options.batch_size,
        seed=options.seed,
    )
    tokens, trace = search.climb(space.start_tokens(options.restarts, options.seed))
    return Found(target, space, space.rows[tokens.to(space.rows.device)], tokens, trace)


def _forward(model: Model, method: str) -> Forward | HookForward:
    """A forward pass that can be differentiated, if the method needs one.

    Raises:
        ValueError: It needs one, and there is none.
    """
    forward = forward_of(model)
    if isinstance(forward, Forward):
        # Matrices folded in inference mode cannot be differentiated through; copies can.
        blocks = [
            replace(p, **{f.name: getattr(p, f.name).clone() for f in fields(p)})
            if any(getattr(p, f.name).is_inference() for f in fields(p))
            else p
            for p in forward.blocks
        ]
        return Forward(forward.weights, blocks)
    if method == "gradient":
        raise ValueError(
            f"method='gradient' on model={model.cfg.model_name!r}, which the lean forward does not "
            "serve, or which has hooks left on it; wanted method='coordinate'"
        )
    return forward


def _check_room(model: Model, before: int, options: AscentOptions) -> None:
    context = int(model.cfg.n_ctx)
    if before + options.length + options.max_new_tokens > context:
        raise ValueError(
            f"length={options.length} and max_new_tokens={options.max_new_tokens} after {before} "
            f"tokens exceed the model's context of {context}"
        )
