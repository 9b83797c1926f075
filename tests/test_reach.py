"""Reachable sets, against other solvers, in closed form, and by what must hold."""

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from random_models import unchecked
from scipy.optimize import linprog, minimize
from scipy.spatial import ConvexHull
from typer.testing import CliRunner

from mlp_interp import Unembed, load, plots, reach
from mlp_interp.cli import app
from mlp_interp.models.norm import Norm
from mlp_interp.reach import (
    argmaxable,
    needed_dimension,
    reachable,
    reachable_share,
    with_certificate,
)
from mlp_interp.reach._active_set import ActiveSet
from mlp_interp.reach._law import largest_set, share_by_law
from mlp_interp.reach._margin import Margin
from mlp_interp.reach._readout import Readout
from mlp_interp.reach._solve import solved


def readout_of(rows: np.ndarray, bias: np.ndarray | None = None, kind: Any = "rms") -> Readout:
    """A readout with these rows of ``W'``, divided by the radius so that they are logits."""
    weight = torch.from_numpy(rows.T / rows.shape[1] ** 0.5)
    bias = np.zeros(len(rows)) if bias is None else bias
    unembed = Unembed(weight, torch.from_numpy(bias), Norm(kind, 0.0))
    longest = float(np.linalg.norm(rows, axis=1).max())
    return Readout(unembed, np.ones(len(rows), bool), bias, longest)


def margin_of(readout: Readout, tokens: Any, **options: Any) -> Margin:
    given = {"ordered": False, "tolerance": 1e-6, "decide": False, "rounds": 60, **options}
    return solved(readout, np.array([tokens]), **given)[0]


def leads(rows: np.ndarray, bias: np.ndarray, k: int, ordered: bool) -> tuple[np.ndarray, ...]:
    """Every difference that must be positive, one by one."""
    above = [(i, j) for i in range(k) for j in range(k, len(rows))]
    if ordered:
        above = [(i, i + 1) for i in range(k - 1)] + [(k - 1, j) for j in range(k, len(rows))]
    first, second = np.array(above).T
    return rows[first] - rows[second], bias[first] - bias[second]


def slow_margin(A: np.ndarray, c: np.ndarray) -> float:
    """By sequential quadratic programming, from several starts."""
    d, best = A.shape[1], -np.inf
    constraints = [
        {
            "type": "ineq",
            "fun": lambda x: A @ x[:d] + c - x[d],
            "jac": lambda x: np.c_[A, -1 + 0 * c],
        },
        {"type": "ineq", "fun": lambda x: 1 - x[:d] @ x[:d], "jac": lambda x: np.r_[-2 * x[:d], 0]},
    ]
    found = minimize(
        lambda x: -x[d], np.r_[np.zeros(d), c.min()], jac=lambda x: np.r_[np.zeros(d), -1],
        constraints=constraints, method="SLSQP", options={"maxiter": 300, "ftol": 1e-12},
    )  # fmt: skip
    n = found.x[:d] / max(1.0, float(np.linalg.norm(found.x[:d])))
    return max(best, float((A @ n + c).min()))


@pytest.mark.parametrize("ordered", [False, True])
def test_bounds_hold_whatever_another_solver_finds(ordered: bool) -> None:
    rng = np.random.default_rng(0)
    unreachable = 0
    for trial in range(20):
        v, d, k = (int(rng.integers(*ends)) for ends in ((6, 24), (2, 6), (1, 4)))
        rows = rng.normal(size=(v, d))
        bias = rng.normal(size=v) * (trial % 2)
        found = margin_of(readout_of(rows, bias), list(range(k)), ordered=ordered)
        slow = slow_margin(*leads(rows, bias, k, ordered))
        assert slow <= found.upper + 1e-9
        if found.verdict == 1:
            assert found.lower == pytest.approx(slow, abs=1e-5)
            assert found.upper - found.lower <= 1e-6
        else:
            unreachable += 1
            assert found.verdict == 0
            assert slow <= found.rounding
    assert 2 < unreachable < 18


def test_without_biases_signs_are_those_of_a_linear_program() -> None:
    rng = np.random.default_rng(1)
    for _ in range(12):
        rows = rng.normal(size=(60, 8))
        A, _ = leads(rows, np.zeros(60), 3, False)
        box = linprog(
            np.r_[np.zeros(8), -1], A_ub=np.c_[-A, np.ones(len(A))], b_ub=np.zeros(len(A)),
            bounds=[(-1, 1)] * 8 + [(None, None)],
        )  # fmt: skip
        found = margin_of(readout_of(rows), [0, 1, 2], decide=True)
        assert found.verdict == int(-box.fun > 1e-9)


