"""The feature index of heads and of latents."""

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from random_models import unchecked
from reference import assert_areas

import mlp_interp as mi
from mlp_interp import SweepOptions, features, plots
from mlp_interp.dictionaries import Dictionary, TopK
from mlp_interp.models import Weights

DOCUMENTS = [[0, *range(5 * n, 5 * n + 4 + n % 3)] for n in range(1, 13)]
LABELS = {"odd": np.arange(12) % 2 == 0, "late": np.arange(12) > 7}
SWEEP = SweepOptions(batch_size=2, shard=4)


def dictionary(model: Any, layer: int, n: int = 24, seed: int = 3) -> Dictionary:
    d, g = Weights.of(model).d_model, torch.Generator().manual_seed(seed)
    W_enc, W_dec = torch.randn(d, n, generator=g), torch.randn(n, d, generator=g)
    b_enc = torch.randn(n, generator=g)
    options: Any = {"layer": layer, "reads": "mlp_in", "normalize": None}
    return Dictionary(W_enc, b_enc, W_dec, torch.zeros(d), TopK(5), **options)


def check(found: xr.Dataset, values: np.ndarray) -> None:
    """AUROCs are those of the documents' own numbers ``[document, layer, unit]``."""
    for name, truth in LABELS.items():
        assert_areas(found["auroc"].sel(feature=name).values, values, truth)


def test_heads_are_told_by_the_length_of_what_they_write(some_model: Any) -> None:
    found = features.index(some_model, DOCUMENTS, LABELS, site="z", permutations=5, sweep=SWEEP)
    assert found["auroc"].dims == ("feature", "layer", "head")
    weights, rows = Weights.of(some_model), []
    for document in DOCUMENTS:
        with torch.no_grad():
            _, cache = some_model.run_with_cache(torch.tensor([document]))
        written = [
            torch.einsum("phd,hdm->phm", cache["z", n][0, 1:], weights.parameter(n, "W_O"))
            for n in range(weights.n_layers)
        ]
        rows.append(torch.stack(written).norm(dim=-1).mean(1).detach().numpy())
    check(found, np.stack(rows))
    best = features.best(found, "odd", k=2)
    layer, head = int(best["layer"][0]), int(best["head"][0])
    assert str(best["component"].values[0]) == f"L{layer}H{head}"
    for name in (f"L{layer}H{head}", (layer, head)):
        about = features.about(found, name)
        assert float(about["auroc"].sel(feature="odd")) == float(best["auroc"][0])
    figure: Any = plots.feature_index(found, top=1)
    assert f"L{layer}H{head}" in figure.data[0].x
    assert "heads" in figure.layout.title.text


@pytest.mark.parametrize("summary", ["mean", "max"])
def test_latents_are_told_by_their_activity(some_model: Any, summary: Any) -> None:
    several = [dictionary(some_model, n, seed=n) for n in (1, 0)]
    given: dict[str, Any] = {"summary": summary, "permutations": 5, "sweep": SWEEP}
    found = features.index(some_model, DOCUMENTS, LABELS, dictionaries=several, **given)
    assert found["auroc"].dims == ("feature", "layer", "latent")
    assert found["layer"].values.tolist() == [0, 1]
    rows = []
    for document in DOCUMENTS:
        run = mi.run(some_model, torch.tensor([document]))
        dense = [mi.latents.activations(run, one).dense()[0, 1:] for one in several[::-1]]
        both = torch.stack(dense)
        rows.append((both.mean(1) if summary == "mean" else both.amax(1)).detach().numpy())
    check(found, np.stack(rows))
    alone = features.index(some_model, DOCUMENTS, LABELS, dictionaries=several[0], **given)
    xr.testing.assert_allclose(alone["auroc"], found["auroc"].sel(layer=[1]))
    best = features.best(found, "late", k=1)
    about = features.about(found, str(best["component"].values[0]))
    assert str(best["component"].values[0]).startswith(f"L{int(best['layer'][0])}F")
    assert float(about["auroc"].sel(feature="late")) == float(best["auroc"][0])
    assert found.attrs["dictionary"] == [repr(one) for one in several[::-1]]
    assert features.about(found, (1, 3)).attrs["neuron"] == "L1F3"


def test_units_that_are_refused(kind: Any) -> None:
    model = kind()
    one = dictionary(model, 0)
    for options, match in (
        ({"dictionaries": one, "site": "z"}, "site='z' with dictionaries"),
        ({"dictionaries": [one, one]}, r"of layers \[0, 0\]"),
        ({"dictionaries": [one, dictionary(model, 1, n=9)]}, r"with \[24, 9\] latents"),
        ({"dictionaries": []}, r"dictionaries=\[\]"),
        ({"dictionaries": [dictionary(model, 99)]}, r"dictionaries\[0\]"),
    ):
        with pytest.raises(ValueError, match=match):
            unchecked(features.index)(model, DOCUMENTS, LABELS, **options)
    found = features.index(model, DOCUMENTS, LABELS, site="z", permutations=0)
    for name in ("L0N3", "L0F3", "0.attn"):
        with pytest.raises(ValueError, match=r"the index is of heads; wanted 'L3H5'"):
            features.about(found, name)
    with pytest.raises(ValueError, match="neuron=9"):
        features.about(found, (0, 9))
    with pytest.raises(ValueError, match=r"wanted the Dataset of features\.index"):
        features.best(found.isel(head=0), "odd")
