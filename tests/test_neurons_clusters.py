"""Groups of neurons, on planted ones, on noise, and against pairs counted one by one."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from random_models import BACKENDS, VOCABULARY, build, unchecked

from mlp_interp import load, save
from mlp_interp.models import Weights
from mlp_interp.models.vectors import Vectors, unit
from mlp_interp.models.vocabulary import TokenDirections
from mlp_interp.neurons import clusters
from mlp_interp.neurons.weights.grouping import _grouped, _noise
from mlp_interp.neurons.weights.kmeans import rand_index, spherical


def test_planted_groups_are_found(backend: str) -> None:
    model = build("parallel", backend, "folded")
    weights, generator = Weights.of(model), torch.Generator().manual_seed(0)
    tokens = torch.tensor([30, 31, 32, 33, 34])
    group = torch.arange(63) % 7 % 5  # of unequal sizes: groups 0 and 1 are twice as large
    directions = unit(TokenDirections.unembedding(weights).columns(tokens))
    near = directions[group] + 0.01 * torch.randn(63, 32, generator=generator)
    value = model.blocks[1].mlp.W_out.data
    value[:63] = near * torch.rand(63, 1, generator=generator)  # lengths do not matter
    value[63] = 0
    found = clusters(model, k=5, layers=1, tokens=3).isel(layer=0)
    assert found["cluster"][63] == -1
    assert found["cosine"].isnull().sum() == 1
    labels = torch.from_numpy(found["cluster"][:63].values)
    assert rand_index(labels, group) == 1
    assert found["size"].values.tolist() == group.bincount().sort(descending=True).values.tolist()
    of_group = {int(label): int(tokens[g]) for label, g in zip(labels, group, strict=True)}
    assert found["token"][:, 0].values.tolist() == [of_group[i] for i in range(5)]
    assert float(found["tightness"]) > 0.99
    assert float(found["tightness"]) > float(found["tightness_null"]) + 0.1
    assert float(found["stability"]) == 1
    assert float(found["stability_null"]) < 0.9


def test_random_vectors_are_in_no_groups(some_model: Any) -> None:
    found = clusters(some_model, k=6, controls=8, tokens=2)
    difference = (found["tightness"] - found["tightness_null"]) / found["tightness_null_sd"]
    assert float(abs(difference).max()) < 4
    vectors = Vectors.of(Weights.of(some_model), 2)
    units = unit(vectors.value_folded)
    labels = torch.from_numpy(found["cluster"].sel(layer=2).values)
    centres = torch.stack([unit(units[labels == i].sum(0)) for i in range(6)])
    cosine = units @ centres.T
    np.testing.assert_array_equal(cosine.argmax(1), labels)
    own = cosine.gather(1, labels[:, None])[:, 0]
    here = found.sel(layer=2)
    np.testing.assert_allclose(here["cosine"], own, atol=1e-5)
    means = [float(own[labels == i].mean()) for i in range(6)]
    np.testing.assert_allclose(here["group_cosine"], means, atol=1e-5)
    assert float(here["tightness"]) == pytest.approx(float(own.mean()), abs=1e-5)
    logits = centres @ TokenDirections.unembedding(Weights.of(some_model)).columns(
        torch.arange(VOCABULARY)
    ).mT.to(centres)
    np.testing.assert_array_equal(here["token"], logits.topk(2).indices)


def test_receptors_are_read_by_directions_of_embeddings(kind: Any) -> None:
    model = kind()
    found = clusters(model, by="receptor", k=4, layers=0, tokens=2).isel(layer=0)
    weights = Weights.of(model)
    units = unit(Vectors.of(weights, 0).receptor.folded)
    labels = torch.from_numpy(found["cluster"].values)
    centres = torch.stack([units[labels == i].sum(0) for i in range(4)])
    embeddings = unit(weights.norm.keep(weights.W_E.detach()))
    np.testing.assert_array_equal(found["token"], (centres @ embeddings.T).topk(2).indices)


def test_processing_changes_no_group(kind: Any) -> None:
    first, second = (
        clusters(kind("parallel", backend, processing), k=5)
        for backend, processing in ((BACKENDS[0], "folded"), (BACKENDS[-1], "raw"))
    )
    np.testing.assert_array_equal(first["cluster"], second["cluster"])
    np.testing.assert_allclose(first["tightness_null"], second["tightness_null"], atol=1e-5)


def test_noise_has_the_mean_and_covariance_of_its_cloud() -> None:
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([3.0, 1, 0.3, 0])
    cloud = unit(torch.randn(5000, 4, generator=generator) * scales + torch.tensor([1.0, 0, 0, 0]))
    noise = _noise(cloud, generator)
    np.testing.assert_allclose(noise.norm(dim=1), 1, atol=1e-6)
    np.testing.assert_allclose(noise.mean(0), cloud.mean(0), atol=1e-3)
    np.testing.assert_allclose(noise.T.cov(), cloud.T.cov(), atol=1e-3)
    assert float((noise - cloud).norm(dim=1).median()) > 0.3
    assert _noise(cloud[:3], generator).isfinite().all()  # fewer than dimensions


@pytest.mark.parametrize("power", [0, 1, 2])
def test_noise_of_any_spectrum_is_in_no_groups(power: int) -> None:
    generator = torch.Generator().manual_seed(power)
    scales = torch.arange(1, 25).pow(-power / 2)
    cloud = unit(torch.randn(400, 24, generator=generator) * scales)
    own, *chance = _grouped(cloud, 8, 12, (0, 0)).tight
    assert abs(own - np.mean(chance)) < 4 * np.std(chance, ddof=1)


def test_other_layers_and_controls_change_nothing(kind: Any) -> None:
    model = kind()
    whole = clusters(model, k=5, controls=2).sel(layer=[1])
    alone = clusters(model, k=5, controls=2, layers=1)
    xr.testing.assert_identical(alone.drop_attrs(), whole.drop_attrs())
    more = clusters(model, k=5, controls=3, layers=1)
    assert more["cluster"].identical(alone["cluster"])


def test_the_rand_index_counts_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randint(4, (2, 12), generator=generator)
    pairs = [
        (bool(first[i] == first[j]), bool(second[i] == second[j]))
        for i, j in combinations(range(12), 2)
    ]
    both, one, other = (sum(x) for x in zip(*((a and b, a, b) for a, b in pairs), strict=True))
    chance = one * other / len(pairs)
    expected = (both - chance) / ((one + other) / 2 - chance)
    assert rand_index(first, second) == pytest.approx(expected)
    assert rand_index(first, first * 7) == 1
    assert rand_index(torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)) == 1
    many = [rand_index(*torch.randint(5, (2, 60), generator=generator)) for _ in range(200)]
    assert abs(float(np.mean(many))) < 0.01


def test_as_many_groups_as_vectors_are_the_vectors() -> None:
    generator = torch.Generator().manual_seed(0)
    units = unit(torch.randn(9, 3, generator=generator))
    labels, centres = spherical(units, 9, generator)
    assert sorted(labels.tolist()) == [*range(9)]
    torch.testing.assert_close(centres[labels], units)
    equal, _ = spherical(units[:1].expand(5, 3), 3, generator)
    assert len(equal.unique()) == 1


def test_groups_on_nano_and_in_a_file(nano: Any, tmp_path: Any) -> None:
    found = clusters(nano, layers=1, tokens=2)
    again = clusters(nano, layers=1, tokens=2)
    assert found.identical(again)
    kept: Any = load(save(found, tmp_path / "found.nc"))
    assert kept.identical(found)
    above = float((found["tightness"] - found["tightness_null"])[0])
    assert 0 < above < 0.1


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"by": "both"}, "by='both'; wanted 'value' or 'receptor'"),
        ({"k": 65}, "k=65; wanted an integer from 1 to 64"),
        ({"k": 0}, "k=0"),
        ({"layers": 3}, "layers="),
        ({"tokens": 301}, "tokens=301"),
        ({"controls": 1}, "controls=1; wanted at least 2"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_what_is_refused(kind: Any, options: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        unchecked(clusters)(kind(), **({"k": 4} | options))


def test_more_groups_than_vectors_that_are_not_zero(backend: str) -> None:
    model = build("parallel", backend, "folded")
    model.blocks[1].mlp.W_out.data[3:] = 0
    with pytest.raises(ValueError, match="k=4; wanted at most 3"):
        clusters(model, k=4, layers=1)