def test_without_biases_what_can_be_first_are_the_corners_of_the_hull() -> None:
    rows = np.random.default_rng(7).normal(size=(60, 3))
    readout = readout_of(rows)
    first = {n for n in range(60) if margin_of(readout, [n], decide=True).verdict == 1}
    assert first == {*ConvexHull(rows).vertices.tolist()}
    assert 10 < len(first) < 50


def test_the_active_set_meets_the_duality_gap() -> None:
    rng = np.random.default_rng(2)
    for trial in range(40):
        rows, cost = rng.normal(size=(20, 6)), rng.normal(size=20) * (trial % 3)
        group = (np.arange(20) > 2).astype(int)
        found = ActiveSet(rows, cost, group, np.arange(20))
        assert found.solve(1000)
        served = rows @ found.n + cost
        assert found.value == pytest.approx(served[:3].min() + served[3:].min(), abs=1e-7)
        assert np.linalg.norm(found.n) <= 1 + 1e-12


def test_a_parallelogram_s_diagonal_cannot_be_had() -> None:
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(40, 30))
    rows[3] = rows[0] + rows[1] - rows[2]  # 0 + 1 = 2 + 3
    found = margin_of(readout_of(rows), [0, 1])
    assert found.verdict == 0
    assert found.upper == pytest.approx(0, abs=1e-9)
    tokens, weights = found.weights
    large = weights > 1e-9  # others are rounding
    assert dict(zip(tokens[large].tolist(), weights[large], strict=True)) == pytest.approx(
        {0: 0.5, 1: 0.5, 2: 0.5, 3: 0.5}
    )
    assert margin_of(readout_of(rows), [0, 2]).verdict == 1


def test_a_token_s_double_cannot_be_led() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(400, 24))
    for _ in range(12):
        tokens = rng.choice(300, size=3, replace=False)
        rows[300:] = rng.normal(size=(100, 24))
        rows[350] = rows[tokens[1]]
        found = margin_of(readout_of(rows), tokens, decide=True)
        assert found.verdict == 0


def test_a_mean_of_other_tokens_is_first_only_with_a_bias() -> None:
    rng = np.random.default_rng(4)
    rows = rng.normal(size=(30, 20))
    rows[0] = rows[1:11].mean(0)
    bias = np.zeros(30)
    assert margin_of(readout_of(rows, bias), [0]).verdict == 0
    bias[0] = 0.1
    found = margin_of(readout_of(rows, bias), [0])
    assert found.verdict == 1
    # Without a stream it leads by its bias, and along no stream by more over all ten.
    assert found.upper == pytest.approx(0.1)
    assert np.linalg.norm(found.stream) < 1


def test_on_a_moment_curve_every_set_can_be_had() -> None:
    t = np.cos(np.pi * (np.arange(12) + 0.5) / 12)
    rows = np.stack([t**p for p in range(1, 5)], 1)  # 2 k dimensions and a constant
    rows = np.c_[rows, np.ones(12)]
    pairs = [[i, j] for i in range(12) for j in range(i)]
    found = solved(
        readout_of(rows), np.array(pairs), ordered=False, tolerance=1.0, decide=True, rounds=60
    )
    assert all(margin.verdict == 1 for margin in found)


@pytest.mark.parametrize(
    ("d_vocab", "width", "draws", "ordered"),
    [
        (1000, 64, 24, False),
        (1000, 64, 24, True),
        (1024, 95, 8, False),
        (2048, 191, 4, False),
    ],
)
def test_half_of_sets_and_of_orders_can_be_had_within_10_percent_of_the_law(
    d_vocab: int, width: int, draws: int, ordered: bool
) -> None:
    rng = np.random.default_rng(2)
    readout, law = readout_of(rng.normal(size=(d_vocab, width))), largest_set(d_vocab, width)
    shares, wanted = [], []
    for k in (round(0.9 * law), round(1.1 * law)):
        sets = np.stack([rng.choice(d_vocab, k, replace=False) for _ in range(draws)])
        found = solved(readout, sets, ordered=ordered, tolerance=1.0, decide=True, rounds=60)
        verdicts = np.array([margin.verdict for margin in found])
        assert (verdicts >= 0).all()
        shares.append(verdicts.mean())
        wanted.append(share_by_law(d_vocab, k, width))
    assert shares[0] > 0.5 > shares[1]
    for share, p in zip(shares, wanted, strict=True):
        assert abs(share - p) < 3 * (p * (1 - p) / draws) ** 0.5


