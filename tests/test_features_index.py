"""The index of neurons by feature, and the neurons that two models share."""

import re
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
import xarray as xr
from random_models import VOCABULARY, random_llama, random_neox, tiny_tokenizer, unchecked
from reference import assert_areas
from typer.testing import CliRunner

from mlp_interp import SweepOptions, features, load, load_corpus, load_model
from mlp_interp.cli import app, features_data
from mlp_interp.features.crossed import Crossed, rectangles, rotation
from mlp_interp.features.documents import OfDocuments
from mlp_interp.features.partners import Partners
from mlp_interp.features.ranks import Ranked, false_discovery
from mlp_interp.prompts.tokenizing import decode

DOCUMENTS = [[0, *range(5 * n, 5 * n + 4 + n % 3)] for n in range(1, 13)]
LABELS = np.arange(12) % 2 == 0
FRENCH = ["Il aime le pain.", "Elle voit le chat.", "Le chien mange.", "Où est la maison?"]
ENGLISH = ["He likes the bread.", "She sees the cat.", "The dog eats.", "Where is the house?"]


@pytest.mark.parametrize("summary", ["mean", "max"])
def test_areas_are_those_of_each_neurons_own_numbers(some_model, summary):
    found = features.index(
        some_model,
        DOCUMENTS,
        {"odd": LABELS, "late": np.arange(12) > 7},
        summary=summary,
        permutations=5,
        sweep=SweepOptions(batch_size=2, shard=4),
    )
    rows = []
    for document in DOCUMENTS:
        with torch.no_grad():
            _, cache = some_model.run_with_cache(torch.tensor([document]))
        post = torch.stack([cache["post", n][0, 1:] for n in range(some_model.cfg.n_layers)])
        rows.append((post.mean(1) if summary == "mean" else post.amax(1)).numpy())
    values = np.stack(rows)
    for n, truth in enumerate((LABELS, np.arange(12) > 7)):
        assert_areas(found.auroc[n].values, values, truth)
    assert found.positives.values.tolist() == [6, 4]
    assert found.largest_null.shape == (2, 5)
    # The order that is seen is one of those that could be: never 0, and 1 where all are as far.
    away = np.abs(found.auroc - 0.5)
    as_far = (found.largest_null >= away - 1e-9).sum("draw")
    xr.testing.assert_allclose(found.p_family.drop_attrs(), (1 + as_far) / 6)


def test_the_null_is_that_of_all_shuffles():
    values = np.random.default_rng(0).normal(size=(9, 3)).round()  # with ties
    truth = np.arange(9) < 4
    ranked = Ranked.of(values)
    every = np.zeros((126, 9), bool)
    for row, chosen in zip(every, combinations(range(9), 4), strict=True):
        row[list(chosen)] = True
    areas = ranked.auroc(every)
    np.testing.assert_allclose(areas.mean(0), 0.5)
    np.testing.assert_allclose(ranked.auroc_null_se(truth[None])[0], areas.std(0))
    order = np.random.default_rng(1).permutation(9)
    shuffled = np.abs(ranked.auroc(truth[None, order]) - 0.5).max()
    assert ranked.largest(truth[None], order[None]).item() == pytest.approx(shuffled)


def test_errors_and_p_are_those_of_slow_formulas():
    values = np.random.default_rng(2).normal(size=(20, 4)).round(1)
    truth = np.arange(20) < 8
    ranked = Ranked.of(values)
    error = ranked.auroc_se(truth[None])[0]
    p = ranked.p_values(truth[None])[0]
    for column in range(4):
        with_it, without = values[truth, column], values[~truth, column]
        kernel = np.sign(with_it[:, None] - without) / 2 + 0.5
        parts = kernel.mean(1).var(ddof=1) / 8 + kernel.mean(0).var(ddof=1) / 12
        assert error[column] == pytest.approx(parts**0.5)
        test = scipy.stats.mannwhitneyu(with_it, without, method="asymptotic")
        assert p[column] == pytest.approx(test.pvalue)
    assert Ranked.of(np.ones((8, 1))).p_values(np.arange(8)[None] < 4).item() == 1


