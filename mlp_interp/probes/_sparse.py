"""In how few neurons can it be read?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from mlp_interp.metrics.separation import auroc
from mlp_interp.models import describe
from mlp_interp.models.indices import count
from mlp_interp.models.options import check_choice, checked_seed
from mlp_interp.models.protocol import Model
from mlp_interp.probes._linear import needs_sklearn, scaled
from mlp_interp.probes._rankings import RANKINGS, Ranking, f_statistic, ranked
from mlp_interp.probes._read import Place, layers_held
from mlp_interp.probes._splits import Split, Splits
from mlp_interp.probes.labelled import Labelled, check_data
from mlp_interp.results import mean_and_error_over, variable

__all__ = ["sparse_probe"]


def sparse_probe(
    model: Model,
    data: Labelled,
    *,
    site: str = "post",
    layers: int | Sequence[int] | None = None,
    k: int | Sequence[int] = (1, 2, 4, 8, 16),
    ranking: Ranking = "mean_difference",
    folds: int = 5,
    split: Split = "entity",
    controls: int = 3,
    seed: int = 0,
    batch_size: int = 64,
) -> xr.Dataset:
    """How well the k best units of a layer tell two classes apart, on prompts that chose none.

    With k = 1 the unit itself is the score, with the sign that it has on the fitted prompts:
    nothing is fitted. With more, logistic regression of their standardised activations is. A good
    single neuron says little by itself: the best of hundreds of random directions is often as good.
    So the controls are just that: as many random directions of the layer's standardised activations
    as there are units, ranked and chosen in the same way.

    Args:
        model: The model.
        data: Prompts of two classes.
        site: ``post`` or ``pre`` for neurons, or a place in the stream for its dimensions.
        layers: At which layers; None for all.
        k: How many units.
        ranking: How units are chosen: ``"mean_difference"`` (of the classes); ``"f"`` (that
            difference against the spread within classes); ``"mutual_information"``; ``"l1"`` (size
            of coefficients in a logistic regression that makes most of them zero); ``"adaptive"``
            (from the best 4 max(k) by mean difference, the largest coefficients of the regression
            of the next larger k); ``"exhaustive"`` (every unit's own AUROC; with k = 1 only, where
            it is the best there is).
        folds: In how many parts prompts are tested.
        split: What stays together, as of `probe`.
        controls: Sets of random directions.
        seed: Draws folds and random directions.
        batch_size: Prompts that run at once.

    Returns:
        A Dataset over ``layer``, ``k``, ``fold``, ``draw`` (of the controls) and ``rank``. `auroc`
        of each fold; `mean` and `auroc_se` over folds; `control`: the mean over folds of each set
        of random directions; `selectivity`: mean less the controls' mean. `chosen` (layer, fold,
        rank) and, of all prompts, `unit` (layer, rank): which, best first. `f` (layer, neuron or
        d_model): the F statistic of every unit, of all prompts.

    Raises:
        ValueError: Not two classes, options out of range, or a fold without one of the classes.
        ImportError: scikit-learn is needed (k above 1, ``mutual_information``, ``l1``) and not
            installed.

    References:
        Gurnee et al. 2023, "Finding Neurons in a Haystack: Case Studies with Sparse Probing",
        arXiv:2305.01610.

    Example:
        >>> from mlp_interp import load_model, probes
        >>> model = load_model("nano")
        >>> words = {"chat": True, "maison": True, "livre": True, "eau": True}
        >>> words |= dict.fromkeys(("cat", "house", "book", "water"), False)
        >>> rows = [{"word": word, "french": french} for word, french in words.items()]
        >>> data = probes.Labelled.of(model, rows, text="{word}", y="french", position="mean")
        >>> found = sparse_probe(model, data, k=1, folds=2, controls=2)
        >>> found.auroc.dims, found.unit.dims
        (('layer', 'k', 'fold'), ('layer', 'rank'))
    """
    check_data(data)
    seed, controls = checked_seed(seed), count("controls", controls, least=0)
    place = Place.of(model, site, layers, batch_size)
    widest = int(model.cfg.d_model if place.unit == "d_model" else model.cfg.d_mlp)
    search = _Search.of(data, k, ranking, widest, seed)
    splits = Splits(data, folds, split, seed)
    _check_folds(data, splits)
    with layers_held(model, data, place) as held:
        found = [_at_layer(X, layer, data.labels, splits, search, controls) for layer, X in held]
    stacked = {name: np.stack([each[name] for each in found]) for name in found[0]}
    attrs = {
        "analysis": "sparse probe",
        "site": site,
        "ranking": ranking,
        "split": split,
        "seed": seed,
        "classes": list(data.classes or ()),
        "data": data.about,
        "exact": 0,
        "approximation": "fitted to a sample of prompts",
        **describe(model),
    }
    return _dataset(stacked, place, search).assign_attrs(attrs)


@dataclass(frozen=True)
class _Search:
    """How many units are looked for, and how."""

    ks: tuple[int, ...]
    ranking: Ranking
    seed: int

    @classmethod
    def of(cls, data: Labelled, k: Any, ranking: Any, widest: int, seed: int) -> "_Search":
        if data.classes is None or len(data.classes) != 2:
            raise ValueError(f"data has classes {data.classes}; wanted two: this against the rest")
        check_choice("ranking", ranking, RANKINGS)
        ks = tuple(sorted(count("k", n, most=widest) for n in np.atleast_1d(k).tolist()))
        if len({*ks}) < len(ks):
            raise ValueError(f"k={[*ks]}; wanted each once")
        if not ks or (ranking == "exhaustive" and ks != (1,)):
            raise ValueError(f"k={k} with ranking={ranking!r}; wanted some, and of it only k=1")
        if ks[-1] > 1 or ranking in ("l1", "mutual_information", "adaptive"):
            needs_sklearn("linear_model")
        return cls(ks, ranking, seed)

    def order(self, X: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """The best units, so that the first k are those of each k."""
        return ranked(X, labels, self.ranking, self.ks, self.seed)

    def scores(
        self, X: np.ndarray, labels: np.ndarray, fitted: np.ndarray, tested: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The AUROC of each k on the tested prompts, and the units that were chosen."""
        mean, spread = scaled(X[fitted])
        Z = (X - mean) / spread
        # Differences of means in the activations' own units, as the search is defined.
        order = self.order(X[fitted], labels[fitted])
        found = []
        for k in self.ks:
            said = _said(Z[:, order[:k]], labels, fitted, tested)
            second = labels[tested] == 1
            found.append(float(auroc(said[second], said[~second])))
        return np.array(found), order[: self.ks[-1]]


