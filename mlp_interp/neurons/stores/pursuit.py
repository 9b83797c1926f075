"""Which few value vectors make up a direction of the stream, and what is left without them?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.models import Weights, describe
from mlp_interp.models.indices import count, indices, is_single
from mlp_interp.models.options import check_choice, checked_count, checked_seed
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.models.vectors import Vectors, unit
from mlp_interp.models.vocabulary import Best, TokenDirections
from mlp_interp.prompts.reading import ids_and_texts
from mlp_interp.prompts.single import token_id
from mlp_interp.results import to_numpy, variable
from mlp_interp.sites import Site

__all__ = ["pursue"]


@own_mode()
@torch.no_grad()
def pursue(
    model: Model,
    target: Any,
    *,
    layers: int | Sequence[int] | None = None,
    steps: int = 10,
    signs: Literal["both", "positive"] = "both",
    refit: bool = True,
    k: int = 5,
    controls: int = 16,
    seed: int = 0,
) -> xr.Dataset:
    """Take value vectors out of a direction one after the other; read what is left as tokens.

    Matching pursuit: at each step the value vector with the largest cosine to what is left is taken
    out of it. With `refit` (orthogonal matching pursuit) all coefficients are fitted anew after
    each step, so that what is left is orthogonal to all that were taken.

    Some vectors fit any direction: with thousands of value vectors in some hundred dimensions a few
    explain much of anything. `explained_chance` is of directions drawn with the value vectors' own
    covariance, and only what is beyond it says something about the target. Nor does a fit say that
    the model writes the direction with these neurons: coefficients are no activations.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        target: A token, as text (``" Paris"``) or id, which stands for the direction that raises
            its logit over the mean; or a vector ``[d_model]``, as a stream at some position.
        layers: Whose value vectors; None for all layers.
        steps: How many to take.
        signs: ``"positive"``: only with positive coefficients, as neurons that fire have them.
            Where no cosine is left that is positive, that is 0. With `refit` a coefficient may
            still turn negative when later ones are fitted.
        refit: Fit all coefficients anew after each step.
        k: How many tokens of what is left to name.
        controls: How many directions to draw for the chance level.
        seed: Of those.

    Returns:
        A Dataset along ``step``, from 0 (nothing was taken yet), with ``component`` (the neuron
        taken; ``target`` at step 0), and ``layer`` and ``neuron`` (-1 there):

        - ``cosine``: of the value vector to what was left;
        - ``coefficient``: of it in the end, in units of activation;
        - ``explained``: share of the target's square that is taken out, ``explained_chance`` and
          ``explained_chance_sd`` over the draws;
        - ``promoted_id``, ``promoted_text``, ``promoted_logit`` (with ``place``): the tokens that
          what is left raises most, with a logit over the mean, for sigma = 1.

    Raises:
        ValueError: A target that is no known single token, no id, or no vector of the model's
            width, or is zero; layers that the model does not have; counts out of range.

    References:
        Mallat & Zhang, "Matching Pursuits With Time-Frequency Dictionaries", 1993; Pati et al.,
        "Orthogonal Matching Pursuit", 1993.

    Example:
        >>> from mlp_interp import load_model
        >>> found = pursue(load_model("nano"), " Paris", steps=4)
        >>> str(found["promoted_text"][0, 0].values), found.sizes["step"]
        (' Paris', 5)
        >>> bool((found["explained"].diff("step") > 0).all())
        True
    """
    weights = Weights.of(model)
    weights.check_names(["post"], argument="neurons")
    listed = indices("layers", layers, weights.n_layers)
    check_choice("signs", signs, ("both", "positive"))
    most = min(weights.d_mlp * len(listed), weights.d_model)
    checked_count(steps, most, "directions", name="steps")
    checked_count(k, weights.d_vocab, "tokens")
    generator = torch.Generator().manual_seed(checked_seed(seed))
    count("controls", controls)
    unembed = TokenDirections.unembedding(weights)
    wanted, name = _target(weights, unembed, target)
    values = torch.cat([Vectors.of(weights, layer).value_folded for layer in listed]).double()
    drawn = torch.randn(controls, len(values), generator=generator, dtype=torch.float64)
    chance = drawn.to(values.device) @ unit(values)
    pursuit = _Pursuit.of(torch.cat([wanted[None], chance]), values, steps, signs, refit)
    return _dataset(model, unembed, pursuit, listed, k).assign_attrs(
        target=name, refit=str(refit), signs=signs, controls=controls, seed=seed
    )


@dataclass(frozen=True)
class _Pursuit:
    """Several targets at a time.

    Attributes:
        taken: Which vectors were taken, in order.
        cosine: Of each to what was left.
        coefficient: Of each in the end.
        left: What is left, before the first step and after each.
    """

    taken: Int[Tensor, "target step"]
    cosine: Float[Tensor, "target step"]
    coefficient: Float[Tensor, "target step"]
    left: Float[Tensor, "all_steps target d_model"]

    @classmethod
    def of(
        cls,
        targets: Float[Tensor, "target d_model"],
        values: Float[Tensor, "neuron d_model"],
        steps: int,
        signs: str,
        refit: bool,
    ) -> "_Pursuit":
        units, left, coefficient = unit(values), [targets], targets.new_zeros(len(targets), 0)
        taken = torch.zeros(len(targets), 0, dtype=torch.int64, device=targets.device)
        cosines = []
        for _ in range(steps):
            cosine = unit(left[-1]) @ units.T
            size = (cosine if signs == "positive" else cosine.abs()).scatter(1, taken, -torch.inf)
            taken = torch.cat([taken, size.argmax(1, keepdim=True)], dim=1)
            cosines.append(cosine.gather(1, taken[:, -1:]))
            chosen = values[taken]
            if refit:
                fitted = torch.linalg.lstsq(chosen.mT, targets[..., None]).solution[..., 0]
            else:
                last = (left[-1] * chosen[:, -1]).sum(-1) / chosen[:, -1].square().sum(-1)
                last = last.clamp_min(0) if signs == "positive" else last
                fitted = torch.cat([coefficient, last[:, None]], dim=1)
            coefficient = fitted
            left.append(targets - torch.einsum("ts,tsd->td", coefficient, chosen))
        return cls(taken, torch.cat(cosines, dim=1), coefficient, torch.stack(left))

    @property
    def explained(self) -> Float[Tensor, "all_steps target"]:
        """Share of each target's square that is taken out."""
        left = self.left.square().sum(-1)
        return 1 - left / left[0]


