"""How large a random set can be: the law for readouts without structure."""

from scipy.optimize import minimize_scalar
from scipy.stats import norm

from mlp_interp.models.indices import count

__all__ = ["largest_set", "needed_dimension", "share_by_law"]


def needed_dimension(d_vocab: int, k: int) -> float:
    """How many dimensions streams need for a random set of `k` tokens to be the top of a ranking.

    Of a readout with independent Gaussian rows a random set is reachable if and only if the
    dimension (``d_model``, less one for a LayerNorm) is larger than

    ``D(V, k) = min_t  k E(Z + t)_+^2 + (V - k) E(Z - t)_+^2,   Z ~ N(0, 1)``,

    the mean squared distance of a Gaussian vector from the logits that have the set on top. Around
    it the share of sets falls gradually (``law`` of `reachable_share`). It is a yardstick and no
    bound: trained readouts have structure, and there are ones of ``2 k + 1`` dimensions that reach
    every set. An order of the `k` needs hardly more than the set; what it costs is margin.

    Args:
        d_vocab: Tokens, the set among them.
        k: Tokens of the set.

    Returns:
        The dimension, a real number.

    Raises:
        ValueError: `k` is not from 1 to ``d_vocab - 1``.

    References:
        Amelunxen, Lotz, McCoy and Tropp, "Living on the edge: phase transitions in convex programs
        with random data", 2014; Candes and Sur, "The phase transition for the existence of the
        maximum likelihood estimate in high-dimensional logistic regression", 2020.

    Example:
        >>> round(needed_dimension(50304, 10)), round(needed_dimension(50304, 100))
        (109, 741)
    """
    return _distance(_threshold(d_vocab, k), d_vocab, k)


def share_by_law(d_vocab: int, k: int, dimension: int) -> float:
    """Which share of random sets can be had, in a readout with independent Gaussian rows.

    A set can be had where the cone of logits with it on top meets the random subspace of all logits
    of streams, whose chance is a sum of the cone's intrinsic volumes. These are about normal: their
    mean is half a dimension short of `needed_dimension`, the minimum of a mean and not the mean of
    minima; their variance that of the squared distance, less twice its mean.

    Args:
        d_vocab: Tokens, the set among them.
        k: Tokens of the set.
        dimension: Of the streams.

    References:
        McCoy and Tropp, "From Steiner formulas for cones to concentration of intrinsic volumes",
        2014; Goldstein, Nourdin and Peccati, "Gaussian phase transitions and conic intrinsic
        volumes", 2017.

    Example:
        >>> [round(share_by_law(2048, k, 191), 2) for k in (40, 45, 50)]
        [0.91, 0.53, 0.15]
    """
    t = _threshold(d_vocab, k)
    mean = _distance(t, d_vocab, k)
    spread = k * _variance_above(-t) + (d_vocab - k) * _variance_above(t) - 2 * mean
    return float(norm.cdf((dimension + 0.5 - mean) / spread**0.5))


def _threshold(d_vocab: int, k: int) -> float:
    """The mean distance's best boundary between the set and the others."""
    count("d_vocab", d_vocab, least=2)
    count("k", k, most=d_vocab - 1)
    found = minimize_scalar(_distance, bounds=(-10, 10), args=(d_vocab, k), method="bounded")
    return float(found.x)


def _distance(t: float, d_vocab: int, k: int) -> float:
    return k * _above(-t) + (d_vocab - k) * _above(t)


def _above(t: float) -> float:
    """``E(Z - t)_+^2``."""
    return float((1 + t * t) * norm.sf(t) - t * norm.pdf(t))


def _variance_above(t: float) -> float:
    """Of ``(Z - t)_+^2``."""
    fourth = (t**4 + 6 * t**2 + 3) * norm.sf(t) - (t**3 + 5 * t) * norm.pdf(t)
    return float(fourth) - _above(t) ** 2


def largest_set(d_vocab: int, dimension: int) -> int:
    """The largest `k` for which `needed_dimension` is below a dimension, up to half the tokens.

    Example:
        >>> largest_set(50304, 511), largest_set(2048, 191)
        (63, 45)
    """
    low, high = 0, max(1, d_vocab // 2)
    while low < high:
        k = (low + high + 1) // 2
        if needed_dimension(d_vocab, k) < dimension:
            low = k
        else:
            high = k - 1
    return low
