"""Straight lines through activations: fits, splits, controls, and what the model does with them."""

import importlib
import warnings
from dataclasses import replace
from decimal import Decimal
from random import Random
from typing import Any, get_args

import numpy as np
import pytest
import torch
import xarray as xr
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.feature_selection import f_classif
from sklearn.linear_model import LogisticRegression, RidgeCV
from typer.testing import CliRunner

from mlp_interp import plots, probes, results, steer, steering
from mlp_interp.cli import app
from mlp_interp.nano.corpus import MIXTURE
from mlp_interp.nano.tasks import examples
from mlp_interp.probes import Labelled, _probe, _read
from mlp_interp.probes._linear import discriminant, logistic
from mlp_interp.probes._margin import Margin
from mlp_interp.probes._rankings import Ranking, f_statistic, ranked
from mlp_interp.probes._read import Place, layers_held
from mlp_interp.probes._ridge import _some, ridge, ridge_of_folds
from mlp_interp.probes._scores import of_tokens
from mlp_interp.probes._splits import Splits, shuffled
from mlp_interp.probes._sums import Sums

CITIES = {
    "Paris": (48.9, 2.4), "Berlin": (52.5, 13.4), "Rome": (41.9, 12.5), "Madrid": (40.4, -3.7),
    "Moscow": (55.8, 37.6), "Beijing": (39.9, 116.4), "Tokyo": (35.7, 139.7),
    "London": (51.5, -0.1), "Athens": (38.0, 23.7), "Warsaw": (52.2, 21.0), "Oslo": (59.9, 10.8),
    "Cairo": (30.0, 31.2), "Dublin": (53.3, -6.3), "Vienna": (48.2, 16.4), "Seoul": (37.6, 127.0),
    "Ottawa": (45.4, -75.7), "Lima": (-12.0, -77.0), "Havana": (23.1, -82.4),
    "Nairobi": (-1.3, 36.8), "Santiago": (-33.4, -70.7),
}  # fmt: skip
STARTS = ("I live in", "We went to", "The park in", "Was it", "They saw", "Come to", "Here is")
PLACES = tuple(f"{start} {{city}}" for start in STARTS)


@pytest.fixture(scope="module")
def years(nano: Any) -> Labelled:
    events = ("war", "siege", "voyage", "trial")
    rng = Random(0)
    rows = [
        {"event": rng.choice(events), "century": rng.randint(11, 19), "year": f"{n:02d}", "n": n}
        for n in range(2, 99)
        for _ in range(3)
    ]
    text = "The {event} lasted from the year {century}{year} to the year"
    return Labelled.of(nano, rows, text=text, y="n", entity="year")


@pytest.fixture(scope="module")
def refusals(nano: Any) -> Labelled:
    rows = []
    for example in examples("refusal", n=150, seed=0):
        for text, answer in ((example.clean, example.answer), (example.corrupted, example.foil)):
            rows.append({"text": text, "kind": {" Sorry": "harmful", " Sure": "fine"}[answer]})
    return Labelled.of(nano, rows, text="{text}", y="kind")


@pytest.fixture(scope="module")
def compared(nano: Any, refusals: Labelled) -> Any:
    answers = {"harmful": " Sorry", "fine": " Sure"}
    return probes.compare_directions(
        nano, refusals, answers, layers=[1, 2], split="prompt", controls=2
    )


