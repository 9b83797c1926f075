"""What self-scores say: of two texts which one more, and whether they agree with labels."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import scipy.stats
import xarray as xr

from mlp_interp.metrics.separation import auroc
from mlp_interp.models.indices import index
from mlp_interp.results import variable

__all__ = ["agreement", "rank_pairs"]


def rank_pairs(scores: xr.Dataset, pairs: Sequence[tuple[int, int]] | None = None) -> xr.Dataset:
    """Of two texts, which has more of a feature?

    Args:
        scores: What `self_score` gave.
        pairs: Which texts to compare, as pairs of their numbers; None for all, each pair once.

    Returns:
        A Dataset along ``feature`` and ``pair`` (coordinates ``first`` and ``second``):
        `difference` (nats per token, above 0 where the first has more), `difference_se` (from the
        errors of both) and `confidence`, the chance that a normal error of that size leaves the
        sign as it is; as the errors are too small, it is too sure.

    Raises:
        ValueError: No pairs, a text that there is not, or one beside itself.

    Example:
        >>> from mlp_interp import load_model
        >>> from mlp_interp.features import self_score
        >>> texts = ["The rook took the pawn.", "The goalie stopped the puck."]
        >>> found = rank_pairs(self_score(load_model("nano"), texts, "Topic: chess."))
        >>> found.sizes["pair"], bool(found.difference[0, 0] > 0)
        (1, True)
    """
    size = scores.sizes["prompt"]
    chosen = list(combinations(range(size), 2)) if pairs is None else _checked(pairs, size)
    if not chosen:
        raise ValueError(f"pairs={pairs} of {size} texts; wanted at least one pair")
    first, second = (list(side) for side in zip(*chosen, strict=True))
    value, error = (scores[name].transpose("feature", "prompt") for name in ("score", "score_se"))
    difference = value.values[:, first] - value.values[:, second]
    spread = np.hypot(error.values[:, first], error.values[:, second])
    with np.errstate(divide="ignore", invalid="ignore"):
        confidence = scipy.stats.norm.cdf(np.abs(difference) / spread)
    dims, unit = ("feature", "pair"), "nats per token"
    return xr.Dataset(
        {
            "difference": variable(dims, difference, unit=unit, long_name="first less second"),
            "difference_se": variable(dims, spread, unit=unit, long_name="standard error"),
            "confidence": variable(dims, confidence, unit="probability", long_name="of the sign"),
        },
        coords={
            "feature": scores["feature"],
            "first": ("pair", first),
            "second": ("pair", second),
        },
        attrs={**scores.attrs, "analysis": "pairs by self-scoring"},
    )


def _checked(pairs: Sequence[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    listed = [(index("pairs", a, size), index("pairs", b, size)) for a, b in pairs]
    for a, b in listed:
        if a == b:
            raise ValueError(f"pairs has ({a}, {b}); wanted two different texts")
    return listed


def agreement(scores: xr.Dataset, labels: Any) -> xr.Dataset:
    """Do self-scores agree with labels?

    Args:
        scores: What `self_score` gave.
        labels: Of every text, the name of the feature that it has, or any other word; or with a
            single feature, whether it has it; or by the name of each feature, whether each text has
            it, as `index` takes them.

    Returns:
        A Dataset. Along ``feature``: `auroc`, the chance that a text with the feature scores higher
        than one without, and `auroc_null_se`, its standard deviation around 0.5 if labels had
        nothing to do with scores and texts were independent; `positives`; with controls in the
        scores, `auroc_control` (feature, control), which is what texts of a kind that move together
        do to it. By itself: `first`, the share of texts whose own
        feature scores highest of all, with `first_se`, and `first_chance`, that of a guess; NaN
        with a single feature, and texts without any of the features are left out.

    Raises:
        ValueError: Not one label a text, labels of other features, or all texts have a feature, or
            none has.

    Example:
        >>> from mlp_interp import load_model
        >>> from mlp_interp.features import self_score
        >>> texts = ["The rook took the pawn.", "The goalie stopped the puck."]
        >>> scores = self_score(load_model("nano"), texts, "Topic: chess.")
        >>> float(agreement(scores, [True, False])["auroc"][0])
        1.0
    """
    value = scores["score"].transpose("feature", "prompt").values
    names = [str(name) for name in scores["feature"].values]
    truth = _truth(names, labels, value.shape[1])
    counts = truth.sum(1)
    for name, count in zip(names, counts, strict=True):
        if not 0 < count < truth.shape[1]:
            raise ValueError(
                f"labels give feature {name!r} to {count} of {truth.shape[1]} texts; wanted some "
                "with it and some without"
            )
    area = [_area(row, with_it) for row, with_it in zip(value, truth, strict=True)]
    rest = truth.shape[1] - counts
    null = np.sqrt((truth.shape[1] + 1) / (12 * counts * rest))
    first, error = _first(value, truth) if len(names) > 1 else (np.nan, np.nan)
    share = {"unit": "share of texts"}
    found = xr.Dataset(
        {
            "auroc": variable("feature", area, unit="probability"),
            "auroc_null_se": variable("feature", null, unit="probability"),
            "positives": variable("feature", counts, unit="texts"),
            "first": ((), first, share),
            "first_se": ((), error, share),
            "first_chance": ((), 1 / len(names) if len(names) > 1 else np.nan, share),
        },
        coords={"feature": scores["feature"]},
        attrs={**scores.attrs, "analysis": "self-scores and labels", "unit": "probability"},
    )
    if "control_score" in scores:
        drawn = scores["control_score"].transpose("feature", "control", "prompt").values
        areas = [[_area(row, t) for row in rows] for rows, t in zip(drawn, truth, strict=True)]
        found["auroc_control"] = variable(("feature", "control"), areas, unit="probability")
    return found


def _area(row: np.ndarray, with_it: np.ndarray) -> float:
    return float(auroc(row[with_it], row[~with_it]))


def _truth(names: list[str], labels: Any, size: int) -> np.ndarray:
    """Which texts have which feature ``[feature, prompt]``."""
    if isinstance(labels, Mapping):
        if {*labels} != {*names}:
            raise ValueError(f"labels of {[*labels]}; wanted those of each feature: {names}")
        return np.concatenate([_truth([name], labels[name], size) for name in names])
    given = np.asarray(labels)
    if given.shape != (size,):
        raise ValueError(f"labels={given.shape} for {size} texts; wanted one for each")
    if given.dtype == bool:
        if len(names) > 1:
            raise ValueError(f"labels are truth values for {len(names)} features; wanted names")
        return given[None]
    if given.dtype.kind not in "UO":
        raise ValueError(f"labels are {given.dtype}; wanted names of features, or truth values")
    return np.array([given == name for name in names])


def _first(value: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Share of texts whose own feature is highest, and its standard error."""
    some = truth.any(0)
    right = truth[value[:, some].argmax(0), np.flatnonzero(some)]
    share = float(right.mean())
    return share, float(np.sqrt(share * (1 - share) / max(1, some.sum() - 1)))