def _target(
    weights: Weights, unembed: TokenDirections, target: Any
) -> tuple[Float[Tensor, " d_model"], str]:
    """The direction that was asked for, as norms see it, and what to call it."""
    if not isinstance(target, str) and not is_single(target):
        return _vector(weights, target), "a vector"
    ids = torch.tensor(token_id(weights, target, name="target"), device=weights.device)
    name = target if isinstance(target, str) else f"#{int(target)}"
    return unembed.columns(ids).double(), name


def _vector(weights: Weights, target: Any) -> Float[Tensor, " d_model"]:
    """A vector that was given, without what norms take out.

    Raises:
        ValueError: It is none of the model's width, not finite, or zero.
    """
    try:
        vector = torch.as_tensor(target).detach().to(weights.device, torch.float64)
    except (TypeError, ValueError, RuntimeError):
        vector = torch.zeros(0)
    if vector.shape != (weights.d_model,):
        got = getattr(target, "shape", type(target).__name__)
        raise ValueError(f"target={got}; wanted a token, or a vector of {weights.d_model} numbers")
    vector = weights.norm.keep(vector)
    if not bool(vector.isfinite().all()) or not bool(vector.any()):
        raise ValueError("target is zero or not finite; wanted a vector with a direction")
    return vector


def _dataset(
    model: Model,
    unembed: TokenDirections,
    pursuit: _Pursuit,
    layers: Sequence[int],
    k: int,
) -> xr.Dataset:
    taken, width = pursuit.taken[0].tolist(), Weights.of(model).d_mlp
    places = [(layers[i // width], i % width) for i in taken]
    labels = ["target", *(Site("post", layer, neuron=n).label for layer, n in places)]
    best = Best(k, torch.positive)
    for tokens, x in unembed.read(pursuit.left[:, 0].to(unembed.mean)):
        best.add(tokens, x)
    logit, ids = best.numbers_and_tokens()
    chance = pursuit.explained[:, 1:]
    step, place = ("step",), ("step", "place")
    variables = {
        "cosine": variable(
            step,
            _after(pursuit.cosine[0]),
            unit="cosine",
            long_name="value vector and what is left",
        ),
        "coefficient": variable(
            step, _after(pursuit.coefficient[0]), unit="activation", long_name="in the end"
        ),
        "explained": variable(
            step, pursuit.explained[:, 0], unit="fraction", long_name="share of the target's square"
        ),
        "explained_chance": variable(
            step, chance.mean(1), unit="fraction", long_name="the same of drawn directions, mean"
        ),
        "explained_chance_sd": variable(
            step, chance.std(1), unit="fraction", long_name="its standard deviation over draws"
        ),
        "promoted_logit": variable(
            place, logit, unit="logits", long_name="raise by what is left, for sigma = 1"
        ),
        **ids_and_texts(model, "promoted", place, to_numpy(ids), "tokens that what is left raises"),
    }
    coords = {
        "step": np.arange(len(labels)),
        "component": ("step", labels),
        "layer": ("step", [-1, *(layer for layer, _ in places)]),
        "neuron": ("step", [-1, *(n for _, n in places)]),
    }
    attrs = {
        "analysis": "pursue",
        "exact": 0,
        "approximation": "greedy: each step takes the best vector given those before it; others, "
        "as many, may explain more",
        "long_name": "value vectors that a direction is made of",
        "unit": "see each variable",
        "data": "the weights alone",
    }
    return xr.Dataset(variables, coords=coords, attrs={**describe(model), **attrs})


def _after(x: Float[Tensor, " step"]) -> np.ndarray:
    """Numbers of each step, where step 0 has none."""
    return np.concatenate([[np.nan], to_numpy(x)])
