"""`recovery`: whether a dictionary has found features that are known."""

from typing import Any

import numpy as np
import scipy.optimize
import torch
import torch.nn.functional as F
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mlp_interp.dictionaries import Dictionary
from mlp_interp.dictionaries.reading import check_dictionary
from mlp_interp.models.finite import check_finite
from mlp_interp.models.options import checked_seed
from mlp_interp.results import described, mean_and_error, to_numpy, variable

__all__ = ["recovery"]


def recovery(
    dictionary: Dictionary, truth: Float[Tensor, "feature d_out"], *, seed: int = 0
) -> xr.Dataset:
    """How nearly the latents of a dictionary write features that were planted.

    Two matchings: to each feature its nearest latent (several features may have the same one, which
    ``shared`` says), and one to one, with the largest sum of cosines. One-to-one scores alone hide
    that a latent merges two features, nearest ones alone that a feature is split over several.
    Beside them stand as many random directions: in few dimensions, some are near anything.

    Args:
        dictionary: An SAE or transcoder of one layer.
        truth: The features' directions, of any length; their sign counts, as latents are positive.
        seed: Of the random directions.

    Returns:
        A Dataset along ``source`` (latents, random) and ``feature``: ``cosine`` and ``nearest``, of
        the nearest; ``cosine_matched`` and ``matched`` of the one-to-one matching, NaN and -1 where
        there are fewer latents than features; ``shared``, whether it is nearest to another feature,
        too. Means over features with ``_se``: ``mean_cosine``, ``mean_matched``, ``collisions``
        (share of features that share their latent).

    Raises:
        ValueError: Other widths, or features of length 0 or that are not finite.

    References:
        Sharkey et al., "Taking features out of superposition with sparse autoencoders", 2022, on
        the mean of largest cosines.

    Example:
        >>> from mlp_interp.dictionaries import TopK
        >>> axes = torch.eye(4)
        >>> sae = Dictionary(axes, torch.zeros(4), axes, torch.zeros(4), TopK(1), layer=0)
        >>> found = recovery(sae, torch.tensor([[1.0, 0, 0, 0], [3.0, 0.1, 0, 0]]))
        >>> found.nearest.sel(source="latents").values, float(found.collisions[0])
        (array([0, 0]), 1.0)
    """
    check_dictionary(dictionary)
    if dictionary.spans > 1 or truth.ndim != 2 or truth.shape[1] != dictionary.d_out:
        raise ValueError(
            f"truth={tuple(truth.shape)} with {dictionary!r}; wanted features of the width of one "
            f"layer, {dictionary.d_out}"
        )
    check_finite("truth", truth)
    lengths = truth.norm(dim=-1)
    if not len(truth) or bool((lengths == 0).any()):
        raise ValueError("truth has no features, or one of length 0; wanted directions")
    generator = torch.Generator().manual_seed(checked_seed(seed))
    rows = dictionary.W_dec.detach().double().cpu()
    drawn = torch.randn(rows.shape, generator=generator, dtype=torch.float32)
    sources = {"latents": rows, "random": drawn.double()}
    known = F.normalize(truth.detach().double().cpu(), dim=-1)
    each = [_matched(to_numpy(known @ F.normalize(x, dim=-1).T)) for x in sources.values()]
    found = {name: np.stack([one[name] for one in each]) for name in each[0]}
    means = {
        "mean_cosine": found["cosine"],
        "mean_matched": found["cosine_matched"],
        "collisions": found["shared"].astype(float),
    }
    result = xr.Dataset(
        {name: variable(("source", "feature"), x, unit=_UNITS[name]) for name, x in found.items()}
        | {k: v for name, x in means.items() for k, v in _mean(name, x).items()},
        coords={"source": list(sources), "feature": np.arange(len(truth))},
        attrs={
            "analysis": "recovery of planted features",
            "dictionary": repr(dictionary),
            "unit": "cosine",
            "data": f"{len(truth)} features",
            "seed": seed,
            "errors": "standard error over features",
            "exact": 1,
        },
    )
    return described(result, _ABOUT)


_ABOUT = {
    "cosine": "of a feature with the nearest latent",
    "nearest": "latent nearest to a feature",
    "cosine_matched": "of a feature with its own latent, each latent given once",
    "matched": "latent given to a feature, each once",
    "shared": "whether the nearest latent is another feature's, too",
    "mean_cosine": "mean over features of the cosine with the nearest latent",
    "cosine_se": "standard error of: mean over features of the cosine with the nearest latent",
    "mean_matched": "mean over features of the cosine with their own latents",
    "matched_se": "standard error of: mean over features of the cosine with their own latents",
    "collisions": "share of features whose nearest latent is another's, too",
}


_UNITS = {
    "cosine": "cosine",
    "nearest": "index",
    "cosine_matched": "cosine",
    "matched": "index",
    "shared": "truth",
}


def _matched(cosines: np.ndarray) -> dict[str, np.ndarray]:
    """Both matchings of features (rows) and latents."""
    nearest = cosines.argmax(1)
    counts = np.bincount(nearest, minlength=cosines.shape[1])
    features, latents = scipy.optimize.linear_sum_assignment(cosines, maximize=True)
    matched, values = np.full(len(cosines), -1), np.full(len(cosines), np.nan)
    matched[features], values[features] = latents, cosines[features, latents]
    return {
        "cosine": cosines.max(1),
        "nearest": nearest,
        "cosine_matched": values,
        "matched": matched,
        "shared": counts[nearest] > 1,
    }


def _mean(name: str, values: np.ndarray) -> dict[str, Any]:
    unit = "fraction" if name == "collisions" else "cosine"
    pair = mean_and_error(torch.from_numpy(values))
    names = (name, f"{name.removeprefix('mean_')}_se")
    return {k: variable("source", x, unit=unit) for k, x in zip(names, pair, strict=True)}