def test_the_law_is_known_at_half_the_tokens() -> None:
    assert needed_dimension(200, 100) == pytest.approx(100, rel=1e-6)  # t is 0, each term a half
    assert needed_dimension(2048, 44) < 191 < needed_dimension(2048, 46)


def test_nano_s_own_lists_can_be_had(nano: Any) -> None:
    tokens = torch.tensor([[0, 5, 6, 7, 300, 12]])
    with torch.no_grad():
        logits = nano(tokens)[0]
    top = logits.topk(6)
    gap = top.values[:, 4] - top.values[:, 5]
    found = reachable(nano, top.indices[:, :5])
    assert (found["reachable"] == 1).all()
    assert (found["upper"].values >= gap.numpy() - 1e-3).all()
    in_order = reachable(nano, top.indices[:, :5], ordered=True)
    assert (in_order["reachable"] == 1).all()
    assert (in_order["upper"] <= found["upper"] + 1e-6).all()


@pytest.mark.parametrize("ordered", [False, True])
def test_certificates_prove_what_the_solver_says(some_model: Any, ordered: bool) -> None:
    sets = torch.tensor([[5, 9, 100], [7, 8, 200]])
    found = reachable(some_model, sets, ordered=ordered, exclude=[0, 1])
    checked = with_certificate(some_model, found)
    for name in ("lower", "upper"):
        np.testing.assert_allclose(checked[name], found[name], atol=1e-6)
    assert (found["reachable"] >= 0).all()
    logits = Unembed.of(some_model).weight.double().T @ torch.from_numpy(found["stream"].values).T
    logits = logits.T + Unembed.of(some_model).bias.double()
    own = logits.gather(1, sets)
    others = logits.scatter(1, sets, -torch.inf)
    others[:, :2] = -torch.inf
    least = own.amin(1) if not ordered else None
    if least is not None:
        np.testing.assert_allclose(found["lower"], least - others.amax(1), atol=1e-5)


def test_forged_certificates_are_refused(nano: Any) -> None:
    found = reachable(nano, [[5, 9]])
    with pytest.raises(ValueError, match="outside the ball"):
        with_certificate(nano, found.assign(stream=found["stream"] * 1.01))
    with pytest.raises(ValueError, match="with a mean"):
        with_certificate(nano, found.assign(stream=found["stream"] * 0.5 + 0.1))
    with pytest.raises(ValueError, match="no certificate"):
        with_certificate(nano, found.assign(weight=found["weight"] * 0.9))
    with pytest.raises(ValueError, match="streams of 3 numbers"):
        with_certificate(nano, found.isel(d_model=slice(3)))
    with pytest.raises(ValueError, match="wanted the Dataset"):
        with_certificate(nano, found[["lower"]])


def test_processing_changes_no_margin(kind: Any) -> None:
    sets = torch.tensor([[5, 9, 100], [7, 8, 200]])
    folded, raw = (reachable(kind("parallel", processing=x), sets) for x in ("folded", "raw"))
    np.testing.assert_allclose(raw["upper"], folded["upper"], atol=2e-3)


def test_what_is_short_is_lengthened_on_the_sphere(nano: Any) -> None:
    found = reachable(nano, [5, 9], norm="sphere")
    assert found["radius"].item() == pytest.approx(1)
    assert found["reachable"].item() == 1


def test_a_decision_is_cheaper_than_a_margin(nano: Any) -> None:
    quick, whole = (reachable(nano, [[5, 9, 33]], decide=x) for x in (True, False))
    assert quick["rounds"].item() <= whole["rounds"].item()
    assert quick["reachable"].item() == whole["reachable"].item() == 1
    assert quick["lower"].item() <= whole["upper"].item() <= quick["upper"].item()


def test_every_token_of_a_model_is_decided(some_model: Any, nano: Any) -> None:
    found = argmaxable(some_model)
    assert (found["reachable"] >= 0).all()
    some = found.isel(token_id=slice(0, 300, 37))
    slow = reachable(some_model, some["token_id"].values[:, None])
    np.testing.assert_array_equal(some["reachable"], slow["reachable"])
    assert (some["lower"].values <= slow["upper"].values + 1e-3).all()
    assert (argmaxable(nano)["reachable"] == 1).all()