def test_p_of_two_values_is_exact_and_of_many_equals_not_too_small():
    truth = np.array([np.arange(1000) < 4, np.arange(1000) < 500])
    values = np.zeros((1000, 4))
    values[0, 0] = 1  # one document
    values[:2, 1] = 1, 2  # two that differ
    values[:, 2] = np.arange(1000) % 3 == 0
    values[500:, 3] = 5.0
    p = Ranked.of(values).p_values(truth)
    assert p[0, 0] == pytest.approx(2 * 0.004)
    # Both of them with the feature, of all ways to choose four.
    assert p[0, 1] == pytest.approx(2 * comb(998, 2) / comb(1000, 4))
    table = [[167, 333], [167, 333]]
    assert p[1, 2] == scipy.stats.fisher_exact(table).pvalue == 1
    assert p[1, 3] == pytest.approx(2 / comb(1000, 500))
    half = (np.arange(3200)[:, None] >= 1600).astype(float)
    far = Ranked.of(half).p_values(np.arange(3200)[None] < 1600)
    assert 0 < far.item() < 1e-300


@pytest.mark.parametrize("equal", [1, 3, 5])
def test_p_is_seldom_below_that_of_all_shuffles(equal):
    """Every choice of four of nine, some of which are alike: how often is p so small?"""
    values = np.maximum(np.arange(9.0), equal)[:, None]
    every = np.zeros((126, 9), bool)
    for row, chosen in zip(every, combinations(range(9), 4), strict=True):
        row[list(chosen)] = True
    p = Ranked.of(values).p_values(every)[:, 0]
    for level in (0.02, 0.05, 0.1, 0.2):
        assert (p <= level).mean() <= 1.25 * level


def test_false_discoveries():
    p = np.array([[0.01, 0.04], [0.03, 0.005]])
    np.testing.assert_allclose(false_discovery(p), [[0.02, 0.04], [0.04, 0.02]])


def test_language_is_found_and_chance_is_not(nano):
    labels = {"French": [True] * 4 + [False] * 4, "no feature": [True, False] * 4}
    found = features.index(nano, FRENCH + ENGLISH, labels, permutations=50)
    assert found.auroc.sel(feature="French", layer=0, neuron=433) == 1
    best = features.best(found, "French", k=3)
    assert np.abs(best.auroc - 0.5).values.tolist() == [0.5] * 3
    assert {*features.about(found, "L0N433").feature.values[:1]} == {"French"}
    assert features.about(found, (0, 433), k=1).auroc.item() == 1
    # Of eight documents some neuron of 3072 always tells any four: only the family says so.
    assert float(found.p_family.sel(feature="no feature").min()) > 0.1
    assert float(found.p_value.sel(feature="no feature").min()) < 0.05


def test_an_index_by_prefixes(nano):
    texts = FRENCH + [
        f"The rook took the pawn of {name}." for name in ("Mark", "Helen", "Tom", "Jane")
    ]
    found = features.index(nano, texts, {"chess": "Topic: chess."}, share=0.5, permutations=0)
    assert found.positives.item() == 4
    assert np.isfinite(found.q_value).all()
    score = features.self_score(nano, texts, "Topic: chess.").score[0]
    assert (np.argsort(-score.values)[:4] >= 4).sum() >= 3


@pytest.mark.parametrize(
    ("labels", "options", "says"),
    [
        ({}, {}, "features={}"),
        ({"x": [True] * 3}, {}, r"features\['x'\]=bool\[3\]"),
        ({"x": [1] * 12}, {}, r"features\['x'\]=int64\[12\]"),
        ({"x": np.arange(12) < 3}, {}, "is of 3 of 12 documents"),
        ({"x": np.arange(12) < 9}, {}, "is of 9 of 12 documents"),
        ({"x": LABELS}, {"permutations": -1}, "permutations=-1"),
        ({"x": LABELS}, {"seed": -1}, "seed=-1"),
        ({"x": LABELS}, {"share": 1}, "share=1"),
        ({"x": LABELS}, {"site": "q"}, "site='q'"),
        ({"x": LABELS}, {"summary": "sum"}, "summary='sum'"),
        ({"x": LABELS}, {"first": 9}, "first=9"),
    ],
)
def test_an_index_refuses(kind, labels, options, says):
    with pytest.raises(ValueError, match=says):
        unchecked(features.index)(kind(), DOCUMENTS, labels, **options)


