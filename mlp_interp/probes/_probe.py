"""At which layers can a straight line read it?"""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from mlp_interp.models import describe
from mlp_interp.models.indices import count
from mlp_interp.models.options import checked_seed
from mlp_interp.models.protocol import Model
from mlp_interp.probes._fit import Fitter, Kind
from mlp_interp.probes._read import Place, layers_held
from mlp_interp.probes._scores import by_output, of_tokens, score
from mlp_interp.probes._splits import Labelling, Split, Splits, shuffled
from mlp_interp.probes.labelled import Labelled, check_data
from mlp_interp.results import mean_and_error_over, strings, variable

__all__ = ["probe"]


def probe(
    model: Model,
    data: Labelled,
    *,
    site: str = "resid_post",
    layers: int | Sequence[int] | None = None,
    kind: Kind | None = None,
    folds: int = 5,
    split: Split = "entity",
    alphas: Sequence[float] | None = None,
    controls: int = 5,
    seed: int = 0,
    batch_size: int = 64,
) -> xr.Dataset:
    """Fit straight lines through activations, and test them on what they were not fitted on.

    A score says that a line *can* read the labels there, not that the model does: see
    `compare_directions`. It says so only above its controls, the same with labels exchanged among
    entities, and above what the embedding (layer -1) and the token alone (`baseline`) give. Prompts
    of one entity are alike: split by prompt, a probe knows by heart what it is tested on, and finds
    geography in a model that was never told any.

    Everything is learned from the fitted folds only: means and deviations, and how strongly the
    line is held back, which is chosen by leaving groups (entities, by default) out of them.

    Args:
        model: The model.
        data: Prompts with labels.
        site: Where: of the stream (``resid_pre``, ``resid_post``, ``attn_out``, ``mlp_out``) or of
            neurons (``pre``, ``post``).
        layers: At which layers; None for all. The embedding is added to them.
        kind: ``"ridge"`` for numbers; for classes ``"logistic"``, ``"mean_difference"`` or
            ``"lda"``. None for the first that goes.
        folds: In how many parts entities are tested.
        split: What stays together: ``"entity"``, ``"template"`` (is it read in words that it was
            not learned from?) or nothing: ``"prompt"``.
        alphas: Strengths that ridge (of standardised activations) and logistic regression choose
            among; below rounding of the inner products a ridge is as of rounding.
        controls: How often to do it all with labels exchanged among entities, and classes dealt
            out to folds anew, as evenly as the true ones.
        seed: Draws folds and controls.
        batch_size: Prompts that run at once.

    Returns:
        A Dataset over ``layer`` (-1 is what enters the first block), ``fold``, ``draw`` (of the
        controls), ``output`` (columns of numbers, or classes; of two the second) and ``prompt``.
        `score`: R² (one less the squared error over the variance of all labels, so that it is there
        for folds of one entity), the mean over outputs, or the share called right, by fold; `mean`
        over folds and `score_se`, the spread of folds over the root of their number (they share
        most of what they are fitted on, so it is somewhat small). `by_output`: R², or AUROC against
        the other classes. `control`: the mean over folds with exchanged labels; `selectivity`: mean
        less the controls' mean, with `selectivity_se`, in which the spread of controls stands for
        `score_se` where it is larger. `baseline`: the same score of the mean label of the token at
        the position (NaN where means are read). `prediction`: what was said of each
        prompt when it was tested, in the labels' units, for classes in how much speaks for it, and
        `target` what it was to be. `coef`, `intercept`: lines in units of the activation, fitted on
        all prompts, with `alpha` (NaN at the embedding of neurons' sites, which has no neurons).

    Raises:
        ValueError: Options out of range, fewer groups than folds, a class in one fold only.
        ImportError: Logistic regression without scikit-learn.

    Warns:
        UserWarning: An entity is fitted on and tested on.

    References:
        Hewitt and Liang 2019, "Designing and Interpreting Probes with Control Tasks",
        arXiv:1909.03368; Gurnee and Tegmark 2024, arXiv:2310.02207.

    Example:
        >>> from mlp_interp import load_model
        >>> model = load_model("nano")
        >>> rows = [{"year": f"{n:02d}", "n": n} for n in range(2, 99, 4)]
        >>> text = "The war lasted from the year 17{year}"
        >>> data = Labelled.of(model, rows, text=text, y="n", entity="year")
        >>> found = probe(model, data, layers=2, controls=2)
        >>> found.sizes["layer"], bool((found.selectivity.sel(layer=2) > 0.5).all())
        (2, True)
    """
    check_data(data)
    seed, controls = checked_seed(seed), count("controls", controls, least=0)
    place = Place.of(model, site, layers, batch_size, embedding=True)
    fitter = Fitter.of(data, kind, alphas, seed)
    splits = Splits(data, folds, split, seed)
    rng = np.random.default_rng([seed, 1])  # of another stream than the folds
    labellings = [splits.true, *(shuffled(data, splits, rng) for _ in range(controls))]
    with layers_held(model, data, place) as held:
        of_layers = [_at_layer(X, labellings, splits, fitter) for _, X in held]
    width = max(found["coef"].shape[1] for found in of_layers)
    for found in of_layers:
        found["coef"] = _as_wide(found["coef"], width)
    stacked = {name: np.stack([found[name] for found in of_layers]) for name in of_layers[0]}
    attrs = {
        "analysis": "probe",
        "kind": fitter.kind,
        "split": split,
        "seed": seed,
        "positions": "mean" if data.position is None else "one of each prompt",
        "n_layers": int(model.cfg.n_layers),
        "site": site,
        "classes": list(data.classes or ()),
        "data": data.about,
        "exact": 0,
        "approximation": "fitted to a sample of prompts",
        **describe(model),
    }
    return _dataset(stacked, data, splits, place, fitter.classes).assign_attrs(attrs)