def test_the_law_is_that_of_distances_from_the_cone() -> None:
    rng = np.random.default_rng(6)
    logits, k, best = rng.normal(size=(2000, 100)), 8, np.full(2000, np.inf)
    for t in np.linspace(0.7, 2.1, 30):
        below, above = np.minimum(logits[:, :k] - t, 0), np.maximum(logits[:, k:] - t, 0)
        best = np.minimum(best, (below**2).sum(1) + (above**2).sum(1))
    mean = needed_dimension(100, k)
    assert best.mean() == pytest.approx(mean, abs=4 * best.std() / 2000**0.5)
    shares = [share_by_law(100, k, d) for d in range(100)]
    assert float(np.interp(0.5, shares, range(100))) == pytest.approx(best.mean(), abs=0.3)
    middle = next(d for d in range(100) if shares[d] > 0.5)
    one_sd = middle + np.sqrt(best.var() - 2 * best.mean())
    assert share_by_law(100, k, round(one_sd)) == pytest.approx(0.84, abs=0.05)


@pytest.mark.parametrize("seed", [8, 10, 68])
def test_rows_that_are_mixtures_of_others_end_no_search(seed: int) -> None:
    rng = np.random.default_rng(seed)
    readout = readout_of(rng.normal(size=(60, 8)))
    # The Gram matrix would be singular with a row that is told from a mixture by its squares.
    assert margin_of(readout, rng.choice(60, 3, replace=False), decide=True).verdict >= 0


def test_shares_are_those_of_the_sets_drawn(some_model: Any) -> None:
    tokens = torch.arange(24).reshape(2, 12)
    given = {"corpus": tokens, "exclude": [0, 1], "n": 3, "pool": "seen"}
    found = reachable_share(some_model, [1, 3], **given)
    draws = np.random.default_rng([0, 3])
    sets = np.stack([draws.choice(np.arange(2, 24), 3, replace=False) for _ in range(3)])
    slow = reachable(some_model, sets, exclude=[0, 1], tolerance=0.05, rounds=12)
    assert found["share"][1] == (slow["reachable"] == 1).mean()
    assert found["undecided"][1] == (slow["reachable"] == -1).mean()
    np.testing.assert_array_equal(found["margin"][1], slow["lower"].clip(0))
    median = found["margin_quantile"].sel(quantile=0.5)
    np.testing.assert_array_equal(median, found["margin"].median("set"))
    a, b = 3 * found["share"] + 1, 4 - 3 * found["share"]
    np.testing.assert_allclose(found["share_se"] ** 2, a * b / (5**2 * 6))  # of a beta variable
    kind = Unembed.of(some_model).norm.kind
    assert found.attrs["dimension"] == some_model.cfg.d_model - (kind == "layer")


def test_sets_of_one_size_do_not_depend_on_others(nano: Any) -> None:
    both, alone = (reachable_share(nano, k, n=2)["margin"][-1] for k in ([1, 3], 3))
    np.testing.assert_array_equal(both, alone)


def test_the_figure_has_the_numbers_of_the_result(nano: Any) -> None:
    found = reachable_share(nano, [1, 4], n=2, corpus=torch.arange(60).reshape(3, 20))
    lines = {line.name: line for line in plots.reachable(found).data if line.name}
    np.testing.assert_array_equal(lines["random sets"].y, found["share"])
    np.testing.assert_array_equal(lines["random sets"].error_y.array, 0)  # all can be had
    np.testing.assert_array_equal(lines["random sets"].error_y.arrayminus, found["share_se"])
    np.testing.assert_array_equal(lines["by the law"].y, found["law"])
    own, margin = "the model's own lists lead by", "random sets could lead by"
    np.testing.assert_array_equal(lines[own].y, found["own_gap_quantile"][:, 2])
    np.testing.assert_array_equal(lines[margin].y, found["margin_quantile"][:, 2])
    half = plots.reachable(found.assign(undecided=found["undecided"] + 0.5)).data[0]
    assert half.name == "undecided"
    np.testing.assert_array_equal(half.base, found["share"])
    with pytest.raises(ValueError, match=r"Dataset of reach\.reachable_share"):
        plots.reachable(found[["share"]])


def test_own_lists_lead_by_their_gaps(nano: Any) -> None:
    tokens = torch.arange(60).reshape(3, 20)
    found = reachable_share(nano, [1, 4], n=1, corpus=tokens, exclude=[7])
    with torch.no_grad():
        logits = nano(tokens)[:, 1:].clone()
    logits[..., 7] = -torch.inf
    top = logits.flatten(0, 1).topk(5).values
    for n, k in enumerate((1, 4)):
        gaps = (top[:, k - 1] - top[:, k]).numpy()
        wanted = np.quantile(gaps, found["quantile"], method="inverted_cdf")
        np.testing.assert_allclose(found["own_gap_quantile"][n], wanted, rtol=0.024, atol=1e-5)
    without = reachable_share(nano, [1, 4], n=1, exclude=" Paris")
    (paris,) = nano.to_tokens(" Paris", prepend_bos=False)[0].tolist()
    assert without.attrs["exclude"] == [paris]
    assert reachable(nano, [[5]], exclude=7).attrs["exclude"] == [7]
    assert without["own_gap_quantile"].isnull().all()
    assert without.attrs["data"] == "none"


