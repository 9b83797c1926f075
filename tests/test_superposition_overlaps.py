"""Whether a feature lies between two neurons: planted angles, and what must not change."""

from typing import Any

import numpy as np
import pytest
import torch
from random_models import random_neox, tiny_tokenizer
from reference import full_cache

from mlp_interp import SweepOptions, load, load_model, save
from mlp_interp.corpus import sweep
from mlp_interp.sites import Site
from mlp_interp.superposition import _angles, _overlaps, overlaps
from mlp_interp.superposition._activities import Activities
from mlp_interp.superposition._angles import auroc, read_angle
from mlp_interp.superposition._pairs import Pair, controls_of, pool_of


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


def test_fits_end_where_nothing_pulls_any_more():
    """Also of neurons that are far out at a few tokens, where full steps go to and fro."""
    draws = np.random.default_rng(5)
    a, *others = draws.standard_normal((9, 4000)) ** 9
    follows = draws.random(4000) < 0.04
    x = np.stack([a, *others])
    x = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    beta = _angles._lines(a, np.stack(others), follows)
    for mine, b in zip(beta, x[1:], strict=True):
        left = follows - 1 / (1 + np.exp(-(mine @ np.stack([np.ones(4000), x[0], b]))))
        np.testing.assert_allclose(left.sum(), 0, atol=1e-6)
        np.testing.assert_allclose([left @ x[0], left @ b], mine[1:], atol=1e-5)


def test_auroc_is_the_share_of_pairs():
    score, follows = np.array([1.0, 2, 2, 3]), np.array([False, False, True, True])
    assert auroc(score, follows) == (1 + 0.5 + 1 + 1) / 4
    assert np.isnan(auroc(score, follows & False))


