"""How wrong the estimates are: exact patching beside them."""

import numpy as np
import xarray as xr
from scipy.stats import rankdata

from mlp_interp.gradients.nodes import as_grid
from mlp_interp.models.indices import count
from mlp_interp.models.options import checked_number

__all__ = ["compare"]

_CELLS = ("layer", "head", "neuron", "pos", "prompt")
_NOTES = {
    "pearson": "correlation of estimated and exact effects",
    "spearman": "correlation of their ranks",
    "sign_agreement": "share of cells whose effect has the right sign",
    "error": "root mean square error, as a share of the exact effects' root mean square",
    "slope": "estimated per exact effect, by least squares",
}


def compare(
    exact: xr.Dataset, estimate: xr.Dataset, *, worst: int = 10, negligible: float = 1e-3
) -> xr.Dataset:
    """Hold estimated effects of patching against exact ones, layer by layer and site by site.

    Published comparisons found attribution patching good for heads and late outputs, and poor for
    residual streams and the first MLP, where the patch changes far more than a gradient can see.
    A high correlation says that the order of cells can be trusted, not their size: see ``slope``
    and ``error`` for that.

    Args:
        exact: From exact patching: ``raw`` ``[site, layer, ...]``, ``clean`` and ``corrupted``
            ``[prompt]``, and ``direction`` among its attributes.
        estimate: From `attribution_patch` with the same prompts, metric and direction, or from
            `as_grid`. Where `exact` patched all positions together, estimates are summed over them.
        worst: How many of the cells that are furthest off to list.
        negligible: Exact effects below this share of the site's largest have no sign to agree with.

    Returns:
        A Dataset: ``pearson``, ``spearman``, ``sign_agreement``, ``error`` and ``slope`` ``[site,
        layer]`` over all other dimensions, NaN where nothing varies; ``exact`` and ``estimate``,
        every cell's effect, positive toward clean; and the worst cells along ``rank``: ``worst``
        (their names), ``worst_exact``, ``worst_estimate``.

    Raises:
        ValueError: Results of other prompts, sites, layers or directions; a bad option; NaN.

    References:
        Nanda, "Attribution patching", 2023; Kramár et al., "AtP*", 2024.

    Example:
        >>> from mlp_interp import load_model, prompts
        >>> from mlp_interp.gradients import as_grid, attribution_patch
        >>> model = load_model("nano")
        >>> estimate = as_grid(attribution_patch(model, prompts.ioi(model, n=4, seed=0)), "z")
        >>> compare(estimate, estimate).sign_agreement.values.tolist()
        [[1.0, 1.0, 1.0, 1.0]]
    """
    _check_options(exact, estimate, worst, negligible)
    true, guess = _aligned(exact, estimate)
    there = _there(exact, true).values
    for name, cells in (("exact", true), ("estimate", guess)):
        if not np.isfinite(cells.values[there]).all():
            raise ValueError(f"{name} holds NaN or infinite effects; wanted finite ones")
    found = {
        name: values.transpose("site", "layer").assign_attrs(unit="", long_name=_NOTES[name])
        for name, values in _agreement(true, guess, negligible).items()
    }
    unit = estimate.attrs["unit"]
    cells = {"exact": true, "estimate": guess}
    return xr.Dataset(
        {
            **found,
            **{
                name: x.assign_attrs(unit=unit, long_name=f"{how} effect of each cell")
                for (name, x), how in zip(cells.items(), ("exact", "estimated"), strict=True)
            },
            **_worst(true, guess, worst, unit),
        },
        attrs={**estimate.attrs, "long_name": "estimated beside exact effects of patching"},
    )


_WORST = ("exact", "estimated")


def _check_options(exact: xr.Dataset, estimate: xr.Dataset, worst: int, negligible: float) -> None:
    count("worst", worst)
    checked_number("negligible", negligible, lambda x: 0 <= x < 1, "a share from 0 to below 1")
    missing = [name for name in ("raw", "clean", "corrupted") if name not in exact]
    if missing or "site" not in exact.coords:
        raise ValueError(
            f"exact holds {list(exact.data_vars)} and {list(exact.coords)}; wanted raw, clean, "
            "corrupted, and the sites, as from exact patching"
        )
    if exact.attrs.get("window", 1) != 1:
        raise ValueError(
            f"exact patched windows of {exact.attrs['window']} layers; wanted one layer at a time, "
            "as estimates are"
        )
    directions = exact.attrs.get("direction"), estimate.attrs.get("direction")
    if directions[0] != directions[1]:
        raise ValueError(
            f"exact has direction={directions[0]!r} and estimate {directions[1]!r}; wanted the same"
        )