def test_queries_refuse(kind):
    found = features.index(kind(), DOCUMENTS, {"odd": LABELS}, permutations=0)
    for call, says in (
        (lambda: features.best(found, "even"), "feature='even'"),
        (lambda: features.best(found, "odd", k=0), "k=0"),
        (lambda: features.about(found, "L7N1"), "layer=7"),
        (lambda: features.about(found, (0, 64)), "neuron=64"),
        (lambda: features.about(found, "L0N1", k=2), "k=2"),
        (lambda: OfDocuments(summary="sum"), "summary='sum'"),
        (lambda: features.index(kind(), [[0], *DOCUMENTS[1:]], {"x": LABELS}), "first=1"),
        (lambda: features.index(kind(), [[0, 0], *DOCUMENTS[1:]], {"x": LABELS}), r"corpus\[0\]"),
    ):
        with pytest.raises(ValueError, match=says):
            call()


def blocks(x, y, sizes):
    crossed = Crossed({0: x.shape[1]}, {0: y.shape[1]})
    for a, b in zip(x.split(sizes), y.split(sizes), strict=True):
        crossed.add({0: a}, {0: b})
    return crossed


def test_rotations_prefer_no_direction():
    traces = [float(rotation(3, seed).trace()) for seed in range(400)]
    assert abs(np.mean(traces)) < 4 / 400**0.5  # its standard deviation is 1
    turn = rotation(5, 0)
    np.testing.assert_allclose(turn @ turn.T, np.eye(5), atol=1e-12)


def activations(tokens=600, units=24, seed=0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(tokens, units, generator=generator).clamp_min(0) ** 2
    return made * 1e-3 + shift if shift else made


def slow(x, y):
    with np.errstate(invalid="ignore"):
        return np.corrcoef(x.double().T, y.double().T)[:24, 24:]


def test_correlations_beside_large_means():
    x, y = activations(shift=10.0), activations(seed=1, shift=10.0)
    y[:, 3] = x[:, 5]
    x[:, 0] = 7.0
    expected = slow(x, y)
    for sizes in ([600], [1, 250, 349]):
        crossed = blocks(x, y, sizes)
        assert crossed.constant("ours", 0).tolist() == [True] + [False] * 23
        found = crossed.correlation(0, 0).numpy()
        np.testing.assert_allclose(found[1:], expected[1:], atol=1e-5)
        assert not found[0].any()
        assert found[5, 3] == pytest.approx(1, abs=1e-5)
        turn = rotation(24, 0)
        turned = slow(x, y.double() @ turn.T)
        np.testing.assert_allclose(crossed.rotated(0, 0, turn)[1:], turned[1:], atol=1e-5)


def partners_of(x, y, **options):
    found = Partners([0], [0], (x.shape[1], y.shape[1]), top=2, rotations=4, seed=0)
    found.see(blocks(x, y, [x.shape[0]]))
    return found


def test_neurons_that_change_places_are_found_and_turned_ones_are_not():
    x = activations(tokens=4000)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(3))
    moved = partners_of(x, x[:, order])
    assert torch.equal(order[moved.neuron[0, :, 0]], torch.arange(24))
    assert bool(moved.mutual().all())
    excess = moved.value[..., 0] - moved.rotated.mean(0)
    assert float(excess.min()) > 0.2
    turned = partners_of(x, (x.double() @ rotation(24, 99).T).float())
    excess = turned.value[..., 0] - turned.rotated.mean(0)
    assert float(excess.mean().abs()) < 0.03


