"""How much of the sphere on which the normalised stream lies makes a neuron fire."""

import numpy as np
from scipy.special import betainc

from mlp_interp.models.norm import NormKind

__all__ = ["activation_volume", "cap_share"]


def cap_share(height: np.ndarray | float, dimension: int) -> np.ndarray:
    """Share of the directions ``u`` in a space of so many dimensions with ``u . a > height``.

    ``a`` is any unit vector. The cosine ``c`` of a uniform direction with it has a density
    proportional to ``(1 - c^2)^((m-3)/2)``. Substituting ``y = 1 - c^2`` turns the part above
    ``t >= 0`` into an incomplete beta integral, ``P(c > t) = I_{1-t^2}((m-1)/2, 1/2) / 2``; and
    ``P(c > -t) = 1 - P(c > t)`` by symmetry.

    Args:
        height: The smallest cosine that is counted; above 1 no direction is, below -1 all are.
        dimension: ``m``, at least 2.

    Raises:
        ValueError: `dimension` is below 2.

    References:
        Li, "Concise Formulas for the Area and Volume of a Hyperspherical Cap", 2011.

    Example:
        >>> cap_share(np.array([-0.5, 0.0, 0.5]), 3)  # on the common sphere: (1 - height) / 2
        array([0.75, 0.5 , 0.25])
    """
    if dimension < 2:
        raise ValueError(f"dimension={dimension}; wanted at least 2")
    t = np.clip(np.asarray(height, dtype=np.float64), -1, 1)
    above = betainc((dimension - 1) / 2, 0.5, (1 - t) * (1 + t)) / 2
    return np.where(t >= 0, above, 1 - above)


def activation_volume(
    norm: np.ndarray, bias: np.ndarray, d_model: int, kind: NormKind = "layer"
) -> np.ndarray:
    """Share of the directions of the stream that fire neurons of these norms and biases.

    Args:
        norm: Norm of the receptor, the norm's scale folded in.
        bias: Its bias, the norm's shift folded in.
        d_model: Width of the stream. Normalised it has the length ``sqrt(d_model)``, but for the
            epsilon.
        kind: Of the norm. After a LayerNorm it has no mean, so it lies on a sphere in
            ``d_model - 1`` dimensions; after an RMSNorm in all of them. Without a norm it has no
            length of its own, and the share is NaN.
    """
    if kind == "none":
        return np.full(np.shape(norm), np.nan)
    norm, bias = np.asarray(norm, np.float64), np.asarray(bias, np.float64)
    # Without a receptor the bias decides alone, and a pre-activation of zero does not fire.
    height = np.where(bias > 0, -np.inf, np.inf)
    with np.errstate(over="ignore"):
        np.divide(-bias, norm * np.sqrt(d_model), where=norm > 0, out=height)
    return cap_share(height, d_model - (kind == "layer"))
