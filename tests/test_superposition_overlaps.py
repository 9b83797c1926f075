"""Whether a feature lies between two neurons: planted angles, and what must not change."""

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from reference import full_cache

from mlp_interp import SweepOptions, load, save
from mlp_interp.models import Weights
from mlp_interp.sites import Site
from mlp_interp.superposition import _overlaps, overlaps
from mlp_interp.superposition._overlaps import read_angle


@pytest.fixture(scope="module")
def planted():
    """Two activations that overlap a little, and a feature at 40 degrees from the first."""
    draws = np.random.default_rng(0)
    a, other = draws.standard_normal((2, 6000))
    b = 3 * other + 0.5 * a + 1
    angle = np.radians(40)
    score = np.cos(angle) * a / a.std() + np.sin(angle) * b / b.std()
    follows = draws.random(6000) < 1 / (1 + np.exp(3 - 2 * score))
    return a, b, follows, np.repeat(np.arange(60), 100)


def test_the_planted_angle_is_found(planted):
    theta, error = read_angle(*planted)
    assert abs(theta - 40) < min(10, 3 * error)
    assert 0.3 < error < 4


def test_a_feature_of_the_first_alone_is_at_zero(planted):
    a, b, _, text = planted
    follows = np.random.default_rng(1).random(len(a)) < 1 / (1 + np.exp(3 - 2 * a))
    theta, error = read_angle(a, b, follows, text)
    assert abs(theta) < 3 * error


def test_swapping_and_scaling(planted):
    a, b, follows, text = planted
    theta, error = read_angle(a, b, follows, text)
    swapped = read_angle(b, a, follows, text)
    np.testing.assert_allclose(swapped, (90 - theta, error), rtol=1e-6)
    np.testing.assert_allclose(read_angle(5 * a + 2, b / 9, follows, text), (theta, error))
    np.testing.assert_allclose(read_angle(a, -b, follows, text), (-theta, error))
    assert read_angle(a, 0 * b + 2, follows, text) == (0, 0)
    assert np.isnan(read_angle(a, b, np.arange(len(a)) < 3, text)[0])


def test_the_error_is_that_of_other_texts(planted):
    """Against a bootstrap over texts."""
    a, b, follows, _ = planted
    draws, found = np.random.default_rng(2), []
    for _ in range(60):
        some = draws.integers(60, size=60)
        rows = (some[:, None] * 100 + np.arange(100)).ravel()
        found.append(read_angle(a[rows], b[rows], follows[rows], np.repeat(np.arange(60), 100))[0])
    np.testing.assert_allclose(read_angle(*planted)[1], np.std(found), rtol=0.35)


def test_auroc_is_the_share_of_pairs():
    score, follows = np.array([1.0, 2, 2, 3]), np.array([False, False, True, True])
    assert _overlaps._auroc(score, follows) == (1 + 0.5 + 1 + 1) / 4
    assert np.isnan(_overlaps._auroc(score, follows & False))


def test_what_never_changes_has_neither_angle_nor_rank(kind):
    """Of a dead A nothing is told; beside dead controls B still has its angle."""
    model, draws = kind(), np.random.default_rng(0)
    x = np.zeros((400, model.cfg.d_mlp))
    x[:, :2] = draws.standard_normal((400, 2))
    after = np.where(draws.random(400) < 1 / (1 + np.exp(-x[:, 0])), 7, 8)
    layer = ("token", "neuron"), x
    kept = xr.Dataset({"layer0": layer, "next": ("token", after)})
    kept["text"] = ("token", np.repeat(np.arange(8), 50))
    weights = Weights.of(model)

    def measured(a, b, tokens):
        pair = _overlaps._Pair(0, a, b, torch.tensor(tokens), 1)
        return _overlaps._measured(weights, pair, kept, 3, draws)

    dead = measured(2, 0, [7])
    for name in ("theta", "correlation", "weight_B", "weight_rank", "auroc_A", "auroc"):
        assert np.isnan(dead[name]), name
    assert np.isnan(measured(0, 1, [9])["weight_rank"])  # 9 never comes
    alive = measured(0, 1, [7])
    assert np.isnan(alive["weight_z"])  # all controls are dead: no spread
    assert alive["weight_rank"] == (1 + 3 * (alive["weight_B"] <= 0)) / 4


def test_overlaps_of_a_model_are_those_by_hand(kind, tmp_path):
    """Pairs, correlations and angles from a cache of the library's."""
    model = kind()
    texts = torch.randint(1, 300, (16, 9), generator=torch.Generator().manual_seed(4))
    found = overlaps(model, texts, layers=1, k=40, shared=5, top=4, controls=3)
    x = full_cache(model, texts)[Site("post", 1).hook_name][:, 1:-1].flatten(0, 1).numpy()
    W_U = model.W_U - model.W_U.mean(1, keepdim=True)
    promoted = (model.W_out[1] @ W_U).topk(40).indices.numpy()
    after = texts[:, 2:].flatten().numpy()
    for n in range(found.sizes["pair"]):
        here = found.isel(pair=n)
        a, b = (int(str(here[name].values).split("N")[1]) for name in "AB")
        assert int(here["shared"]) == len({*promoted[a]} & {*promoted[b]})
        follows = np.isin(after, promoted[a])
        np.testing.assert_allclose(here["rate"], follows.mean())
        np.testing.assert_allclose(
            here["correlation"], np.corrcoef(x[:, a], x[:, b])[0, 1], atol=1e-4
        )
        text = np.repeat(np.arange(16), 7)
        wanted = read_angle(x[:, a].astype(float), x[:, b].astype(float), follows, text)
        np.testing.assert_allclose((here["theta"], here["theta_se"]), wanted, rtol=1e-2, atol=0.2)
    assert (np.diff(found["shared"]) <= 0).all()
    kept: Any = load(save(found, tmp_path / "pairs.nc"))
    assert kept.identical(found)
    again = overlaps(
        model,
        texts,
        layers=1,
        k=40,
        shared=5,
        top=4,
        controls=3,
        sweep=SweepOptions(batch_size=3, shard=5),
    )
    np.testing.assert_allclose(again["weight_z"], found["weight_z"], rtol=1e-2, atol=1e-2)


def test_what_overlaps_refuse(kind):
    model, texts = kind(), torch.arange(1, 21).view(4, 5)
    for options, text in [
        ({"k": 0}, "k=0"),
        ({"k": 5, "shared": 6}, "shared=6"),
        ({"top": 0}, "top=0"),
        ({"controls": 63}, "controls=63"),
        ({"layers": 5}, "layers"),
        ({"k": 3, "shared": 3, "layers": 0}, "no two neurons"),
    ]:
        with pytest.raises(ValueError, match=text):
            overlaps(model, texts, **options)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="3 texts"):
        overlaps(model, texts[:3])