def _at_layer(
    X: np.ndarray, labellings: Sequence[Labelling], splits: Splits, fitter: Fitter
) -> dict[str, np.ndarray]:
    """All that is measured of one layer's activations."""
    scores = np.empty((len(labellings), splits.folds))
    outputs, predicted = [], None
    fits = fitter.of_folds(X, labellings, splits)
    for fold in range(splits.folds):
        lines, (_, tested) = next(fits), splits.parts(fold)
        held_out = X[tested]
        for n, (line, labelling) in enumerate(zip(lines, labellings, strict=True)):
            values = labelling.values
            if labelling.fold is not splits.fold:
                _, tested = labelling.parts(fold)
                held_out = X[tested]
            said = line(held_out)
            scores[n, fold] = score(said, values[tested], values.var(0), fitter.classes)
            if n == 0:
                if predicted is None:
                    predicted = np.empty((len(X), said.shape[1]))
                predicted[tested] = said
                of_each = by_output(said, values[tested], values.var(0), fitter.classes)
                outputs.append(of_each)
    line = next(fits)[0]
    return {
        "score": scores[0],
        "control": scores[1:].mean(1),
        "by_output": np.stack(outputs),
        "prediction": np.asarray(predicted),
        "coef": line.coef,
        "intercept": line.intercept,
        "alpha": np.asarray(line.alpha),
    }


def _as_wide(coef: np.ndarray, width: int) -> np.ndarray:
    if coef.shape[1] == width:
        return coef
    return np.full((len(coef), width), np.nan)


def _baseline(data: Labelled, splits: Splits, classes: int) -> np.ndarray:
    token = data.token
    if token is None:
        return np.full(splits.folds, np.nan)
    parts = (splits.parts(fold) for fold in range(splits.folds))
    return np.array([of_tokens(token, data.values, *part, classes) for part in parts])


def _dataset(
    found: Mapping[str, np.ndarray], data: Labelled, splits: Splits, place: Place, classes: int
) -> xr.Dataset:
    names, target, unit = data.outputs, data.values, "labels"
    if data.classes is not None:
        names = data.classes[1:] if classes == 2 else data.classes
        target, unit = np.eye(classes)[data.labels][:, classes - len(names) :], "log-odds"
    what = "accuracy" if classes else "R²"
    each = "AUROC" if classes else "R²"
    dims: dict[str, tuple[tuple[str, ...], str, str]] = {
        "score": (("layer", "fold"), what, "held-out score"),
        "control": (("layer", "draw"), what, "the same with labels exchanged among entities"),
        "by_output": (("layer", "fold", "output"), each, "held-out score of each output"),
        "prediction": (("layer", "prompt", "output"), unit, "what was said when tested"),
        "coef": (("layer", "output", place.unit), f"{unit} / activation", "the lines, of all data"),
        "intercept": (("layer", "output"), unit, "what they say of zero"),
        "alpha": (("layer",), "strength", "how strongly the lines were held back"),
    }
    result = xr.Dataset(
        {
            name: variable(over, found[name], unit=of, long_name=long)
            for name, (over, of, long) in dims.items()
        },
        coords={
            "layer": list(place.layers),
            "output": list(names),
            "entity": ("prompt", strings(data.entity)),
            "template": ("prompt", strings(data.template)),
            "text": ("prompt", strings(data.text)),
            "fold_of": ("prompt", splits.fold),
        },
    )
    result["target"] = variable(("prompt", "output"), target, unit="labels")
    baseline = _baseline(data, splits, classes)
    result["baseline"] = variable("fold", baseline, unit=what, long_name="of the token alone")
    mean, error = mean_and_error_over(result["score"], "fold")
    apart, spread = mean_and_error_over(result["control"], "draw")
    result["mean"] = mean.assign_attrs(unit=what, long_name="held-out score, mean over folds")
    result["score_se"] = error.assign_attrs(unit=what, long_name="standard error of the mean")
    result["selectivity"] = (mean - apart).assign_attrs(
        unit=what, long_name="mean score less the controls'"
    )
    # One draw strays as far by chance as controls do, though folds may agree, which share prompts.
    draw = spread * result.sizes["draw"] ** 0.5
    own = error.where(~(draw > error), draw)  # NaN of a single fold stays
    result["selectivity_se"] = ((own**2 + spread**2) ** 0.5).assign_attrs(unit=what)
    return result
