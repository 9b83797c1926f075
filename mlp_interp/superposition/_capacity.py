"""Bounds on how many features there is room for, and on how many are learnt from so much text."""

import math
from collections.abc import Sequence

import numpy as np
import xarray as xr

from mlp_interp.models.indices import count
from mlp_interp.models.options import checked_number, checked_numbers
from mlp_interp.results import strings, variable

__all__ = ["capacity", "underdetermined"]

_NEEDED = {"directions": 30.0, "amplitudes": 300.0}
"""Activations per feature, measured on planted features: see `underdetermined`."""


def capacity(d: int, k_active: int, noise: float, *, d_mlp: int | None = None) -> xr.Dataset:
    """Orders of magnitude of how many features fit into `d` dimensions, each under its assumption.

    These are no estimates of how many features a model has, and carry no error: each is a bound on
    what *would* fit if its assumption held. Of trained models none holds: features are not random
    directions, nor active independently, and noise is not isotropic (`noise_tolerance`).

    Args:
        d: Dimensions of the space that features are directions of.
        k_active: How many are active at once.
        noise: Interference that is tolerated at a feature's readout, as a share of its activation.
        d_mlp: Neurons of the layer that computes with them; None leaves out the bound that wants
            it.

    Returns:
        A Dataset over ``bound`` with ``features`` (infinite where no double holds it),
        ``log_features`` (natural logarithm) and ``assumption``:

        - ``random directions``: ``exp(noise^2 d / 2 k)``: so many random directions of which `k`
          are active have, at all of them, interference below `noise`;
        - ``cosines``: ``exp(c^2 d / 4)`` with ``c = noise / sqrt(k)``: so many random directions
          have all pairs below the cosine at which interference of `k` reaches `noise`;
        - ``parameters``: the ``m`` with ``m log2 m = 8 * 2 d d_mlp``: computing ``m`` features
          takes as many bits as 8 for every weight; the constant is unknown.

    Raises:
        ValueError: Numbers that are not positive, or more active features than dimensions.

    References:
        Johnson & Lindenstrauss, 1984. Adler & Shavit, "On the complexity of neural computation in
        superposition", arXiv:2409.15318.

    Example:
        >>> found = capacity(512, 8, 0.5, d_mlp=2048)
        >>> found["features"].round().values.tolist()
        [2981.0, 55.0, 851640.0]
    """
    count("d", d)
    count("k_active", k_active, most=d)
    good = "a positive share of a feature's activation"
    noise = checked_number("noise", noise, lambda x: 0 < x < math.inf, good)
    exponent = noise**2 * d / k_active
    bounds = {
        "random directions": (exponent / 2, "directions are random, activity independent"),
        "cosines": (exponent / 4, "directions are random, interference adds up in squares"),
    }
    if d_mlp is not None:
        bits = 16 * d * count("d_mlp", d_mlp)
        about = "8 bits a weight, all of them used; an unknown constant is taken as 1"
        bounds["parameters"] = (_log_features(bits), about)
    logs = np.array([log for log, _ in bounds.values()])
    with np.errstate(over="ignore"):
        features = np.exp(logs)
    return xr.Dataset(
        {
            "features": variable("bound", features, unit="features"),
            "log_features": variable("bound", logs, unit="nats"),
            "assumption": ("bound", strings([about for _, about in bounds.values()])),
        },
        coords={"bound": list(bounds)},
        attrs={
            "analysis": "capacity",
            "long_name": "bounds on how many features fit, under assumptions",
            "unit": "features",
            "exact": 0,
            "approximation": "orders of magnitude under assumptions",
            "d": d,
            "k_active": k_active,
            "noise": float(noise),
        },
    )


def _log_features(bits: int) -> float:
    """Natural logarithm of the m at which ``m log2 m`` is so many bits, by Newton's method."""
    log = math.log(bits)
    for _ in range(50):
        log -= (log + math.log(log) - math.log(bits * math.log(2))) / (1 + 1 / log)
    return log


def underdetermined(tokens: int, rates: Sequence[float] | float) -> xr.Dataset:
    """Whether so many tokens can determine a dictionary's features, by how often they are active.

    A rule of thumb from planted features (random unit directions in 64 dimensions, 4 active of 256
    or 512, a sparse autoencoder of the true width): directions were found from 15 to 30 activations
    per feature on, held-out reconstruction needed hundreds. Correlated or absorbed features need
    more, and no amount of text makes a wrong width right.

    Args:
        tokens: How many there are.
        rates: Share of tokens at which a feature is active, of one feature or several.

    Returns:
        A Dataset over ``feature``: ``activations`` expected, and over ``need`` too (``directions``,
        ``amplitudes``): ``determined``, and the ``tokens`` that it would take.

    Raises:
        ValueError: `tokens` below 1, or a rate that is not above 0 and at most 1.

    Example:
        >>> found = underdetermined(20_000, [0.01, 0.0001])
        >>> found["determined"].sel(need="directions").values.tolist()
        [True, False]
        >>> found["tokens"].sel(need="directions").values.tolist()
        [3000.0, 300000.0]
    """
    count("tokens", tokens)
    wanted = "shares of tokens above 0 and at most 1"
    listed = checked_numbers("rates", rates, lambda x: (x > 0) & (x <= 1), wanted)
    activations, needed = tokens * listed, np.array(list(_NEEDED.values()))
    dims = ("feature", "need")
    return xr.Dataset(
        {
            "rate": variable("feature", listed, unit="fraction"),
            "activations": variable("feature", activations, unit="tokens"),
            "determined": variable(dims, activations[:, None] >= needed, unit="none"),
            "tokens": variable(dims, np.ceil(needed / listed[:, None]), unit="tokens"),
        },
        coords={"need": list(_NEEDED)},
        attrs={
            "analysis": "underdetermined",
            "long_name": "whether there is enough text for a dictionary's features",
            "unit": "tokens",
            "exact": 0,
            "approximation": "a rule of thumb, measured on planted features",
        },
    )