def test_rotations_and_rectangles():
    turn = rotation(16, 4)
    torch.testing.assert_close(turn @ turn.T, torch.eye(16, dtype=torch.float64))
    assert not torch.allclose(turn, rotation(16, 5))
    for most in (0.0, 100.0, 250.0, 350.0, 700.0, 10_000.0):
        passes = rectangles(range(3), range(4), 100, most)
        pairs = [(a, b) for ours, theirs in passes for a in ours for b in theirs]
        assert sorted(pairs) == [(a, b) for a in range(3) for b in range(4)]
        for ours, theirs in passes:
            held = len(ours) * len(theirs) + len(theirs)
            assert held * 100 <= most or len(ours) == len(theirs) == 1


@pytest.fixture(scope="module")
def moved():
    """A model, and the same with the neurons of each layer in another order."""
    plain, other = random_neox(), random_neox()
    generator = torch.Generator().manual_seed(5)
    orders = [torch.randperm(64, generator=generator) for _ in range(3)]
    for layer, order in zip(other.gpt_neox.layers, orders, strict=True):
        mlp = layer.mlp
        mlp.dense_h_to_4h.weight.data = mlp.dense_h_to_4h.weight.data[order]
        mlp.dense_h_to_4h.bias.data = mlp.dense_h_to_4h.bias.data[order]
        mlp.dense_4h_to_h.weight.data = mlp.dense_4h_to_h.weight.data[:, order]
    load = lambda model: load_model(model, tokenizer=tiny_tokenizer())
    return load(plain), load(other), torch.stack(orders)


def texts(count=24):
    generator = torch.Generator().manual_seed(2)
    return torch.randint(1, VOCABULARY, (count, 20), generator=generator)


def test_a_model_whose_neurons_changed_places(moved):
    model, other, orders = moved
    found = features.universal(model, other, texts(), top=3)
    partner = torch.from_numpy(found.partner_neuron.values[..., 0])
    assert torch.equal(orders.gather(1, partner), torch.arange(64).expand(3, -1))
    assert (found.partner_layer[..., 0] == found.layer).all()
    np.testing.assert_allclose(found.correlation[..., 0], 1, atol=1e-5)
    assert bool(found.mutual.all())
    assert float(found.excess.mean()) > 0.2
    np.testing.assert_allclose(found.by_layer.max("other_layer"), found.correlation[..., 0])
    # Pass by pass, and with other batches: the same.
    again = features.universal(model, other, texts(), top=3, memory=1e-7, batch_size=5)
    assert (found.attrs["passes"], again.attrs["passes"]) == (1, 9)
    for name in ("correlation", "rotated", "by_layer"):
        np.testing.assert_allclose(again[name], found[name], atol=1e-6)
    assert found.attrs["entries"] == 24 * 19


def test_universal_neurons_are_correlations(some_model):
    other = load_model(random_llama(layers=2, seed=9), tokenizer=tiny_tokenizer())
    tokens = texts(6)
    found = features.universal(some_model, other, tokens, top=4, rotations=0)
    assert found.sizes["draw"] == 0
    assert np.isnan(found.excess).all()
    with torch.no_grad():
        caches = [m.run_with_cache(tokens)[1] for m in (some_model, other)]
    kept = tokens[:, 1:] != 0
    ours, theirs = (
        torch.cat([c["post", n][:, 1:][kept] for n in range(m.cfg.n_layers)], 1).double()
        for m, c in zip((some_model, other), caches, strict=True)
    )
    expected = np.corrcoef(ours.T, theirs.T)[: ours.shape[1], ours.shape[1] :]
    top = np.sort(expected, axis=1)[:, :-5:-1]
    np.testing.assert_allclose(found.correlation.values.reshape(-1, 4), top, atol=2e-5)
    mutual = expected[:, expected.argmax(1)].argmax(0) == np.arange(len(expected))
    np.testing.assert_array_equal(found.mutual.values.ravel(), mutual)
    assert 0 < mutual.mean() < 1
    labels = found.partner_layer.values * 64 + found.partner_neuron.values
    np.testing.assert_allclose(
        np.take_along_axis(expected, labels.reshape(-1, 4), 1), top, atol=2e-5
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"top": 0}, "top=0"),
        ({"top": 65}, "top=65"),
        ({"rotations": -1}, "rotations=-1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"seed": -1}, "seed=-1"),
        ({"memory": 0}, "memory=0"),
        ({"site": "q"}, "site='q'"),
        ({"first": 30}, "first=30"),
    ],
)
def test_universal_refuses(moved, options, says):
    with pytest.raises(ValueError, match=says):
        unchecked(features.universal)(*moved[:2], texts(2), **options)