def _aligned(exact: xr.Dataset, estimate: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray]:
    """Exact and estimated effects of the same cells."""
    sites = np.atleast_1d(exact.site.values).tolist()
    grid = estimate if "estimate" in estimate else as_grid(estimate, sites)
    noising = exact.attrs["direction"] == "noising"
    true = exact.clean - exact.raw if noising else exact.raw - exact.corrupted
    true = true if "site" in true.dims else true.expand_dims("site")
    guess = grid.estimate
    for dim in set(guess.dims) - set(true.dims):
        if dim != "pos":
            raise ValueError(f"exact={dict(true.sizes)} lacks {dim!r}, which estimate has")
        guess = guess.sum("pos")
    if set(true.dims) != set(guess.dims):
        raise ValueError(
            f"exact={dict(true.sizes)} and estimate={dict(guess.sizes)}; wanted the same dimensions"
        )
    labels = {d: true[d].values for d in true.dims if d in true.coords and d in guess.coords}
    try:
        guess = guess.sel(labels)
    except KeyError as error:
        raise ValueError(f"estimate lacks cells that exact has: {error}") from error
    if true.sizes != guess.sizes:
        raise ValueError(
            f"exact={dict(true.sizes)} and estimate={dict(guess.sizes)}; wanted the same cells"
        )
    for name in ("clean", "corrupted"):
        if not np.allclose(exact[name], grid[name], rtol=1e-3, atol=1e-3):
            raise ValueError(
                f"exact has {name}={exact[name].values} and estimate {grid[name].values}; wanted "
                "the same prompts and metric"
            )
    order = [dim for dim in ("site", *_CELLS) if dim in true.dims]
    return true.transpose(*order), guess.transpose(*order)


def _there(exact: xr.Dataset, cells: xr.DataArray) -> xr.DataArray:
    """Which cells are at positions that their prompts have."""
    there = xr.ones_like(cells, dtype=bool)
    if "pos" not in cells.dims or "clean_token" not in exact.coords:
        return there
    empty = (exact.clean_token == "").drop_vars(exact.clean_token.coords)
    return ~(cells.isnull() & empty).transpose(*cells.dims)


def _worst(
    true: xr.DataArray, guess: xr.DataArray, worst: int, unit: str
) -> dict[str, xr.DataArray]:
    """The cells that are furthest off, the worst first."""
    off = np.abs((guess - true).values).ravel()
    order = np.argsort(-off, kind="stable")[:worst]
    at = np.unravel_index(order, true.shape)
    names = [
        " ".join(
            str(true[dim].values[i]) if dim == "site" else f"{dim} {true[dim].values[i]}"
            for dim, i in zip(true.dims, cell, strict=True)
        )
        for cell in zip(*at, strict=True)
    ]
    named = {"unit": "text", "long_name": "cells that are furthest off"}
    exact, estimated = ({"unit": unit, "long_name": f"their {x} effect"} for x in _WORST)
    return {
        "worst": xr.DataArray(np.array(names, dtype=str), dims="rank", attrs=named),
        "worst_exact": xr.DataArray(true.values[at], dims="rank", attrs=exact),
        "worst_estimate": xr.DataArray(guess.values[at], dims="rank", attrs=estimated),
    }


def _agreement(
    true: xr.DataArray, guess: xr.DataArray, negligible: float
) -> dict[str, xr.DataArray]:
    """What `_NOTES` lists, over all cells of a site and layer."""
    true, guess = (
        x.astype(float).stack(cell=[d for d in x.dims if d not in ("site", "layer")])
        for x in (true, guess)
    )
    # Only the site decides what is negligible: a layer without effects has no signs to agree.
    largest = abs(true).max(["layer", "cell"])
    counts = abs(true) > negligible * largest
    square = (true**2).mean("cell")
    return {
        "pearson": xr.corr(true, guess, "cell"),
        "spearman": xr.corr(_ranks(true), _ranks(guess), "cell"),
        "sign_agreement": (np.sign(true) == np.sign(guess)).where(counts).mean("cell"),
        "error": (((guess - true) ** 2).mean("cell") / square.where(square > 0)) ** 0.5,
        "slope": (true * guess).mean("cell") / square,
    }


def _ranks(values: xr.DataArray) -> xr.DataArray:
    return values.copy(data=rankdata(values, axis=values.get_axis_num("cell"), nan_policy="omit"))