def test_what_never_changes_has_neither_angle_nor_rank():
    """Of a dead A nothing is told; beside dead controls B still has its angle."""
    draws = np.random.default_rng(0)
    x = dict(enumerate(np.zeros((6, 400))))
    x[0], x[1] = draws.standard_normal((2, 400))
    after = np.where(draws.random(400) < 1 / (1 + np.exp(-x[0])), 7, 8)
    text = np.repeat(np.arange(8), 50)

    def measured(a, b, tokens):
        pair = Pair(0, a, b, np.array(tokens), 1, 0.0, 0.0)
        return _overlaps._measured(pair, x, [3, 4, 5], np.isin(after, tokens), text)

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
    found = overlaps(model, texts, layers=(2, 1), k=40, shared=5, top=4, controls=3)
    cache = full_cache(model, texts)
    W_U = model.W_U - model.W_U.mean(1, keepdim=True)
    after = texts[:, 2:].flatten().numpy()
    assert found["layer"].values.tolist() == [2] * 4 + [1] * 4
    for n in range(found.sizes["pair"]):
        here = found.isel(pair=n)
        layer = int(here["layer"])
        x = cache[Site("post", layer).hook_name][:, 1:-1].flatten(0, 1).numpy()
        promoted = (model.W_out[layer] @ W_U).topk(40).indices.numpy()
        values = torch.nn.functional.normalize(model.W_out[layer].detach(), dim=1)
        a, b = (int(str(here[name].values).split("N")[1]) for name in "AB")
        assert int(here["shared"]) == len({*promoted[a]} & {*promoted[b]})
        np.testing.assert_allclose(here["cosine_value"], values[a] @ values[b], atol=1e-5)
        follows = np.isin(after, promoted[a])
        np.testing.assert_allclose(here["rate"], follows.mean())
        np.testing.assert_allclose(
            here["correlation"], np.corrcoef(x[:, a], x[:, b])[0, 1], atol=1e-4
        )
        text = np.repeat(np.arange(16), 7)
        wanted = read_angle(x[:, a].astype(float), x[:, b].astype(float), follows, text)
        np.testing.assert_allclose((here["theta"], here["theta_se"]), wanted, rtol=1e-2, atol=0.2)
    assert (np.diff(found["shared"][:4]) <= 0).all()
    alike = torch.nn.functional.normalize(W_U.T[promoted].detach(), dim=-1).mean(1).norm(dim=-1)
    clean = alike >= alike.quantile(0.9)
    both = [(a, b) for a in range(64) for b in range(a) if clean[a] or clean[b]]
    common = sorted(len({*promoted[a]} & {*promoted[b]}) for a, b in both)
    assert found["shared"].values[4:].tolist() == common[:-5:-1]
    kept: Any = load(save(found, tmp_path / "pairs.nc"))
    assert kept.identical(found)
    again = overlaps(
        model,
        texts,
        layers=(2, 1),
        k=40,
        shared=5,
        top=4,
        controls=3,
        sweep=SweepOptions(batch_size=3, shard=5),
    )
    np.testing.assert_allclose(again["weight_z"], found["weight_z"], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("angle", [72.5, 0.0])
def test_an_angle_that_is_planted_in_a_model_is_found(angle):
    """Two layers whose MLPs read one token each; what comes next is drawn by two neurons of them.

    A writes the direction of ten tokens, B that of five others and half as much of A's.
    """
    net, generator = random_neox(layers=2), torch.Generator().manual_seed(1)
    theirs, others = torch.randn(2, 32, generator=generator) * 3
    for layer in net.gpt_neox.layers:
        layer.attention.dense.weight.data.zero_()
        layer.attention.dense.bias.data.zero_()
    readout = net.get_output_embeddings().weight.data
    readout[20:30] += theirs
    readout[40:45] += others
    scale = net.gpt_neox.final_layer_norm.weight.data
    value = net.gpt_neox.layers[1].mlp.dense_4h_to_h.weight.data
    both = torch.stack([theirs * scale, others * scale], 1)
    value -= both @ torch.linalg.lstsq(both - both.mean(0), value).solution  # of other neurons
    value[:, 7] = theirs * scale
    value[:, 11] = (others + 0.5 * theirs) * scale
    model = load_model(net, tokenizer=tiny_tokenizer())
    every = torch.arange(1, 300)
    cache = full_cache(model, torch.stack([every, every], 1))
    x = cache[Site("post", 1).hook_name][:, 1, [7, 11]].double().numpy()
    x = (x - x.mean(0)) / x.std(0)
    score = np.cos(np.radians(angle)) * x[:, 0] + np.sin(np.radians(angle)) * x[:, 1]
    draws = np.random.default_rng(2)
    row, rows = draws.integers(1, 300, size=80), []
    for _ in range(60):
        rows.append(row)
        those = draws.random(80) < 1 / (1 + np.exp(2.5 - 1.5 * score[row - 1]))
        row = np.where(those, draws.integers(20, 30, size=80), draws.integers(45, 300, size=80))
    texts = torch.from_numpy(np.stack(rows, 1))
    found = overlaps(model, texts, layers=1, k=10, shared=3, top=9, controls=8)
    planted = (found["A"] == "L1N7") & (found["B"] == "L1N11")
    found = found.isel(pair=int(planted.values.argmax()))
    assert planted.sum() == 1
    assert int(found["shared"]) == 5
    error = float(found["theta_se"])
    assert error < 5
    assert abs(float(found["theta"]) - angle) < min(10, 2 * error)
    assert (float(found["weight_rank"]) == 1 / 9) == (angle > 0)


def test_controls_are_active_as_often_and_few_neurons_are_kept():
    """However wide a layer is."""
    rate = np.random.default_rng(0).random(4000)
    pool = pool_of(rate, 16, np.random.default_rng(1))
    assert len({*pool}) == 128
    np.testing.assert_allclose(np.sort(rate[pool]), np.linspace(0, 1, 128), atol=0.03)
    pair = Pair(0, 5, int(pool[7]), np.arange(3), 3, 0.0, 0.0)
    others = controls_of(pair, rate, pool, 16)
    assert len(others) == 16
    assert pair.b not in others
    assert np.abs(rate[others] - rate[pair.b]).max() < 0.1
    assert len({*pool_of(rate[:20], 16, np.random.default_rng(1))}) == 20


def test_only_chosen_neurons_are_kept(kind):
    model, texts = kind(), torch.arange(1, 41).view(4, 10)
    chosen = ((2, (7, 3)), (0, (1,)))
    found = sweep(model, texts, Activities(chosen=chosen, first=1))["activities"]
    cache = full_cache(model, texts)
    for layer, units in chosen:
        x = cache[Site("post", layer).hook_name][:, 1:-1, list(units)].flatten(0, 1)
        np.testing.assert_allclose(found[f"layer{layer}"], x, atol=1e-5)
    assert found["next"].values.tolist() == texts[:, 2:].flatten().tolist()


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