def _said(Z: np.ndarray, labels: np.ndarray, fitted: np.ndarray, tested: np.ndarray) -> np.ndarray:
    """How much some units speak for the second class, of the tested prompts."""
    if Z.shape[1] == 1:
        one = Z[:, 0]
        means = [one[fitted][labels[fitted] == c].mean() for c in (0, 1)]
        return one[tested] * (1.0 if means[1] >= means[0] else -1.0)
    model = needs_sklearn("linear_model").LogisticRegression(max_iter=1000)
    return model.fit(Z[fitted], labels[fitted]).decision_function(Z[tested])


def _check_folds(data: Labelled, splits: Splits) -> None:
    for fold in range(splits.folds):
        _, tested = splits.parts(fold)
        if len({*data.labels[tested]}) < 2:
            raise ValueError(
                f"folds={splits.folds}: one is without {data.classes}'s prompts of both; wanted "
                "fewer folds, or more groups of each class"
            )


def _at_layer(
    X: np.ndarray,
    layer: int,
    labels: np.ndarray,
    splits: Splits,
    search: _Search,
    controls: int,
) -> dict[str, np.ndarray]:
    scores, chosen = _over_folds(X, labels, splits, search)
    mean, spread = scaled(X)
    Z = (X - mean) / spread
    control = np.empty((len(search.ks), controls))
    for draw in range(controls):
        # The same whichever other layers are asked for, and however many sets are drawn.
        rng = np.random.default_rng([search.seed, layer, draw])
        turned = Z @ rng.standard_normal((X.shape[1], X.shape[1]))
        control[:, draw] = _over_folds(turned, labels, splits, search)[0].mean(1)
    return {
        "auroc": scores,
        "chosen": chosen,
        "control": control,
        "unit": search.order(X, labels)[: search.ks[-1]],
        "f": f_statistic(X, labels),
    }


def _over_folds(
    X: np.ndarray, labels: np.ndarray, splits: Splits, search: _Search
) -> tuple[np.ndarray, np.ndarray]:
    each = [search.scores(X, labels, *splits.parts(fold)) for fold in range(splits.folds)]
    return np.stack([scores for scores, _ in each], 1), np.stack([order for _, order in each])


def _dataset(found: Mapping[str, np.ndarray], place: Place, search: _Search) -> xr.Dataset:
    result = xr.Dataset(
        {
            "auroc": variable(
                ("layer", "k", "fold"), found["auroc"], unit="AUROC", long_name="held-out AUROC"
            ),
            "control": variable(
                ("layer", "k", "draw"),
                found["control"],
                unit="AUROC",
                long_name="of as many random directions, searched alike",
            ),
            "chosen": variable(("layer", "fold", "rank"), found["chosen"], unit="index"),
            "unit": variable(("layer", "rank"), found["unit"], unit="index"),
            "f": variable(("layer", place.unit), found["f"], unit="F", long_name="F statistic"),
        },
        coords={"layer": list(place.layers), "k": list(search.ks)},
    )
    mean, error = mean_and_error_over(result["auroc"], "fold")
    result["mean"] = mean.assign_attrs(unit="AUROC", long_name="mean over folds")
    result["auroc_se"] = error.assign_attrs(unit="AUROC", long_name="standard error of the mean")
    result["selectivity"] = (mean - result["control"].mean("draw")).assign_attrs(
        unit="AUROC", long_name="mean less the controls'"
    )
    return result