def test_universal_refuses_models_of_other_tokens(nano, moved):
    with pytest.raises(ValueError, match="other='nano' has another tokenizer"):
        features.universal(moved[0], nano, texts(2))


def on_command_line(*arguments):
    return CliRunner().invoke(app, ["features", *map(str, arguments)])


def test_the_command_says_which_neurons_tell_a_feature(tmp_path, nano):
    out, size = tmp_path / "f.nc", ["-n", 8, "-t", 48, "--seed", 1]
    done = on_command_line("Topic: chess.", "-w", "is , was", *size, "-k", 2, "-o", out)
    assert done.exit_code == 0, done.stderr
    corpus = load_corpus("nano", nano, sequences=8, length=48, seed=1)
    rows = features_data.documents(nano, corpus)
    assert min(map(len, rows)) >= 8
    assert all(0 not in row[1:] for row in rows)
    texts = [f" {decode(nano.tokenizer, row)} ".lower() for row in rows]
    labels = features_data.asked(nano, rows, [], ["is , was"])["is , was"]
    assert labels.tolist() == [bool(re.search(r"\bis\b|\bwas\b", text)) for text in texts]
    found: Any = load(out)
    assert found["positives"].values.tolist() == [round(len(rows) / 4), labels.sum()]
    best = features.best(found, "Topic: chess.", k=2)["component"].values
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[4:6]] == best.tolist()
    done = on_command_line("Topic: chess.", "-w", "is , was", *size, "--neuron", best[0])
    of_it = features.about(found, str(best[0]))
    for line, one in zip(done.stdout.splitlines()[2:], of_it["feature"].values, strict=False):
        assert line.strip().startswith(str(one))
        assert line.split()[-1] == f"{float(of_it['p_family'].sel(feature=one)):.2g}"


def test_the_command_says_what_another_model_has(tmp_path, neox_directory):
    text, out = tmp_path / "text.txt", tmp_path / "u.nc"
    text.write_text("the cat sat on the mat; hello world " * 40)
    size = ["-c", text, "-n", 4, "-t", 16, "-k", 1]
    done = on_command_line("-m", neox_directory, "--other", neox_directory, *size, "-o", out)
    assert done.exit_code == 0, done.stderr
    first = done.stdout.splitlines()[2].split()
    assert (first[0], first[1], first[-1]) == ("0", "1.00", "100%")
    assert load(out)["correlation"].sizes["rank"] == 5


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ([], "wanted either features"),
        (["Topic: chess.", "--other", "nano-1"], "wanted either features"),
        (["--other", "nano-1", "--neuron", "L0N1"], "--neuron is for features"),
        ([" "], "prefix must hold some text"),
        (["-w", ","], "--words must hold some text"),
        (["Topic: chess.", "--neuron", "L9"], "L9"),
        (["Topic: chess.", "--neuron", "L9N0"], "--neuron='L9N0'"),
        (["Topic: chess.", "-o", "f.txt"], "--out must end in"),
        (["--other", "./nowhere"], "is no directory here"),
    ],
)
def test_the_command_refuses(arguments, match):
    done = on_command_line(*arguments)
    assert done.exit_code == 2
    assert match in done.stderr
    assert done.stderr.count("\n") == 1