@pytest.mark.parametrize(
    ("k", "options", "match"),
    [
        (0, {}, "k=0"),
        ([], {}, "k is empty"),
        ([2, 2], {}, "each size once"),
        (2048, {}, "k=2048; wanted at most 2,047"),
        (1.5, {}, "k="),
        (5, {"pool": [1, 2, 3]}, "k=5; wanted at most 3"),
        (1, {"pool": "some"}, "pool='some'"),
        (1, {"pool": "seen"}, "without a corpus"),
        (1, {"pool": [4], "exclude": [4]}, r"pool has \[4\]"),
        (1, {"n": 0}, "n=0"),
        (1, {"seed": -1}, "seed=-1"),
        (1, {"tolerance": -1.0}, "tolerance=-1.0"),
        (1, {"corpus": torch.arange(4)[None], "first": 4}, "first=4"),
    ],
)
def test_bad_input_of_shares(nano: Any, k: Any, options: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        unchecked(reachable_share)(nano, k, **options)


@pytest.mark.parametrize(
    ("tokens", "options", "match"),
    [
        ([[5, 5]], {}, "each token once"),
        ([[5], [6, 7]], {}, "one size"),
        ([], {}, "at least one"),
        ([[5000]], {}, r"tokens\[0\]\[0\]=5000"),
        ([[1.5]], {}, r"tokens\[0\]\[0\]=1.5; wanted a token id"),
        ([["Paris London"]], {}, "wanted one known token"),
        ([range(2048)], {}, "wanted a set"),
        ([list(range(2048))], {}, "fewer than all 2048"),
        ([[5]], {"tolerance": 0.0}, "tolerance=0.0"),
        ([[5]], {"rounds": 0}, "rounds=0"),
        ([[5]], {"norm": "cube"}, "norm="),
        ([[5]], {"exclude": [3000]}, "exclude=3000; wanted a token id from 0 to 2047"),
        ([[5]], {"exclude": [-1]}, "exclude=-1; wanted a token id"),
        ([[5]], {"exclude": "Parisx"}, "exclude='Parisx'"),
        ([[5]], {"exclude": [7, 7]}, r"exclude=\[7, 7\]; wanted each token once"),
        ([[5]], {"exclude": list(range(2048))}, "no rival"),
    ],
)
def test_bad_input(nano: Any, tokens: Any, options: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        unchecked(reachable)(nano, tokens, **options)


def test_sets_larger_than_the_vocabulary_have_no_dimension() -> None:
    with pytest.raises(ValueError, match="k=5"):
        needed_dimension(5, 5)
    assert reach.__all__


def on_command_line(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["reach", *map(str, arguments)])


def test_the_command_says_what_the_functions_do(nano: Any, tmp_path: Any) -> None:
    out = tmp_path / "r.nc"
    said = on_command_line("Paris, London,cat", "--ordered", "-o", out)
    assert said.exit_code == 0, said.stderr
    found: Any = reachable(nano, [" Paris", " London", " cat"], ordered=True)
    first, second, third = said.stdout.splitlines()
    assert "can be the likeliest tokens of nano, in this order" in first
    assert f"by {float(found['lower'][0]):.3g} logits" in second
    assert repr(str(found["violator_text"].values[0, 0])) in third
    xr.testing.assert_equal(load(out), found)
    said = on_command_line("--share", "1,3", "-n", 2)
    assert said.stdout.splitlines()[2].split()[0] == "1"
    assert "of 191 that there are" in said.stdout


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ([], "wanted either words"),
        (["Paris", "--share", "1"], "wanted either words"),
        (["--share", "1", "--ordered"], "have no order"),
        (["--share", "1,x"], "--share has 'x'"),
        (["Paris,no such word"], "no such word"),
        (["Paris", "-o", "r.txt"], "--out must end in"),
    ],
)
def test_bad_input_of_the_command(arguments: list[str], match: str) -> None:
    said = on_command_line(*arguments)
    assert said.exit_code == 2
    assert match in said.stderr
    assert said.stderr.count("\n") == 1