def small(model: Any, n: int = 12, **options: Any) -> Labelled:
    """Prompts of two lengths for models with the tiny tokenizer."""
    words = ("cat", "mat", "hello", "world")
    rows = [
        {"a": words[i % 4], "b": "the " * (i % 2) + words[(i // 4) % 4], "x": i, "even": i % 2 == 0}
        for i in range(n)
    ]
    return Labelled.of(model, rows, **{"text": "{b} sat on {a}", "y": "x", **options})


# Data


def test_labelled_reads_the_last_token_of_the_last_place_of_the_entity(nano: Any) -> None:
    rows = [{"city": "Paris", "n": 1.5}, {"city": "New York", "n": 2}]
    text = ["{city}: I live in {city} now.", "In {city}"]
    data = Labelled.of(nano, rows, text=text, y="n", entity="city")
    tokenizer = nano.tokenizer
    read = [tokenizer.decode([row[at]]) for row, at in zip(data.rows, data.position, strict=True)]
    assert all(city.endswith(token.strip()) for city, token in zip(data.entity, read, strict=True))
    assert data.text[0] == "Paris: I live in Paris now."
    assert data.position[0] > 4  # the second Paris
    assert data.values[:, 0].tolist() == [1.5, 1.5, 2, 2]
    assert data.template.tolist() == text * 2
    assert data.about == "4 prompts of 2 entities in 2 templates"
    assert repr(data) == "Labelled: 4 prompts of 2 entities in 2 templates, numbers 'n'"
    frame = {"city": ["Paris", "New York"], "n": [1.5, 2]}
    same = Labelled.of(nano, frame, text=text, y="n", entity="city")
    assert same.rows == data.rows
    inside = Labelled.of(nano, [{"y": "32", "n": 32}] * 2, text="In 17{y}", y="n", entity="y")
    assert tokenizer.decode([inside.rows[0][inside.position[0]]]).endswith("32")


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        ([], {}, "wanted at least one row"),
        (["a"], {}, "wanted rows or columns by name"),
        ([{"t": "a", "n": 1}, {"t": "b"}], {}, r"table\[1\] has no 'n'"),
        ({"t": ["a", "b"], "n": [1]}, {}, "one length"),
        ([{"t": "a", "n": 1}], {"y": "m"}, "no column 'm'; wanted one of t, n"),
        ([{"t": "a", "n": 1}], {"text": "{u}"}, "no column 'u'"),
        ([{"t": "a", "n": 1}], {"text": []}, "text is empty"),
        ([{"t": "a", "n": 1}], {"text": "in 17", "entity": "t"}, "text='in 17' holds no column"),
        ([{"t": "a", "n": 1}], {"text": ["{t}", "a{{t}}"]}, "text='a{{t}}' holds no column"),
        ([{"t": "a", "n": float("nan")}], {}, "y='n' is nan in row 0"),
        ([{"t": "a", "n": 1}, {"t": "b", "n": "x"}], {}, "numbers and others"),
        ([{"t": "a", "n": "x"}, {"t": "b", "n": "x"}], {}, "one class, 'x'"),
        ([{"t": "a", "n": None}, {"t": "b", "n": "x"}], {}, "is None in row 0"),
        ({"t": ["a", "b"], "n": ["x", Decimal(1)]}, {}, r"is Decimal\('1'\) in row 1; wanted numb"),
        ([{"t": "a", "n": 10**400}], {}, "y='n' is inf in row 0"),
        ([{"t": "a", "n": 1}], {"y": []}, r"y=\[\]; wanted at least one column"),
        ([{"t": "a", "n": 1}], {"y": 3}, "y=3; wanted a list"),
        (None, {}, "table=None; wanted a list"),
        ([{"t": "a", "n": 1}], {"text": None}, "text=None; wanted a list"),
        ([{"t": "a", "n": 1}], {"text": "{t:03d}"}, "with t='a': Unknown format"),
        ([{"t": "a", "n": "x"}], {"y": ["n", "t"]}, "wanted it alone"),
        ([{"t": "a", "n": 1}, {"t": "a", "n": 2}], {"entity": "t"}, "one label for each entity"),
        ([{"t": "a", "n": 1}], {"y": {"m": [1, 2]}}, "y='m' has 2 labels for 1 rows"),
        ([{"t": "a", "n": 1}], {"position": "first"}, "position='first'"),
        ([{"t": "a", "n": 1}], {"position": "entity"}, "that holds the entity"),
        ([{"t": "", "n": 1}], {"text": "In {t}", "entity": "t"}, "the entity is empty"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_labelled_refuses(nano: Any, table: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Labelled.of(nano, table, **{"text": "{t}", "y": "n", **options})


def test_activations_are_the_models_own(some_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = range(some_model.cfg.n_layers)
    for position in ("last", "mean"):
        data = small(some_model, position=position)
        for site in ("resid_post", "post"):
            place = Place.of(some_model, site, None, 5, embedding=True)
            with layers_held(some_model, data, place) as held:
                found = dict(held)
            monkeypatch.setattr(_read, "_IN_MEMORY", 0)
            with layers_held(some_model, data, place) as held:
                for layer, x in held:
                    np.testing.assert_array_equal(x, found[layer])
            monkeypatch.undo()
            assert [*found] == [-1, *layers]
            for n in (0, 1, 5):
                _, cache = some_model.run_with_cache(torch.tensor([data.rows[n]]))
                names = {-1: "blocks.0.hook_resid_pre"}
                middle = "hook_resid_post" if site == "resid_post" else "mlp.hook_post"
                names |= {layer: f"blocks.{layer}.{middle}" for layer in layers}
                for layer, name in names.items():
                    x = cache[name][0]
                    want = x[-1] if position == "last" else x[1:].mean(0)
                    np.testing.assert_allclose(found[layer][n], want, atol=2e-5)


# Fits


@pytest.mark.parametrize(("n", "d"), [(60, 9), (30, 50), (120, 70)])
def test_ridge_is_scikit_learns(n: int, d: int) -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, d)) * rng.uniform(0.1, 9, d) + 3
    Y = (X[:, :2] / X[:, :2].std(0)) + rng.standard_normal((n, 2))
    Y /= Y.std(0)  # else the one of larger numbers decides for RidgeCV
    alphas = np.geomspace(1e-1, 1e3, 15).tolist()
    one, both = ridge(X, [Y[:, :1], Y], np.arange(n), alphas)
    spread = X.std(0)
    for line, values in ((one, Y[:, :1]), (both, Y)):
        theirs = RidgeCV(alphas).fit((X - X.mean(0)) / spread, values)
        assert line.alpha == pytest.approx(theirs.alpha_)
        coef = np.atleast_2d(theirs.coef_) / spread
        np.testing.assert_allclose(line.coef, coef, atol=1e-8)
        np.testing.assert_allclose(line(X), theirs.predict((X - X.mean(0)) / spread).reshape(n, -1))
        # The normal equations.
        Z = (X - X.mean(0)) / spread
        solved = np.linalg.solve(Z.T @ Z + line.alpha * np.eye(d), Z.T @ (values - values.mean(0)))
        np.testing.assert_allclose(line.coef, solved.T / spread, atol=1e-8)


def test_the_strength_of_ridge_is_that_of_groups_left_out() -> None:
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(12), [1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2])
    X = rng.standard_normal((len(groups), 10)) + 2 * rng.standard_normal((12, 10))[groups]
    y = (rng.standard_normal(12) + X[:, 0][np.unique(groups, return_index=True)[1]])[groups]
    alphas = np.geomspace(1e-2, 1e4, 13).tolist()
    (line,) = ridge(X, [y[:, None]], groups, alphas)
    Z, errors = (X - X.mean(0)) / X.std(0), []
    for alpha in alphas:  # fitted anew without each
        error = 0.0
        for group in range(12):
            kept = groups != group
            mean, middle = Z[kept].mean(0), y[kept].mean()
            A = (Z[kept] - mean).T @ (Z[kept] - mean) + alpha * np.eye(10)
            w = np.linalg.solve(A, (Z[kept] - mean).T @ (y[kept] - middle))
            error += (((Z[~kept] - mean) @ w + middle - y[~kept]) ** 2).sum()
        errors.append(error)
    assert line.alpha == pytest.approx(alphas[int(np.argmin(errors))])
    # Of several outputs each counts alike, whatever its unit.
    rest = rng.standard_normal(12)[groups]
    alone, alike, large = (
        ridge(X, [values], groups, alphas)[0].alpha
        for values in (rest[:, None], np.c_[y, rest], np.c_[y, 1e3 * rest])
    )
    assert large == alike != alone


@pytest.mark.parametrize(("n", "d"), [(150, 40), (60, 40), (40, 70)])
def test_ridge_of_folds_is_that_of_what_each_leaves(n: int, d: int) -> None:
    """With inner products of each fold put together, with those of each part, by the smaller side;
    and a fold far from the others, beside which what these differ in would be rounding."""
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(n // 2), 2)
    fold = rng.integers(3, size=n // 2)[groups]
    X = rng.standard_normal((n, d)) + 1e9 * (fold == 1)[:, None] * (np.arange(d) == 5)
    X[:, 7] = 3.0
    Y = X[:, :2] + rng.standard_normal((n, 2))
    labellings, alphas = [Y, Y[rng.permutation(n)]], np.geomspace(1e-2, 1e3, 7).tolist()
    found = [*ridge_of_folds(X, labellings, groups, alphas, fold)]
    for out, lines in zip((0, 1, 2, None), found, strict=True):
        kept = fold != out if out is not None else np.full(n, True)
        Z = X[kept] - X[kept].mean(0)
        Z /= np.where(Z.std(0) > 1e-6, Z.std(0), 1)
        alone = ridge(X[kept], [values[kept] for values in labellings], groups[kept], alphas)
        for line, same, values in zip(lines, alone, labellings, strict=True):
            assert line.alpha == same.alpha
            theirs = values[kept] - values[kept].mean(0)
            A = np.vstack([Z, np.sqrt(line.alpha) * np.eye(d)])
            w = np.linalg.lstsq(A, np.vstack([theirs, np.zeros((d, 2))]))[0]
            np.testing.assert_allclose(line(X[kept]) - values[kept].mean(0), Z @ w, atol=1e-9)


def test_sums_of_parts_are_those_of_all() -> None:
    rng = np.random.default_rng(0)
    part = np.repeat([0, 1, 2], [5, 9, 2])
    X, Y = (rng.standard_normal((16, d)) + part[:, None] for d in (4, 3))
    found = Sums.together([Sums.of(X[part == n], Y[part == n]) for n in range(3)])
    x, y = X - X.mean(0), Y - Y.mean(0)
    wanted = Sums(16, X.mean(0), Y.mean(0), x.T @ x, x.T @ y, (y**2).sum(0))
    for name, value in vars(wanted).items():
        np.testing.assert_allclose(getattr(found, name), value, err_msg=name)


def test_strengths_below_rounding_are_as_good_as_that() -> None:
    rng = np.random.default_rng(0)
    X = np.repeat(rng.standard_normal((200, 20)), 3, axis=1) * 1e3  # of rank 20 of 60
    y = X[:, :1] + 1e3 * rng.standard_normal((200, 1))
    (line,) = ridge(X, [y], np.arange(200), [1e-30])
    Z = X - X.mean(0)
    least = Z @ np.linalg.lstsq(Z, y - y.mean(), rcond=1e-10)[0]
    np.testing.assert_allclose(line(X) - y.mean(), least, rtol=1e-6, atol=1e-3)


def test_groups_that_choose_a_strength_are_whole_and_spread_evenly() -> None:
    groups = np.random.default_rng(0).permutation(np.repeat(np.arange(1500), 6))
    kept = np.unique(groups[_some(groups)])
    assert len(_some(groups)) == 6 * len(kept) <= 2000
    np.testing.assert_array_equal(np.diff(kept), 5)
    np.testing.assert_array_equal(_some(groups[:90]), np.arange(90))


def test_a_token_by_itself_says_its_mean_label_or_that_of_all() -> None:
    token, fitted = np.array([7, 7, 7, 7, 2, 2, 7, 2, 9]), np.arange(6)
    labels = np.array([0, 0, 0, 1, 1, 1, 0, 1, 0])[:, None]
    assert of_tokens(token, labels, fitted, np.array([6, 7]), 2) == 1
    assert of_tokens(token, labels, fitted, np.array([3]), 2) == 0
    values = np.array([0.0, 2.0, 4.0, 6.0, 1.0, 3.0, 5.0, 2.0, 8.0])[:, None]
    said, true = np.array([3.0, 2.0, values[:6].mean()]), values[6:, 0]
    wanted = 1 - ((said - true) ** 2).mean() / values.var()
    assert of_tokens(token, values, fitted, np.arange(6, 9), 0) == pytest.approx(wanted)


def test_discriminants() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [40, 60])
    X = rng.standard_normal((100, 8)) @ rng.standard_normal((8, 8)) + labels[:, None] * 0.7
    difference = X[labels == 1].mean(0) - X[labels == 0].mean(0)
    sphere = discriminant(X, labels, 1.0)
    np.testing.assert_allclose(
        sphere.coef[0] / np.linalg.norm(sphere.coef), difference / np.linalg.norm(difference)
    )
    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(X, labels)
    ours = discriminant(X, labels, 0.0)
    np.testing.assert_allclose(ours.coef, theirs.coef_, rtol=1e-6)
    np.testing.assert_allclose(ours(X)[:, 0], theirs.decision_function(X), atol=1e-8)
    within = X - np.array([X[labels == c].mean(0) for c in (0, 1)])[labels]
    shrinkage = ledoit_wolf_shrinkage(within, assume_centered=True)
    np.testing.assert_allclose(
        discriminant(X, labels, None).coef, discriminant(X, labels, shrinkage).coef, rtol=1e-6
    )
    # With fewer prompts than dimensions, by the smaller side.
    wide, two = rng.standard_normal((12, 30)) + 5, labels[34:46]
    within = wide - np.array([wide[two == c].mean(0) for c in (0, 1)])[two]
    for shrinkage in (None, 0.0, 0.3):
        drawn = (
            ledoit_wolf_shrinkage(within, assume_centered=True) if shrinkage is None else shrinkage
        )
        covariance = (1 - drawn) * within.T @ within / 12
        covariance += drawn * np.eye(30) * (within**2).mean()
        apart = wide[two == 1].mean(0) - wide[two == 0].mean(0)
        wanted = apart @ np.linalg.pinv(covariance, rcond=1e-10)
        np.testing.assert_allclose(discriminant(wide, two, shrinkage).coef[0], wanted, rtol=1e-6)
    three = np.arange(100) % 3
    predicted = discriminant(X, three, 0.0)(X).argmax(1)
    assert (predicted == LinearDiscriminantAnalysis(solver="lsqr").fit(X, three).predict(X)).all()


def test_logistic_is_scikit_learns_and_takes_the_strongest_of_equals() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 2
    X = rng.standard_normal((80, 6)) + 3 + labels[:, None] * 4
    line = logistic(X, labels, np.arange(80), [0.5], 0)
    Z = (X - X.mean(0)) / np.sqrt(((X - X.mean(0)) ** 2).mean())
    theirs = LogisticRegression(C=2.0, max_iter=1000).fit(Z, labels)
    np.testing.assert_allclose(line(X)[:, 0], theirs.decision_function(Z), atol=1e-6)
    assert logistic(X, labels, np.arange(80), [1.0, 10.0, 0.1], 0).alpha == 10.0


def test_the_strongest_is_taken_where_no_group_can_be_kept_apart() -> None:
    labels = np.array([0, 1, 1])
    X = np.random.default_rng(0).standard_normal((3, 4))
    assert logistic(X, labels, np.arange(3), [1.0, 100.0], 0).alpha == 100.0


def test_removing_every_line_that_is_found_leaves_chance() -> None:
    """Null it out: iterated projections bring a probe to the base rate."""
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 2
    X = rng.standard_normal((400, 6)) + labels[:, None] * rng.standard_normal(6)
    accuracy = []
    for _ in range(4):
        line = logistic(X, labels, np.arange(400), [1.0], 0)
        accuracy.append(((line(X)[:, 0] > 0) == labels).mean())
        unit = line.coef[0] / np.linalg.norm(line.coef[0])
        X = X - np.outer(X @ unit, unit)
    assert accuracy[0] > 0.8
    assert accuracy[-1] == pytest.approx(0.5, abs=0.06)


# Splits


def test_groups_stay_together_and_classes_are_spread(nano: Any) -> None:
    rows = [{"w": f"x{i // 2}", "kind": "ab"[i // 2 % 5 == 0]} for i in range(40)]
    data = Labelled.of(nano, rows, text=["in {w}", "{w} of"], y="kind", entity="w")
    splits = Splits(data, 4, "entity", 0)
    for entity in {*data.entity}:
        assert len({*splits.fold[data.entity == entity]}) == 1
    for number in (0, 1):
        counts = np.bincount(splits.fold[data.labels == number], minlength=4)
        assert counts.max() - counts.min() <= 4  # one entity
    fitted, tested = splits.parts(1)
    assert sorted([*fitted, *tested]) == list(range(80))
    exchanged = shuffled(data, splits, np.random.default_rng(0))
    values = exchanged.values
    for number in (0, 1):  # dealt out anew, as evenly
        counts = np.bincount(exchanged.fold[values[:, 0] == number], minlength=4)
        assert counts.max() - counts.min() <= 4
    for entity in {*data.entity}:
        assert len({*exchanged.fold[data.entity == entity]}) == 1
    assert (values != data.values).any()
    assert np.bincount(values[:, 0].astype(int)).tolist() == np.bincount(data.labels).tolist()
    for entity in {*data.entity}:
        assert len({*values[data.entity == entity, 0]}) == 1
    with pytest.warns(UserWarning, match="20 of 20 entities, 'x0' among them"):
        apart = Splits(data, 4, "prompt", 0)
    assert (np.bincount(apart.fold) == 20).all()


def test_controls_are_not_drawn_as_folds_are(nano: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the first control exchanges labels by the very order that dealt entities out."""
    data, drawn = small(nano, n=16), []

    def noted(data: Labelled, splits: Splits, rng: Any) -> Any:
        drawn.append((splits.fold, shuffled(data, splits, rng)))
        return drawn[-1][1]

    monkeypatch.setattr(_probe, "shuffled", noted)
    probes.probe(nano, data, layers=1, folds=4, controls=2)
    _, entities = np.unique(data.entity, return_index=True)
    order = entities[np.random.default_rng(0).permutation(16)]
    fold, first = drawn[0]
    assert fold[order].tolist() == [n % 4 for n in range(16)]
    for _, control in drawn:
        assert sorted(control.values[:, 0]) == [*range(16)]
        assert (control.values[entities] != data.values[order]).any()
    assert (first.values != drawn[1][1].values).any()


@pytest.mark.usefixtures("without_type_checks")
def test_splits_refuse(nano: Any) -> None:
    few = Labelled.of(nano, [{"w": f"x{i}", "n": i} for i in range(4)], text="{w}", y="n")
    with pytest.raises(ValueError, match="folds=5 of 4 groups by entity"):
        probes.probe(nano, few)
    with pytest.raises(ValueError, match="folds=2 of 1 groups by template"):
        probes.probe(nano, few, folds=2, split="template")
    with pytest.raises(ValueError, match="split='row'"):
        probes.probe(nano, few, split="row")
    rows = [{"w": f"x{i}", "kind": i == 0} for i in range(6)]
    lonely = Labelled.of(nano, rows, text="{w}", y="kind")
    with pytest.raises(ValueError, match="class 'True' is in one fold only"):
        probes.probe(nano, lonely, folds=2)


# Probes


def test_r2_is_that_of_all_held_out_predictions(nano: Any) -> None:
    """A fold of one entity has no variance of its own, and the middle of all labels none at all."""
    rows = [{"w": f"x{i}", "n": n} for i, n in enumerate((0, 1, 2, 3, 4, 2))]
    data = Labelled.of(nano, rows, text="the {w}", y="n", entity="w")
    found = probes.probe(nano, data, folds=6, layers=0, controls=2)
    left = ((found.prediction - found.target) ** 2).isel(output=0).mean("prompt")
    np.testing.assert_allclose(found["mean"], 1 - left / data.values.var())
    assert np.isfinite(found.selectivity).all()
    assert np.isfinite(found.baseline).all()
    same = Labelled.of(nano, [{**row, "n": 1} for row in rows], text="the {w}", y="n")
    with pytest.raises(ValueError, match="y='n' is the same in all rows"):
        probes.probe(nano, same)


def test_years_are_there_and_shuffled_years_are_not(nano: Any, years: Labelled) -> None:
    found = probes.probe(nano, years, layers=[0, 2], controls=2)
    assert found.layer.values.tolist() == [-1, 0, 2]
    assert float(found["mean"].sel(layer=2)) >= 0.9
    assert float(found["mean"].sel(layer=2)) > float(found["mean"].sel(layer=-1))
    assert (found.control.mean("draw") <= 0).all()
    assert (found.selectivity > 0.9).all()
    assert float(found.baseline.mean()) < 0.2
    np.testing.assert_allclose(found["mean"], found.score.mean("fold"))
    np.testing.assert_allclose(found.score, found.by_output.isel(output=0))
    # Each prompt was predicted by a line that has not seen its entity.
    residual = (found.prediction - found.target).isel(output=0).sel(layer=2)
    spread = float(years.values.var())
    assert 1 - float((residual**2).mean()) / spread == pytest.approx(
        float(found["mean"].sel(layer=2)), abs=0.03
    )
    by_heart = probes.probe  # prompts of one year on both sides: even shuffled years are "found"
    with pytest.warns(UserWarning, match="fitted on and tested on"):
        leaky = by_heart(nano, years, layers=0, controls=1, split="prompt", folds=3)
    assert float(leaky.control.sel(layer=-1).mean()) > 0.5


def test_places_are_not_there_unless_prompts_of_one_place_leak(nano: Any) -> None:
    rows = [{"city": c, "latitude": a, "longitude": b} for c, (a, b) in CITIES.items()]
    data = Labelled.of(nano, rows, text=PLACES, y=["latitude", "longitude"], entity="city")
    found = probes.probe(nano, data, layers=[0, 2], controls=1)
    assert (found["mean"] <= 0).all()
    errors = probes.place_errors(found)
    assert 0.3 < float(errors.proximity.mean()) < 0.7
    with pytest.warns(UserWarning, match="20 of 20 entities"):
        leaky = probes.probe(nano, data, layers=0, controls=0, split="prompt")
    assert float(leaky["mean"].sel(layer=0)) > 0.9
    assert float(probes.place_errors(leaky).proximity.sel(layer=0).mean()) < 0.05
    with pytest.raises(ValueError, match="not 'north'"):
        probes.place_errors(found, latitude="north")


def test_proximity_is_the_share_of_others_that_are_predicted_closer(nano: Any) -> None:
    rows = [{"city": c, "latitude": a, "longitude": b} for c, (a, b) in [*CITIES.items()][:6]]
    data = Labelled.of(nano, rows, text=PLACES[:2], y=["latitude", "longitude"], entity="city")
    found = probes.probe(nano, data, layers=0, folds=3, controls=0)
    errors = probes.place_errors(found)
    said, true = found.prediction.values[1], found.target.values
    for n, city in enumerate(data.entity):
        own = float(probes.haversine_km(true[n], said[n]))
        assert float(errors.km[1, n]) == pytest.approx(own)
        others = [c for c in {*data.entity} if c != city]
        centres = [said[data.entity == other].mean(0) for other in others]
        closer = [float(probes.haversine_km(true[n], centre)) < own for centre in centres]
        assert float(errors.proximity[1, n]) == pytest.approx(np.mean(closer))
    assert float(probes.haversine_km([0, 0], [0, 180])) == pytest.approx(np.pi * 6371.0088)


@pytest.mark.parametrize("kind", ["logistic", "mean_difference", "lda"])
def test_probes_of_classes(nano: Any, refusals: Labelled, kind: Any, tmp_path: Any) -> None:
    found = probes.probe(nano, refusals, layers=2, kind=kind, controls=1, folds=2)
    assert found.output.values.tolist() == ["harmful"]
    assert float(found["mean"].sel(layer=2)) > 0.98
    assert float(found.by_output.sel(layer=2).mean()) > 0.98
    assert 0.3 < found.control.sel(layer=2).item() < 0.7
    called = found.prediction.sel(layer=2).isel(output=0) > 0
    assert float((called == found.target.isel(output=0)).mean()) > 0.98
    again = results.load(results.save(found, tmp_path / "probe.nc"))
    np.testing.assert_array_equal(again.coef, found.coef)


@pytest.mark.parametrize("kind", ["mean_difference", "lda"])
def test_what_cannot_be_read_is_not_selective(nano: Any, kind: Any) -> None:
    """Prompts are the same at the embedding; what follows from the year is read further on."""
    drawn = np.random.default_rng(0).permutation(49) % 2 > 0
    rows = [
        {"n": f"{n:02d}", "odd": n % 4 == 3, "drawn": bool(drawn[n // 2]), "late": n > 50}
        for n in range(1, 99, 2)
    ]
    text = "The war lasted from the year 17{n} to the year 17"
    of = {"text": text, "entity": "n", "position": "last"}
    few, none, late = (
        Labelled.of(nano, some, y=y, **of)
        for some, y in ((rows[:10], "odd"), (rows, "drawn"), (rows, "late"))
    )
    same = probes.probe(nano, few, layers=0, kind=kind).sel(layer=-1)
    assert (same.score == 0.5).all()  # of each class as many were fitted on, and tested
    assert (same.control == 0.5).all()
    nothing = probes.probe(nano, none, layers=2, kind=kind).sel(layer=2)
    assert abs(nothing.selectivity) < 2 * nothing.selectivity_se
    something = probes.probe(nano, late, layers=2, kind=kind).sel(layer=2)
    assert something.selectivity > 0.4 > 2 * something.selectivity_se
    deviation = something.control.std("draw", ddof=1)
    own = max(float(deviation), float(something.score_se)) ** 2 + float(deviation) ** 2 / 5
    assert float(something.selectivity_se) == pytest.approx(own**0.5)


def test_probes_of_several_classes_and_of_neurons(nano: Any) -> None:
    kinds = ("french", "lists", "counting")
    rows = [{"text": text, "kind": kind} for kind in kinds for text in documents(nano, kind, 12)]
    data = Labelled.of(nano, rows, text="{text}", y="kind", position="mean")
    for kind in ("logistic", "lda"):
        found = probes.probe(
            nano, data, site="post", layers=2, kind=kind, folds=2, controls=0, alphas=None
        )
        assert found.output.values.tolist() == sorted(kinds)
        assert float(found["mean"].sel(layer=2)) > 0.9
        assert found.sizes["neuron"] == 768
        assert bool(found.coef.sel(layer=-1).isnull().all())
        assert bool(found.baseline.isnull().all())  # means have no token


@pytest.mark.usefixtures("without_type_checks")
def test_probes_refuse(nano: Any, years: Labelled, refusals: Labelled) -> None:
    for data, options, message in (
        (years, {"kind": "lda"}, "kind='lda' with y='n', which holds numbers"),
        (refusals, {"kind": "ridge"}, "kind='ridge' with y='kind', which holds classes"),
        (years, {"kind": "line"}, "kind='line'"),
        (years, {"alphas": [0.0]}, "above 0"),
        (years, {"alphas": [[1.0, 2.0]]}, "above 0"),
        (years, {"alphas": ["1"]}, "above 0"),
        (replace(years, values=years.values * 1e200), {}, "whose square is no number"),
        (replace(years, values=years.values * 1e-200), {}, "whose square is no number"),
        (refusals, {"kind": "lda", "alphas": [1.0]}, "has none"),
        (years, {"site": "z"}, "site='z'"),
        (years, {"layers": 9}, r"layers=\[9\]"),
        (years, {"folds": 1}, "folds=1"),
        (years, {"controls": -1}, "controls=-1"),
        (years, {"seed": -1}, "seed=-1"),
    ):
        with pytest.raises(ValueError, match=message):
            probes.probe(nano, data, **options)
    with pytest.raises(ValueError, match="holds numbers"):
        _ = years.labels
    untyped: Any = (probes.probe, probes.sparse_probe, probes.compare_directions)
    for function in untyped:
        with pytest.raises(ValueError, match="data=list; wanted a Labelled"):
            function(nano, [1], **({"answers": {}} if function == untyped[-1] else {}))


def test_without_scikit_learn_the_extra_is_named(
    nano: Any, refusals: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"pip install 'mlp-interp\[probes\]'"):
        probes.probe(nano, refusals)
    with pytest.raises(ImportError, match=r"mlp-interp\[probes\]"):
        probes.sparse_probe(nano, refusals)


def test_a_probes_direction_raises_what_it_says_by_one(nano: Any, years: Labelled) -> None:
    found = probes.probe(nano, years, layers=2, controls=0, folds=3)
    later = probes.probe_direction(found, 2, "n")
    with (
        steer(nano, steering.add(later, 3.0)),
        layers_held(nano, years, Place.of(nano, "resid_post", 2, 64)) as held,
    ):
        ((_, moved),) = held
    with layers_held(nano, years, Place.of(nano, "resid_post", 2, 64)) as held:
        ((_, before),) = held
    line = found.coef.sel(layer=2).isel(output=0).values
    np.testing.assert_allclose((moved - before) @ line, 3.0, atol=1e-3)
    assert steering.random_direction(later, seed=0).attrs["site"] == "resid_post"
    assert probes.probe_direction(found, -1).attrs["site"] == "resid_pre"
    with pytest.raises(ValueError, match=r"layer=1; wanted one of \[-1, 2\]"):
        probes.probe_direction(found, 1)
    with pytest.raises(ValueError, match="output='m'"):
        probes.probe_direction(found, 2, "m")
    with pytest.raises(ValueError, match="wanted one of probe"):
        probes.probe_direction(found[["score"]], 2)


# Few neurons


def documents(model: Any, kind: str, n: int) -> list[str]:
    """Texts of one length in tokens, which run together."""
    rng, (write, _), tokenizer = Random(kind), MIXTURE[kind], model.tokenizer
    rows = [tokenizer(write(rng, "heldout"))["input_ids"][:24] for _ in range(n)]
    return [tokenizer.decode(row) for row in rows]


@pytest.fixture(scope="module")
def texts(nano: Any) -> list[dict[str, str]]:
    return [{"text": t, "kind": kind} for kind in MIXTURE for t in documents(nano, kind, 30)]


@pytest.mark.parametrize(("kind", "least"), [("french", 0.98), ("lists", 0.99)])
def test_one_neuron_tells_a_kind_of_text(
    nano: Any, texts: list[dict[str, str]], kind: str, least: float
) -> None:
    rows = [{"text": row["text"], "is": row["kind"] == kind} for row in texts]
    data = Labelled.of(nano, rows, text="{text}", y="is", position="mean")
    found = probes.sparse_probe(nano, data, k=1, ranking="f", folds=2, controls=1, layers=3)
    assert float(found["mean"].max()) >= least
    assert (found.control > 0.8).all()  # the best of as many random directions is good, too
    with layers_held(nano, data, Place.of(nano, "post", 3, 64)) as held:
        ((_, X),) = held
    np.testing.assert_allclose(found.f.sel(layer=3), f_classif(X, data.labels)[0], rtol=1e-5)
    splits = Splits(data, 2, "entity", 0)
    fitted, tested = splits.parts(1)
    best = int(np.argmax(f_statistic(X[fitted], data.labels[fitted])))
    assert int(found.chosen.sel(layer=3, fold=1, rank=0)) == best
    one, is_one = X[tested, best], data.labels[tested] == 1
    above = (one[is_one][:, None] > one[~is_one]).mean()
    assert float(found.auroc.sel(layer=3, fold=1, k=1)) == pytest.approx(max(above, 1 - above))


@pytest.mark.parametrize("ranking", get_args(Ranking))
def test_rankings_find_the_units_that_tell(ranking: Any) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 2
    X = rng.standard_normal((120, 30))
    X[:, 7] += 3 * labels
    X[:, 3] -= 2 * labels
    order = ranked(X, labels, ranking, (1, 2), 0)
    assert order[:2].tolist() == [7, 3]
    assert len({*order}) == len(order)


def test_all_units_are_a_dense_probe(some_model: Any) -> None:
    data = small(some_model, 24, y="even")
    k = [1, 2, some_model.cfg.d_mlp]
    found = probes.sparse_probe(some_model, data, ranking="f", k=k, folds=3, layers=1, controls=1)
    assert found["mean"].sel(k=2).item() > 0.9  # another number of words
    with layers_held(some_model, data, Place.of(some_model, "post", 1, 64)) as held:
        ((_, X),) = held
    splits = Splits(data, 3, "entity", 0)
    fitted, tested = splits.parts(0)
    mean, spread = X[fitted].mean(0), X[fitted].std(0)
    Z = (X - mean) / np.where(spread > 0, spread, 1)
    dense = LogisticRegression(max_iter=1000).fit(Z[fitted], data.labels[fitted])
    said = dense.decision_function(Z[tested])
    is_one = data.labels[tested] == 1
    above = (said[is_one][:, None] > said[~is_one]).mean()
    assert found.auroc.sel(k=k[2], fold=0).item() == pytest.approx(above)


def test_controls_of_a_layer_are_the_same_beside_any_others(kind: Any) -> None:
    model = kind()
    data = small(model, 24, y="even")
    options: dict[str, Any] = {"k": 1, "folds": 3, "seed": 5}
    both = probes.sparse_probe(model, data, layers=[0, 1], controls=2, **options)
    one = probes.sparse_probe(model, data, layers=1, controls=1, **options)
    xr.testing.assert_equal(one.control, both.control.sel(layer=[1], draw=slice(1)))


@pytest.mark.usefixtures("without_type_checks")
def test_sparse_probes_refuse(nano: Any, years: Labelled, refusals: Labelled) -> None:
    for data, options, message in (
        (years, {}, "data has classes None; wanted two"),
        (refusals, {"ranking": "best"}, "ranking='best'"),
        (refusals, {"ranking": "exhaustive"}, "of it only k=1"),
        (refusals, {"k": 0}, "k=0"),
        (refusals, {"k": 769}, "k=769"),
        (refusals, {"site": "q"}, "site='q'"),
    ):
        with pytest.raises(ValueError, match=message):
            probes.sparse_probe(nano, data, **options)


def test_each_unit_is_what_all_tokens_say(some_model: Any, tokens: torch.Tensor) -> None:
    truth = (tokens % 3 == 0) | (tokens % 5 == 0)
    found = probes.each_unit(some_model, tokens, truth, controls=2)
    _, cache = some_model.run_with_cache(tokens)
    layer = 1
    x, labels = cache["post", layer][:, 1:].double().numpy(), truth[:, 1:].numpy()
    f, _ = f_classif(x.reshape(-1, x.shape[-1]), labels.ravel())
    np.testing.assert_allclose(found.f.sel(layer=layer), f, rtol=1e-4, atol=1e-6)
    difference = x[labels].mean(0) - x[~labels].mean(0)
    np.testing.assert_allclose(found.difference.sel(layer=layer), difference, atol=1e-5)
    halves = []
    for half in (0, 1):
        one, those = x[half::2], labels[half::2]
        with_it, without = one[those], one[~those]
        within = with_it.var(0) * len(with_it) + without.var(0) * len(without)
        deviation = np.sqrt(within / (those.size - 2))
        halves.append((with_it.mean(0) - without.mean(0)) / deviation)
    best = int(np.abs(halves[0]).argmax())
    assert int(found.best.sel(layer=layer, half="even")) == best
    held = np.sign(halves[0][best]) * halves[1][best]
    assert float(found.held_out.sel(layer=layer, half="even")) == pytest.approx(held, rel=1e-4)
    assert found.tokens.values.tolist() == [(~labels).sum(), labels.sum()]
    assert found.control.shape == (2, 2, some_model.cfg.n_layers)
    # A label for each sequence is one for each of its tokens.
    one = np.array([True, True, False, False])
    each = probes.each_unit(some_model, tokens, one, layers=layer, site="resid_post", controls=0)
    whole = np.repeat(one[:, None], tokens.shape[1], 1)
    same = probes.each_unit(some_model, tokens, whole, layers=layer, site="resid_post", controls=0)
    xr.testing.assert_equal(each, same)


def test_one_pass_finds_the_unit_of_a_kind_of_text(nano: Any, texts: list[dict[str, str]]) -> None:
    some = texts[::2]
    french = [row["kind"] == "french" for row in some]
    found = probes.each_unit(nano, [row["text"] for row in some], french, layers=[2, 3])
    assert (found.best.sel(layer=3) == 506).all()
    assert (found.held_out.sel(layer=3) > 2).all()
    assert (found.control < 1).all()


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        ([1, 0, 1, 0], "wanted truth values, one for each of 4 sequences"),
        ([True] * 3, r"labels=torch.bool\[3\]"),
        ([True, False, True, False], "tokens that count have it and 0 have not"),
    ],
)
def test_each_unit_refuses(nano: Any, tokens: torch.Tensor, labels: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        probes.each_unit(nano, tokens, labels)


# Which direction the model uses


def test_the_best_separator_is_a_direction_that_the_model_hardly_uses(compared: Any) -> None:
    two = compared.sel(layer=2)
    assert (two.accuracy.sel(direction=["mean_difference", "probe", "lda"]) >= 0.99).all()
    assert float(two.left.sel(direction="lda")) >= 0.8
    cosine = two.cosine.sel(direction="mean_difference")
    for other, want in (("probe", 0.994), ("gradient", 0.78), ("lda", 0.30)):
        assert float(cosine.sel(other=other)) == pytest.approx(want, abs=0.1)
    left = two.left.sel(direction=["mean_difference", "probe", "gradient"]).values
    np.testing.assert_allclose(left, [0.10, 0.07, 0.11], atol=0.1)
    assert (two.control_left > 0.9).all()
    assert float(two.moved.sel(direction="mean_difference")) > 0.7
    assert float(two.control_moved.max()) < 0.5
    # Before the model has decided they do not coincide.
    one = compared.sel(layer=1)
    assert abs(float(one.cosine.sel(direction="mean_difference", other="gradient"))) < 0.15
    assert (one.left > 0.9).all()
    assert compared.attrs["cosine_chance"] == pytest.approx(192**-0.5)


def margins(model: Any, data: Labelled, rows: Any, layer: int, ids: Any, change: Any) -> np.ndarray:
    """Logit differences with a plain hook, prompt by prompt."""
    found = []
    for n in rows:
        at = int(data.position[n])

        def hook(x: torch.Tensor, hook: Any = None, at: int = at) -> torch.Tensor:
            x = x.clone()
            x[0, at] = change(x[0, at])
            return x

        name = f"blocks.{layer}.hook_resid_post"
        logits = model.run_with_hooks(torch.tensor([data.rows[n]]), fwd_hooks=[(name, hook)])
        found.append(float(logits[0, -1, ids[0]] - logits[0, -1, ids[1]]))
    return np.array(found)


def test_what_is_left_and_moved_is_what_plain_hooks_give(some_model: Any) -> None:
    data = small(some_model, 8, y="even")
    object.__setattr__(data, "position", data.position - 1)  # not the last: what comes after reads
    answers = {"False": "a", "True": "b"}
    ids = [some_model.tokenizer.encode(answers[name])[-1] for name in ("True", "False")]
    by_id = {"False": np.int64(ids[1]), "True": ids[0]}
    told = [Margin.of(some_model, data, given, 7).metric.tokens for given in (answers, by_id)]
    assert torch.equal(*told)
    with torch.no_grad():
        found = probes.compare_directions(
            some_model, data, answers, layers=[0, 2], folds=2, controls=1
        )
    splits = Splits(data, 2, "entity", 0)
    fitted, tested = splits.parts(0)
    second = data.labels[tested] == 1
    for layer in (0, 2):
        with layers_held(some_model, data, Place.of(some_model, "resid_post", layer, 64)) as held:
            ((_, X),) = held
        with torch.no_grad():
            clean = margins(some_model, data, tested, layer, ids, lambda x: x)
        difference = clean[second].mean() - clean[~second].mean()
        assert float(found.difference.sel(layer=layer)) == pytest.approx(difference, abs=1e-4)
        for name in ("mean_difference", "gradient"):
            one = found.sel(layer=layer, direction=name)
            unit = torch.tensor(one.vector.values, dtype=torch.float32)
            middle = float((X[fitted] @ one.vector.values).mean())
            by = float(one.length) * unit
            with torch.no_grad():
                out = margins(
                    some_model, data, tested, layer, ids,
                    lambda x, unit=unit, middle=middle: x + (middle - x @ unit) * unit,
                )  # fmt: skip
                pushed = margins(
                    some_model, data, tested[~second], layer, ids, lambda x, by=by: x + by
                )
            left = (out[second].mean() - out[~second].mean()) / difference
            assert float(one.left) == pytest.approx(left, abs=2e-3)
            moved = (pushed - clean[~second]).mean() / difference
            assert float(one.moved) == pytest.approx(moved, abs=2e-3)
        want = np.zeros(X.shape[1])  # the gradient, by central differences along a few axes
        margin = Margin.of(some_model, data, answers, 7)
        gradient = margin.gradient(layer, fitted)
        for axis in (0, 31):
            step = torch.zeros(X.shape[1])
            step[axis] = 1e-2
            with torch.no_grad():
                up, down = (
                    margins(some_model, data, fitted, layer, ids, lambda x, s=s: x + s).mean()
                    for s in (step, -step)
                )
            want[axis] = (up - down) / 2e-2
            assert gradient[axis] == pytest.approx(want[axis], abs=2e-2 * np.abs(gradient).max())


def test_comparing_refuses(nano: Any, years: Labelled, refusals: Labelled) -> None:
    answers = {"harmful": " Sorry", "fine": " Sure"}
    for data, given, options, message in (
        (years, answers, {}, "wanted two classes"),
        (refusals, {"harmful": " Sorry"}, {}, "wanted what the model says of each class"),
        (refusals, {**answers, "fine": " Sure thing"}, {}, r"answers\['fine'\]=' Sure thing'"),
        (refusals, {**answers, "fine": 9999}, {}, r"answers\['fine'\]=9999; wanted a token id"),
        (refusals, answers, {"layers": 4}, r"layers=\[4\]"),
        (refusals, answers, {"controls": 0}, "controls=0"),
        (refusals, answers, {"batch_size": 0}, "batch_size=0"),
    ):
        with pytest.raises(ValueError, match=message):
            probes.compare_directions(nano, data, given, **options)
    few = Labelled.of(nano, [{"t": f"x{i}", "k": "ab"[i % 2]} for i in range(4)], text="{t}", y="k")
    with warnings.catch_warnings(), pytest.raises(ValueError, match="at least two of each"):
        probes.compare_directions(nano, few, {"a": " Sorry", "b": " Sure"}, folds=2)


# Figures


def test_the_figure_of_a_probe_has_the_numbers(nano: Any, years: Labelled) -> None:
    found = probes.probe(nano, years, layers=[0, 2], controls=3, folds=3)
    found["control"][0] = -5.0
    figure = plots.probe(found)
    lines = {line.name: line for line in figure.data}
    np.testing.assert_array_equal(lines["held out"].y, found["mean"])
    np.testing.assert_array_equal(lines["held out"].error_y.array, found.score_se)
    np.testing.assert_array_equal(lines["selectivity"].y, found.selectivity)
    assert lines["labels exchanged"].y[:3].tolist() == [-1] * 3  # the lower edge, which is said
    assert lines["labels exchanged"].customdata[:3].tolist() == [-5] * 3
    np.testing.assert_allclose(lines["their mean"].customdata, found.control.mean("draw"))
    assert lines["the token alone"].y[0] == float(found.baseline.mean())
    assert figure.layout.xaxis2.ticktext == ("embed", "0", "2")
    assert "R² below -1" in figure.layout.title.text
    alone = plots.probe(probes.probe(nano, years, layers=0, controls=0, folds=3))
    assert [line.name for line in alone.data] == ["held out", "the token alone"]
    with pytest.raises(ValueError, match=r"Dataset of probes\.probe"):
        plots.probe(found[["score"]])


def test_the_figure_of_a_sparse_probe_has_the_numbers(kind: Any) -> None:
    model = kind()
    data = small(model, 24, y="even")
    found = probes.sparse_probe(model, data, k=[1, 2], folds=3, controls=2)
    figure = plots.sparse_probe(found)
    one, random, two, _ = figure.data
    np.testing.assert_array_equal(one.y, found["mean"].sel(k=1))
    np.testing.assert_array_equal(two.error_y.array, found.auroc_se.sel(k=2))
    np.testing.assert_allclose(random.y, found.control.sel(k=1).mean("draw"))
    assert one.text[0] == str(found.unit.values[0, 0])
    assert two.text[1] == ", ".join(map(str, found.unit.values[1]))
    assert len(plots.sparse_probe(found.isel(draw=slice(0))).data) == 2
    with pytest.raises(ValueError, match=r"Dataset of probes\.sparse_probe"):
        plots.sparse_probe(found[["auroc"]])


def test_the_figure_of_directions_has_the_numbers(compared: Any) -> None:
    figure = plots.compare_directions(compared)
    by_name = {line.name: line for line in figure.data if line.name}
    np.testing.assert_array_equal(by_name["discriminant"].y, compared.moved.sel(direction="lda"))
    cosines = [line for line in figure.data if line.xaxis == "x" and line.name]
    assert [line.name for line in cosines] == [
        "difference of means", "logistic probe", "discriminant",
    ]  # fmt: skip
    wanted = compared.cosine.sel(direction="mean_difference", other="gradient")
    np.testing.assert_array_equal(cosines[0].y, wanted)
    bands = [line for line in figure.data if not line.name]
    assert [max(band.y) for band in bands[1:]] == pytest.approx(
        [float(compared[f"control_{name}"].max()) for name in ("accuracy", "left", "moved")]
    )
    assert max(bands[0].y) == 2 * compared.attrs["cosine_chance"]
    one = plots.compare_directions(compared.sel(layer=[2]), to="probe")
    assert "cosine to the logistic probe" in one.layout.annotations[0].text
    assert len(one.data[0].x) == 4  # a band that can be seen
    with pytest.raises(ValueError, match="to='line'; wanted one of mean_difference"):
        plots.compare_directions(compared, to="line")


# On the command line


def on_command_line(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["probe", *map(str, arguments)])


def test_the_command_reads_a_table(nano: Any, tmp_path: Any) -> None:
    """A .csv of texts alone: 02 stays 02 where it is filled in, and is 2 where it is read."""
    rows = [{"year": f"{n:02d}"} for n in range(2, 99, 4)]
    file, out = tmp_path / "years.csv", tmp_path / "years.nc"
    file.write_text("year\n" + "".join(f"{row['year']}\n" for row in rows))
    text = "The war of 17{year}"
    options = "--template", text, "-y", "year", "--entity", "year", "-l", "0", "--controls", "1"
    said = on_command_line(file, *options, "-o", out)
    assert said.exit_code == 0, said.stderr
    numbered = [{**row, "n": int(row["year"])} for row in rows]
    data = Labelled.of(nano, numbered, text=text, y="n", entity="year")
    found = probes.probe(nano, data, layers=0, controls=1)
    np.testing.assert_array_equal(results.load(out).score, found.score)
    lines = said.stdout.splitlines()
    assert lines[0].startswith("ridge at resid_post of nano: 25 prompts of 25 entities")
    assert [line.split()[0] for line in lines[1:4]] == ["layer", "embed", "0"]
    assert f"{float(found['mean'].sel(layer=0)):.2f}"[:4] in lines[3]
    said = on_command_line(file, "--template", text, "-y", "year", "--classes", "-l", "0")
    assert "in one fold only" in said.stderr


def test_the_command_looks_for_few_neurons(nano: Any, tmp_path: Any) -> None:
    file = tmp_path / "texts.jsonl"
    words = {"chat": 1, "maison": 1, "livre": 1, "cat": 0, "house": 0, "book": 0}
    lines = (f'{{"text": "{word}", "label": {label}}}' for word, label in words.items())
    file.write_text("\n\n".join(lines))
    options = "--sparse", "1,8", "--folds", "2", "-l", "3", "--position", "mean"
    said = on_command_line(file, *options, "--controls", "0")
    assert said.exit_code == 0, said.stderr
    rows = [line.split() for line in said.stdout.splitlines()]
    assert [row[:2] for row in rows[2:4]] == [["3", "1"], ["3", "8"]]
    assert rows[3][-1] == "…"


@pytest.mark.parametrize(
    ("name", "text", "options", "match"),
    [
        ("x.txt", "a", (), "FILE must end in .csv or .jsonl"),
        ("x.csv", None, (), "is not there"),
        ("x.csv", "", (), "has no rows"),
        ("x.csv", 'text,label\n"a,1\n', (), "unexpected end"),
        (
            "x.csv",
            "text,label\na,1\n",
            ("-y", "kind"),
            "'kind' is no column; wanted one of text, label",
        ),
        ("x.csv", "text,label\na\nb,1\n", (), "wanted a value for every column"),
        ("x.jsonl", "[1]", (), "wanted a value for every column"),
        ("x.jsonl", '{"text": 1}\n{', (), "line 2 is no JSON: Expecting"),
        (
            "x.csv",
            "text,text,label\na,b,1\n",
            (),
            "columns text, text, label; wanted each name once",
        ),
        ("x.csv", "text,label\na,1\nb,2\n", ("--template", "{text"), "text='{text': "),
        ("x.csv", "text,label\na,1\nb,2\n", ("--sparse", "1,1"), "k=[1, 1]; wanted each once"),
        ("x.csv", b"text,label\n\xff,1\n", (), "is not UTF-8 at byte 11"),
        ("x.csv", "text,label\na,1\n", ("-l", "all"), "--layers has 'all'"),
        ("x.csv", "text,label\na,1\nb,2\n", ("--sparse", "0"), "k=0"),
        ("x.csv", "text,label\na,1\n", ("-o", "x.txt"), "--out must end in"),
    ],
)
def test_bad_tables_on_the_command_line(
    tmp_path: Any, name: str, text: str | bytes | None, options: tuple[str, ...], match: str
) -> None:
    if text is not None:
        (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
    said = on_command_line(tmp_path / name, *options)
    assert said.exit_code == 2, said.output
    assert match in said.stderr
    assert said.stderr.count("\n") == 1
