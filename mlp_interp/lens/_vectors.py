"""`read_vectors`: any vectors of the stream's width, read as tokens."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mlp_interp.lens.promotion import ABOUT, Promotion
from mlp_interp.models import Weights, describe
from mlp_interp.models.finite import check_finite
from mlp_interp.models.indices import each
from mlp_interp.models.norm import Norm
from mlp_interp.models.options import checked_number, checked_tensor
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.reading import ids_and_texts
from mlp_interp.results import strings, to_numpy, variable

__all__ = ["read_vectors"]


@own_mode()
@torch.no_grad()
def read_vectors(
    model: Model,
    vectors: Any,
    *,
    labels: Sequence[str] | None = None,
    scale: Literal["own"] | float = "own",
    k: int = 10,
    controls: int = 100,
    seed: int = 0,
) -> xr.Dataset:
    """Which tokens would vectors raise and lower, if the readout were given them?

    For value vectors, steering directions, what an OV matrix makes of something: whatever stands in
    the stream. It is what a vector says directly, not what later layers make of it. A large logit
    says that the vector lies along what the readout reads; ``promoted_p`` how often a random
    direction has as large a one by chance, with as many vectors as are read not allowed for. The
    readout's bias, which is there whatever is read, is left out.

    Args:
        model: The model.
        vectors: ``[vector, d_model]`` or one ``[d_model]``: a tensor, an array, or a DataArray
            along ``d_model`` and at most one more dim, as steering directions are.
        labels: Their names; None for the DataArray's coordinates, or numbers.
        scale: What they are divided by: ``"own"``, what the final norm would divide by if a vector
            were a whole stream far larger than its epsilon, so that lengths do not matter (a model
            without a norm divides by nothing); or a number, as the scale of a
            stream that they are added to (1 for logits of the vectors as they are).
        k: How many tokens of each sign.
        controls: How many random directions, drawn evenly. Their opposites have a part in the mean
            alone.
        seed: Of the draws.

    Returns:
        A Dataset along ``component`` (and ``rank``): ``promoted_id``, ``promoted_logit`` (over the
        mean of all logits, which no probability feels, and before a cap on them),
        ``promoted_text``; ``promoted_random``, the logit at that rank of a random direction of the
        same length; ``promoted_p``, (1 + draws whose largest logit is as large) / (1 + draws);
        the same of ``suppressed``; and ``length``,
        the L2 norm of what the final norm keeps, before it is divided.

    Raises:
        ValueError: Vectors of another width or that are not finite, labels that are not one each, a
            scale that is no positive number, `k` outside the vocabulary.

    References:
        Geva et al. 2022; Dar et al., "Analyzing Transformers in Embedding Space", 2023.

    Example:
        >>> from mlp_interp import load_model
        >>> from mlp_interp.models import Unembed
        >>> model = load_model("nano")
        >>> found = read_vectors(model, Unembed.of(model).weight[:, 700], k=3)
        >>> int(found.promoted_id[0, 0]), bool(found.promoted_p[0] < 0.01)
        (700, True)
    """
    weights = Weights.of(model)
    given, names = _given(vectors, labels, weights.d_model)
    if scale != "own":
        scale = _positive(scale)
    promotion = Promotion.of(weights, k, controls, seed)
    norm = weights.final_norm
    kept = norm.keep(given.to(promotion.tokens.mean))
    check_finite("vectors", kept)
    found = promotion.read(_alone(norm, kept) if scale == "own" else kept / scale)
    length = torch.linalg.vector_norm(kept, dim=-1, dtype=torch.float64)
    variables = {"length": variable("component", length, unit="stream")}
    variables |= of_promotion(model, found, ("component",))
    return xr.Dataset(
        variables,
        coords={"component": names, "rank": np.arange(k)},
        attrs={
            "analysis": "vectors as tokens",
            "long_name": "tokens that vectors raise and lower",
            "unit": "logits",
            "scale": scale,
            "controls": controls,
            "seed": seed,
            "exact": 1,
            "data": "the weights alone",
            **describe(model),
        },
    )


def of_promotion(
    model: Model, found: Mapping[str, Tensor | np.ndarray], dims: tuple[str, ...]
) -> dict[str, xr.Variable]:
    """Variables of what `Promotion.read` gives, with units and how tokens read."""
    result = {}
    for name, x in found.items():
        values = to_numpy(x) if isinstance(x, Tensor) else x
        own = (*dims, "rank")[: values.ndim]
        unit, long_name = ABOUT[name]
        if name.endswith("_id"):
            stem = name.removesuffix("_id")
            result |= ids_and_texts(model, stem, own, values, long_name)
        else:
            result[name] = variable(own, values, unit=unit, long_name=long_name)
    return result


def _given(
    vectors: Any, labels: Sequence[str] | None, d_model: int
) -> tuple[Float[Tensor, "vector d_model"], np.ndarray]:
    """Vectors one a row, and their names.

    Raises:
        ValueError: They are none, or have another width, or names that are not one each.
    """
    names: Any = labels
    if isinstance(vectors, xr.DataArray):
        if "d_model" not in vectors.dims or vectors.ndim > 2:
            raise ValueError(
                f"vectors has dims {vectors.dims}; wanted 'd_model' and at most one more"
            )
        vectors = vectors.transpose(..., "d_model")
        if names is None and vectors.ndim == 2:
            dim = vectors.dims[0]
            names = [f"{dim} {x}" if dim != "component" else x for x in vectors[dim].values]
        vectors = torch.from_numpy(vectors.values.copy())
    wanted = f"floats [vector, {d_model}]"
    rows = torch.atleast_2d(checked_tensor("vectors", vectors, wanted)).detach()
    if rows.ndim != 2 or rows.shape[1] != d_model or not len(rows) or not rows.is_floating_point():
        raise ValueError(f"vectors={tuple(rows.shape)} of {rows.dtype}; wanted {wanted}")
    names = [str(n) for n in range(len(rows))] if names is None else [str(x) for x in each(names)]
    if len(names) != len(rows):
        raise ValueError(f"labels has {len(names)} names for {len(rows)} vectors; wanted one each")
    return rows, strings(names)


def _positive(scale: Any) -> float:
    """A number that vectors are divided by.

    Raises:
        ValueError: It is none, or not above zero and finite.
    """
    good = "'own' or a positive number"
    return float(checked_number("scale", scale, lambda x: 0 < x < np.inf, good))


def _alone(norm: Norm, kept: Float[Tensor, "vector d_model"]) -> Float[Tensor, "vector d_model"]:
    """Vectors as the norm leaves them if each is a stream of its own; its epsilon has no part."""
    if norm.kind == "none":
        return kept
    largest = kept.abs().amax(-1, keepdim=True)
    return torch.where(largest > 0, Norm(norm.kind, 0.0).standardize(kept / largest), 0)
