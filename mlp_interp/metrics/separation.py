"""How well one number tells two sets of things apart."""

import numpy as np
import scipy.stats
from jaxtyping import Float

__all__ = ["auroc", "threshold_table"]


def auroc(
    positive: Float[np.ndarray, "positive ..."], negative: Float[np.ndarray, "negative ..."]
) -> np.ndarray | np.floating:
    """Area under the ROC curve: the chance that a positive is larger than a negative.

    Exact, from ranks; ties count half. 0.5 says nothing, 0 separates as well as 1.

    Example:
        >>> float(auroc(np.array([1.0, 2.0]), np.array([0.0, 1.0])))
        0.875
    """
    ranks = scipy.stats.rankdata(np.concatenate((positive, negative)), axis=0)
    n, m = len(positive), len(negative)
    return (ranks[:n].sum(0) - n * (n + 1) / 2) / (n * m)


def threshold_table(
    positive: Float[np.ndarray, " positive"], negative: Float[np.ndarray, " negative"]
) -> dict[str, np.ndarray]:
    """What every threshold that can be told from another one finds.

    A thing is called positive if its number is at least the threshold. The first threshold is the
    smallest number, which calls all positive; the others lie midway between neighbouring numbers.

    Returns:
        ``threshold``, ascending, and for each ``precision``, ``recall``, ``f1`` (their harmonic
        mean) and ``balanced_accuracy`` (mean of the shares of positives and of negatives that are
        called what they are).

    Example:
        >>> table = threshold_table(np.array([2.0, 3.0]), np.array([0.0, 1.0, 2.0]))
        >>> table["threshold"].tolist(), table["recall"].tolist()
        ([0.0, 0.5, 1.5, 2.5], [1.0, 1.0, 1.0, 0.5])
    """
    values = np.unique(np.concatenate((positive, negative)))
    thresholds = np.concatenate((values[:1], values[:-1] + (values[1:] - values[:-1]) / 2))
    # Numbers so close that nothing lies between them: the upper one is in, as it should be.
    thresholds[1:] = np.where(thresholds[1:] > values[:-1], thresholds[1:], values[1:])
    hits, false = (
        len(x) - np.searchsorted(np.sort(x), thresholds, side="left") for x in (positive, negative)
    )
    recall = hits / len(positive)
    return {
        "threshold": thresholds,
        "precision": hits / (hits + false),
        "recall": recall,
        "f1": 2 * hits / (hits + false + len(positive)),
        "balanced_accuracy": (recall + 1 - false / len(negative)) / 2,
    }
