"""Toy models against exact solutions, and the shapes that they must find."""

import numpy as np
import pytest
import torch
from random_models import unchecked

from mlp_interp.superposition.toy import geometry, phase_diagram, thomson, toy_models
from mlp_interp.superposition.toy._train import dimensionality


@pytest.fixture(scope="module")
def pentagon():
    """Five features in two dimensions: dense, and sparse."""
    return toy_models(5, 2, [1.0, 0.05], steps=700, batch_size=256, restarts=2)


def test_five_sparse_features_in_two_dimensions_are_a_pentagon(pentagon):
    sparse = pentagon.isel(instance=1)
    found = geometry(sparse["W"].values)
    assert found["shape"].values.tolist() == ["pentagon"]
    np.testing.assert_allclose(sparse["dimensionality"], 0.4, atol=0.01)
    angles = np.sort(np.degrees(np.arctan2(*sparse["W"].values.T)))
    np.testing.assert_allclose(np.diff(angles), 72, atol=3)
    assert geometry(pentagon["W"][0].values)["shape"].values.tolist() != ["pentagon"]


def test_results_of_toy_models_belong_together(pentagon):
    W = pentagon["W"].values
    np.testing.assert_allclose(pentagon["gram"], W @ W.transpose(0, 2, 1), atol=1e-6)
    np.testing.assert_allclose(pentagon["norm"], np.linalg.norm(W, axis=-1), rtol=1e-6)
    np.testing.assert_allclose(pentagon["frobenius_per_d"], (W**2).sum((1, 2)) / 2, rtol=1e-6)
    assert (pentagon["dimensionality"].sum("feature") <= 2 + 1e-4).all()


def test_dimensionality_never_exceeds_the_dimensions():
    W = torch.randn(50, 12, 3, generator=torch.Generator().manual_seed(0))
    assert bool((dimensionality(W).sum(-1) <= 3 + 1e-4).all())
    np.testing.assert_allclose(dimensionality(torch.eye(4)), 1)
    assert dimensionality(torch.zeros(2, 2)).tolist() == [0, 0]


def test_enough_dimensions_lose_nothing():
    found = toy_models(3, 3, 0.5, activation="linear", steps=300, batch_size=64, rate=0.02)
    assert float(found["loss"][0]) < 1e-4
    np.testing.assert_allclose(found["gram"][0], np.eye(3), atol=0.03)


def test_the_linear_model_is_a_principal_component_analysis():
    """It keeps the two most important of four features, whose loss is the others' variance."""
    p, importance = 0.3, [4.0, 2.0, 0.4, 0.2]
    found = toy_models(4, 2, p, importance, activation="linear", steps=400, batch_size=256)
    np.testing.assert_allclose(found["gram"][0], np.diag([1, 1, 0, 0]), atol=0.05)
    wanted = (0.4 + 0.2) * (p / 3 - p**2 / 4) / 4
    np.testing.assert_allclose(found["loss"], wanted, rtol=0.1)


def test_training_is_the_same_again(pentagon):
    one, other = (toy_models(4, 2, 0.1, steps=5, seed=s)["W"].values for s in (3, 3))
    np.testing.assert_array_equal(one, other)
    assert not np.array_equal(one, toy_models(4, 2, 0.1, steps=5, seed=4)["W"].values)


def test_expected_losses_are_those_of_samples():
    p, weight = 0.4, 2.0
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(400_000, 2, generator=generator)
    x = x * (torch.rand(x.shape, generator=generator) < p)
    both = torch.stack([x[:, 0] - x[:, 1], x[:, 1] - x[:, 0]], 1).relu()
    answers = {
        "ignored": torch.stack([x[:, 0], x[:, 1] * 0 + p / 2], 1),
        "dedicated": torch.stack([x[:, 0] * 0 + p / 2, x[:, 1]], 1),
        "shared": both,
    }
    found = phase_diagram([p], [weight], steps=0)["expected"][0, 0]
    for name, answer in answers.items():
        loss = ((x - answer).square() * torch.tensor([1.0, weight])).sum(1).mean()
        np.testing.assert_allclose(found.sel(solution=name), loss, rtol=0.02)


def test_trained_models_find_the_phases():
    found = phase_diagram([0.1, 1.0], [0.3, 3.0], steps=300, restarts=8)
    np.testing.assert_array_equal(found["trained_solution"], found["best"])
    best = found["expected"].min("solution")
    assert (found["trained_loss"] <= 1.05 * best + 1e-4).all()


@pytest.mark.parametrize(
    ("n", "d", "energy", "name"),
    [
        (2, 1, 0.5, "antipodal pair"),
        (3, 2, 1.732051, "triangle"),
        (4, 3, 3.674235, "tetrahedron"),
        (5, 2, 6.881910, "pentagon"),
        (8, 3, 19.675288, "square antiprism"),
    ],
)
def test_charges_at_rest_have_the_published_energies_and_names(n, d, energy, name):
    found = thomson(n, d)
    np.testing.assert_allclose(float(found["energy"]), energy, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found["points"], axis=-1), 1)
    turned = np.linalg.qr(np.random.default_rng(0).standard_normal((d + 1, d + 1)))[0][:, :d]
    rows = np.concatenate([found["points"].values @ turned.T, 0.1 * turned[:, :1].T])
    shapes = geometry(rows)
    assert shapes["shape"].values.tolist() == [name]
    assert shapes["group_of"].values.tolist() == [0] * n + [-1]


def test_groups_are_apart():
    """An antipodal pair, a triangle and a feature alone, in four dimensions."""
    rows = np.zeros((6, 4))
    rows[:2, 0] = 1, -1
    rows[2:5, 1:3] = thomson(3, 2)["points"]
    rows[5, 3] = 0.8
    found = geometry(rows)
    assert found["shape"].values.tolist() == ["triangle", "antipodal pair", "dedicated"]
    assert geometry(np.zeros((3, 2)))["shape"].values.tolist() == []
    rows[2] = rows[3] + 0.3
    assert geometry(rows)["shape"].values.tolist()[0] == "none of them"


@pytest.mark.slow
def test_twenty_features_in_five_dimensions():
    """Sparser features, more of them stored."""
    shares = [1.0, 0.3, 0.1, 0.03, 0.01]
    importance = (0.9 ** np.arange(20)).tolist()
    found = toy_models(20, 5, shares, importance, steps=5000, batch_size=1024)
    stored = (found["norm"] > 0.5).sum("feature").values
    assert stored[0] == 5
    assert stored[-1] > 12


def test_what_toys_refuse():
    for call, text in [
        (lambda: toy_models(0, 2, 0.1), "n_features=0"),
        (lambda: toy_models(3, 0, 0.1), "d=0"),
        (lambda: toy_models(3, 2, 0.0), "probability=0.0"),
        (lambda: toy_models(3, 2, 0.1, [1.0]), "3 numbers"),
        (lambda: toy_models(3, 2, 0.1, steps=0), "steps=0"),
        (lambda: toy_models(3, 2, 0.1, rate=0.0), "rate=0.0"),
        (lambda: phase_diagram([0.0], [1.0]), "probabilities"),
        (lambda: phase_diagram([0.1], [0.0]), "importances"),
        (lambda: thomson(1, 3), "n=1"),
        (lambda: thomson(3, 1), "d=1"),
        (lambda: geometry(np.full((2, 2), np.nan)), "finite"),
    ]:
        with pytest.raises(ValueError, match=text):
            call()
    with pytest.raises(ValueError, match="activation='gelu'"):
        unchecked(toy_models)(3, 2, 0.1, activation="gelu")
