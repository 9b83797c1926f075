"""Sweeps: every reducer equals the same numbers computed with everything in memory."""

import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
import xarray as xr
from processes import begin, end
from random_models import BACKENDS, VOCABULARY, parallel, unchecked
from reference import counted as reference_counted
from reference import full_cache

import mlp_interp as mi
from mlp_interp.checkpoint import Checkpoint
from mlp_interp.corpus import Corpus, SweepOptions, open_corpus, sweep
from mlp_interp.corpus.reducers import (
    BandExamples,
    CoActivation,
    Covariance,
    Fraction,
    Histogram,
    Loss,
    Mean,
    Moments,
    Norms,
    Reducer,
    TopExamples,
    quantiles,
)
from mlp_interp.sites import Site

APART = [("parallel", BACKENDS[0], "folded"), ("gpt2", BACKENDS[-1], "raw")]
"""Two kinds of model that differ in everything."""

EVERY = [
    Fraction(),
    Moments(order=4),
    Histogram(),
    TopExamples(k=3, before=2, after=1),
    BandExamples(neuron="L1N3.pre", edges=(-9.0, 0.0, 9.0), k=2),
    CoActivation(neurons=("L0N1", "L2N5", "L0N7")),
    Covariance(),
    Mean(site="z", by_position=True),
    Norms(site="mlp_out"),
    Loss(),
]


@pytest.fixture
def many():
    """Eleven sequences of nine tokens, so that no batch or shard comes out even."""
    return torch.randint(VOCABULARY, (11, 9), generator=torch.Generator().manual_seed(2))


def naive(model, tokens, site, layers=(0, 1, 2)):
    """Activations of all layers, ``[layer, sequence, pos, ...]``, in double precision."""
    cache = full_cache(model, tokens)
    return torch.stack([cache[Site(site, layer).hook_name] for layer in layers]).double()


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for name in found:
        for variable in found[name].variables:
            mine, other = found[name][variable].values, wanted[name][variable].values
            np.testing.assert_array_equal(mine, other, err_msg=f"{name}.{variable}")


def test_fraction_is_the_share_above_zero(model, many):
    found = sweep(model, many, Fraction(), options=SweepOptions(batch_size=2, shard=4))[
        "fraction.pre"
    ]
    active = (naive(model, many, "pre") > 0).double()
    np.testing.assert_allclose(found["fraction"], active.mean((1, 2)), atol=1e-12)
    np.testing.assert_array_equal(found["count"], active.sum((1, 2)))
    error = active.mean(2).std(1) / len(many) ** 0.5
    np.testing.assert_allclose(found["fraction_se"], error, atol=1e-12)
    np.testing.assert_allclose(found["by_position"], active.mean((1, 3)), atol=1e-12)
    error = active.mean(3).std(1) / len(many) ** 0.5
    np.testing.assert_allclose(found["by_position_se"], error, atol=1e-12)


@pytest.mark.parametrize("site", ["pre", "post", "mlp_out", "attn_out", "z", "q", "k", "v"])
@pytest.mark.parametrize("kinds", APART, ids="-".join)
def test_moments_are_those_of_everything_at_once(kind, kinds, many, site):
    model = kind(*kinds)
    reducer = Moments(site=site, order=4)
    found = sweep(model, many, reducer, options=SweepOptions(batch_size=3, shard=5))[
        f"moments.{site}"
    ]
    x = naive(model, many, site).flatten(1, 2).numpy()
    np.testing.assert_allclose(found["mean"], x.mean(1), atol=1e-5)
    np.testing.assert_allclose(found["std"], x.std(1, ddof=1), rtol=1e-4)
    np.testing.assert_allclose(found["skewness"], scipy.stats.skew(x, 1), atol=1e-3)
    np.testing.assert_allclose(found["kurtosis"], scipy.stats.kurtosis(x, 1), atol=1e-3)
    np.testing.assert_allclose(found["least"], x.min(1), atol=1e-4)
    np.testing.assert_allclose(found["greatest"], x.max(1), atol=1e-4)


@pytest.mark.parametrize("site", ["resid_pre", "resid_post"])
def test_moments_of_the_stream(kind, many, site):
    model = kind("parallel", BACKENDS[0], "folded", torch.float64)
    found = sweep(
        model,
        many,
        Moments(site=site, order=4, layers=(2, 0), first=1),
        options=SweepOptions(batch_size=4),
    )
    found = found[f"moments.{site}"]
    x = naive(model, many, site, (2, 0))[:, :, 1:].flatten(1, 2).numpy()
    assert list(found["layer"].values) == [2, 0]
    np.testing.assert_allclose(found["mean"], x.mean(1), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found["std"], x.std(1, ddof=1), rtol=1e-10)
    np.testing.assert_allclose(found["skewness"], scipy.stats.skew(x, 1), rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(found["kurtosis"], scipy.stats.kurtosis(x, 1), rtol=1e-8, atol=1e-9)


def test_a_large_mean_beside_a_small_spread_costs_no_digits():
    """What sums of squares would lose: a mean of 1000 beside a spread of 0.01, in two halves."""
    x = 1000 + 0.01 * torch.randn(64, 5, 2, generator=torch.Generator().manual_seed(0)).double()
    reducer, shape = Moments(site="resid_pre", order=4), _shape(d_model=2, length=5)
    states = [reducer.empty(shape), reducer.empty(shape)]
    for state, half in zip(states, x.split(32), strict=True):
        for part in half.split(7):
            reducer.see(state, Site("resid_pre", 0), part, _batch(part))
    reducer.merge(states[0], states[1])
    found = reducer.result(states[0], shape)
    rows = x.flatten(0, 1).numpy()
    np.testing.assert_allclose(found["std"][0], rows.std(0, ddof=1), rtol=1e-9)
    np.testing.assert_allclose(found["kurtosis"][0], scipy.stats.kurtosis(rows), rtol=1e-6)


@pytest.mark.parametrize("site", ["post", "resid_post", "z"])
@pytest.mark.parametrize("kinds", APART, ids="-".join)
def test_covariance_is_that_of_everything_at_once(kind, kinds, many, site):
    reducer = Covariance(site=site, layers=(2, 0), first=1)
    options = SweepOptions(batch_size=3, shard=5)
    found = sweep(kind(*kinds), many, reducer, options=options)[f"covariance.{site}"]
    x = naive(kind(*kinds), many, site, (2, 0))[:, :, 1:].flatten(1, 2)
    assert found.attrs["entries"] == x.shape[1] == 88
    mean = x.mean(1, keepdim=True)
    around = [torch.einsum("ln...i,ln...j->l...ij", y, y) / 88 for y in (x - mean, x)]
    np.testing.assert_allclose(found["mean"], mean[:, 0], atol=1e-6)
    np.testing.assert_allclose(found["covariance"], around[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["second_moment"], around[1], rtol=1e-4, atol=1e-5)


def test_covariance_of_some_units(kind, many):
    model = kind()
    every = sweep(model, many, Covariance())["covariance.post"]
    some = sweep(model, many, Covariance(units=(5, -1), layers=(1,)))["covariance.post"]
    assert [*some["neuron"].values] == [*some["other"].values] == [5, 63]
    wanted = every["covariance"][1].values[np.ix_([5, 63], [5, 63])]
    np.testing.assert_allclose(some["covariance"][0], wanted, rtol=1e-5, atol=1e-9)


def test_a_covariance_beside_a_large_mean_costs_no_digits():
    """Single precision and a mean of 1000, in two halves of uneven parts."""
    x = 1000 + torch.randn(64, 5, 3, generator=torch.Generator().manual_seed(0))
    reducer, shape = Covariance(site="resid_pre"), _shape(d_model=3, length=5)
    states = [reducer.empty(shape), reducer.empty(shape)]
    for state, half in zip(states, x.split(32), strict=True):
        for part in half.split(7):
            reducer.see(state, Site("resid_pre", 0), part, _batch(part))
    reducer.merge(states[0], states[1])
    found = reducer.result(states[0], shape)
    rows = x.flatten(0, 1).double().numpy()
    np.testing.assert_allclose(found["covariance"][0], np.cov(rows.T, ddof=0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found["second_moment"][0], rows.T @ rows / len(rows), rtol=1e-10)


def test_histogram_counts_and_quantiles(model, many):
    reducer = Histogram(per_octave=16, octaves=(-8, 6))
    found = sweep(model, many, reducer, options=SweepOptions(batch_size=3, shard=4))[
        "histogram.pre"
    ]
    x = naive(model, many, "pre").flatten(1, 2).float().numpy()
    assert (found["count"].sum("bin") == x.shape[1]).all()
    edges = np.append(found["low"].values, np.inf)
    np.testing.assert_allclose(edges[1:-1], reducer.edges[1:-1])
    wanted = np.histogram(x[1, :, 5], edges)[0]
    # An activation that rounding puts on the other side of an edge may move by one bin.
    assert np.abs(np.cumsum(found["count"][1, 5] - wanted)).max() <= 1
    for q in (0.1, 0.5, 0.95):
        exact = np.quantile(x, q, axis=1, method="inverted_cdf")
        error = np.abs(quantiles(found, q)[..., 0] - exact)
        assert (error <= np.abs(exact) / 16 + 2**-7).all()


def test_every_number_has_its_bin():
    reducer = Histogram(octaves=(-1, 2), per_octave=2)
    x = torch.tensor([-9.0, -4.0, -3.0, -0.5, -0.49, 0.0, 0.49, 0.5, 0.75, 1.0, 3.9, 4.0, 1e9])
    shape = _shape(d_model=1, length=len(x))
    state = reducer.empty(shape)
    reducer.see(state, Site("pre", 0), x.view(1, -1, 1), _batch(x.view(1, -1, 1)))
    # Bins are closed at the end that is nearer to zero: 4 lies in the outermost, -4 as well.
    above = np.histogram(x.numpy(), reducer.edges)[0]
    below = np.histogram(-x.numpy(), reducer.edges)[0][::-1]
    half = len(above) // 2
    wanted = np.concatenate([below[:half], [3], above[half + 1 :]])
    assert state["count"][0, 0].tolist() == wanted.tolist()


def test_quantiles_at_the_ends_and_of_nothing():
    reducer, shape = Histogram(octaves=(-1, 2), per_octave=2), _shape(d_model=2, length=3)
    state = reducer.empty(shape)
    empty = quantiles(reducer.result(state, shape), [0.0, 1.0])
    assert np.isnan(empty.values).all()
    x = torch.tensor([[[1.0, -3.0], [1.2, 0.6], [1.4, 0.7]]])
    reducer.see(state, Site("pre", 0), x, _batch(x))
    found = quantiles(reducer.result(state, shape), [0.0, 1.0]).values[0]
    assert found[0].tolist() == [1.0, 1.5]
    assert found[1, 0] == -4.0
    assert found[1, 1] == 0.75
    with pytest.raises(ValueError, match=r"q=1\.5; wanted shares"):
        quantiles(reducer.result(state, shape), 1.5)


def test_top_examples_are_the_largest_of_each_sequence(model, many):
    found = sweep(
        model,
        many,
        TopExamples(k=4, before=2, after=3, first=1),
        options=SweepOptions(batch_size=3, shard=5),
    )
    found = found["topexamples.pre"]
    x = naive(model, many, "pre")
    best = x[:, :, 1:].amax(2)  # [layer, sequence, neuron]
    wanted = best.sort(1, descending=True).values[:, :4].permute(0, 2, 1)
    np.testing.assert_allclose(found["activation"], wanted, atol=1e-4)
    for layer, neuron, place in [(0, 0, 0), (2, 7, 3), (1, 63, 1)]:
        one = found.isel(layer=layer, neuron=neuron, example=place)
        sequence, pos = int(one["sequence"]), int(one["pos"])
        assert float(x[layer, sequence, pos, neuron]) == pytest.approx(
            float(one["activation"]), abs=1e-4
        )
        for offset in range(-2, 4):
            token = int(one["token"].sel(context=offset))
            around = float(one["around"].sel(context=offset))
            if 0 <= pos + offset < many.shape[1]:
                assert token == many[sequence, pos + offset]
                value = float(x[layer, sequence, pos + offset, neuron])
                assert around == pytest.approx(value, abs=1e-4)
            else:
                assert token == -1
                assert np.isnan(around)


def test_one_sequence_says_nothing_of_its_error(kind, many):
    found = sweep(kind(), many[:1], [Fraction(), Norms(site="mlp_out"), Loss()])
    assert np.isnan(found["fraction.pre"]["fraction_se"]).all()
    assert np.isnan(found["norms.mlp_out"]["norm_se"]).all()
    assert np.isnan(found["loss"]["loss_se"])
    assert np.isfinite(found["loss"]["loss"])


def test_fewer_sequences_than_examples_leave_gaps(kind, many):
    found = sweep(kind(), many[:2], TopExamples(k=4), options=SweepOptions(batch_size=1))[
        "topexamples.pre"
    ]
    assert (found["sequence"][..., :2] >= 0).all()
    assert (found["sequence"][..., 2:] == -1).all()
    assert np.isnan(found["activation"][..., 2:]).all()


def test_of_equal_activations_the_first_is_kept(kind, many):
    twice = many[:1].repeat(6, 1)  # embeddings are looked up: equal to the last bit everywhere
    for batch_size, shard in [(6, 6), (1, 6), (2, 2), (4, 3)]:
        found = sweep(
            kind(),
            twice,
            TopExamples(k=3, site="resid_pre", layers=(0,)),
            options=SweepOptions(batch_size=batch_size, shard=shard),
        )
        assert (found["topexamples.resid_pre"]["sequence"] == np.array([0, 1, 2])).all()


def test_band_examples_lie_in_their_bands_and_are_drawn_evenly(kind, many):
    model = kind()
    bands = BandExamples(neuron="L1N3.pre", edges=(-99.0, 0.0, 99.0), k=3, first=2)
    found = sweep(model, many, bands, options=SweepOptions(batch_size=2, shard=3))[
        "bandexamples.L1N3.pre"
    ]
    x = naive(model, many, "pre", (1,))[0, :, 2:, 3]
    assert found["count"].values.tolist() == [int((x < 0).sum()), int((x >= 0).sum())]
    assert (found["activation"][0] < 0).all()
    assert (found["activation"][1] >= 0).all()
    for band in range(2):
        for example in range(3):
            one = found.isel(band=band, example=example)
            value = x[int(one["sequence"]), int(one["pos"]) - 2]
            assert float(value) == pytest.approx(float(one["activation"]), abs=1e-4)
    # Over many seeds every place is drawn about as often as any other.
    places = []
    for seed in range(60):
        one = BandExamples(neuron="L1N3.pre", edges=(-99.0, 99.0), k=5, seed=seed)
        drawn = sweep(model, many, one)["bandexamples.L1N3.pre"]
        places += (drawn["sequence"] * 9 + drawn["pos"]).values.ravel().tolist()
    counts = np.bincount(places, minlength=99)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_coactivation_counts_pairs(model, many):
    labels = ("L0N1", "L2N5", "L0N7", "L1N0")
    found = sweep(
        model, many, CoActivation(neurons=labels), options=SweepOptions(batch_size=4, shard=5)
    )["coactivation"]
    x = naive(model, many, "pre").flatten(1, 2) > 0
    active = torch.stack([x[0, :, 1], x[2, :, 5], x[0, :, 7], x[1, :, 0]]).double().numpy()
    np.testing.assert_array_equal(found["both"], active @ active.T)
    with np.errstate(invalid="ignore"):  # a neuron that is always or never active
        np.testing.assert_allclose(found["correlation"], np.corrcoef(active), atol=1e-9)
        given = active @ active.T / active.sum(1)[None]
    np.testing.assert_allclose(found["given"], given)


def test_means_norms_and_loss(model, many):
    found = sweep(
        model,
        many,
        {
            "by_position": Mean(site="z", by_position=True),
            "mean": Mean(site="post", first=2),
            "norms": Norms(site="attn_out"),
            "heads": Norms(site="z"),
            "loss": Loss(),
        },
        options=SweepOptions(batch_size=3, shard=4),
    )
    z, post = naive(model, many, "z"), naive(model, many, "post")
    np.testing.assert_allclose(found["by_position"]["mean"], z.mean(1), atol=1e-5)
    np.testing.assert_allclose(found["mean"]["mean"], post[:, :, 2:].mean((1, 2)), atol=1e-5)
    norms = naive(model, many, "attn_out").norm(dim=-1)
    np.testing.assert_allclose(found["norms"]["norm"], norms.mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(found["norms"]["by_position"], norms.mean(1), rtol=1e-5)
    np.testing.assert_allclose(found["norms"]["greatest"], norms.amax((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(found["norms"]["norm_se"], norms.mean(2).std(1) / 11**0.5, rtol=1e-3)
    np.testing.assert_allclose(found["heads"]["norm"], z.norm(dim=-1).mean((1, 2)), rtol=1e-5)
    loss = model(many, return_type="loss", loss_per_token=True).detach().double()
    assert float(found["loss"]["loss"]) == pytest.approx(float(loss.mean()), rel=1e-5)
    assert float(found["loss"]["loss_se"]) == pytest.approx(
        float(loss.mean(1).std() / 11**0.5), rel=1e-3
    )
    np.testing.assert_allclose(found["loss"]["by_position"], loss.mean(0), rtol=1e-4)


@pytest.mark.parametrize("kinds", APART, ids="-".join)
def test_an_interrupted_sweep_goes_on_and_gives_the_same_bits(kind, kinds, many, tmp_path):
    model = kind(*kinds)
    wanted = sweep(model, many, EVERY, options=SweepOptions(batch_size=2, shard=3))
    for stop in range(4):
        with pytest.raises(KeyboardInterrupt):
            sweep(
                model,
                many,
                [*EVERY, _Stops(stop)],
                options=SweepOptions(batch_size=2, shard=3, checkpoint=tmp_path),
            )
    found = sweep(
        model,
        many,
        [*EVERY, _Stops(99)],
        options=SweepOptions(batch_size=2, shard=3, checkpoint=tmp_path),
    )
    seen = found.pop("stops")
    same(found, wanted)
    # Every shard was summed up once into what came out.
    assert int(seen["sequences"]) == len(many)


def test_a_finished_sweep_is_read_back(kind, many, tmp_path):
    model = kind()
    options = {"batch_size": 2, "shard": 3, "checkpoint": tmp_path}
    wanted = sweep(model, many, EVERY, options=SweepOptions(**options))
    runs = _Counts.runs
    sweep(model, many, _Counts(), options=SweepOptions(**options))
    assert _Counts.runs - runs == 7  # batches of 2 and 1 in each shard but the last
    sweep(model, many, _Counts(), options=SweepOptions(**options))
    assert _Counts.runs - runs == 7  # nothing was run again
    same(sweep(model, many, EVERY, options=SweepOptions(**options)), wanted)


def test_a_checkpoint_serves_only_the_same_sweep(kind, many, tmp_path):
    model = kind()
    first = sweep(model, many, Fraction(), options=SweepOptions(checkpoint=tmp_path))[
        "fraction.pre"
    ]
    other = sweep(model, many, Fraction(above=1.0), options=SweepOptions(checkpoint=tmp_path))[
        "fraction.pre"
    ]
    assert float(other["count"].sum()) < float(first["count"].sum())
    fewer = sweep(model, many[:3], Fraction(), options=SweepOptions(checkpoint=tmp_path))[
        "fraction.pre"
    ]
    assert fewer.attrs["sequences"] == 3


def test_a_damaged_checkpoint_is_named_and_done_again(kind, many, tmp_path):
    options = SweepOptions(checkpoint=tmp_path)
    wanted = sweep(kind(), many, Fraction(), options=options)["fraction.pre"]
    (file,) = tmp_path.rglob("merged.safetensors")
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.warns(UserWarning, match=r"merged.safetensors' is damaged: .* computed again"):
        again = sweep(kind(), many, Fraction(), options=options)["fraction.pre"]
    xr.testing.assert_identical(again, wanted)


@pytest.mark.parametrize("gone", [True, False], ids=["gone", "damaged"])
def test_a_shard_that_was_kept_and_is_not_any_more_is_done_again(
    kind, many, tmp_path, monkeypatch, gone
):
    """Another process of the same sweep may merge and delete it meanwhile."""
    options = SweepOptions(checkpoint=tmp_path, shard=4, batch_size=4)
    plain = SweepOptions(shard=4, batch_size=4)
    wanted = sweep(kind(), many, Fraction(), options=plain)["fraction.pre"]
    sweep(kind(), many, Fraction(), options=options)
    (file,) = tmp_path.rglob("merged.safetensors")
    early = file.with_name("shard-1.safetensors")
    file.rename(early)
    early.write_bytes(b"half")
    if gone:
        real = Checkpoint.names
        monkeypatch.setattr(Checkpoint, "names", lambda self: (real(self), early.unlink())[0])
        found = sweep(kind(), many, Fraction(), options=options)["fraction.pre"]
    else:
        with pytest.warns(UserWarning, match="shard-1.safetensors' is damaged"):
            found = sweep(kind(), many, Fraction(), options=options)["fraction.pre"]
    xr.testing.assert_identical(found, wanted)


def _importance(model, tokens, folder):
    mi.subupdate_importance(model, tokens, sweep=SweepOptions(checkpoint=folder, shard=1))


@pytest.mark.skipif(sys.platform == "win32", reason="has no fork")
def test_two_processes_may_share_a_checkpoint(kind, many, tmp_path):
    both = [begin(_importance, many, tmp_path, make=parallel) for _ in range(2)]
    assert [end(process) for process in both] == [0, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _importance(kind(), many, tmp_path)


def test_shards_and_batches_do_not_change_what_is_counted(kind, many):
    model = kind()
    reducers = [Fraction(), TopExamples(k=2), CoActivation(neurons=("L0N1", "L2N5"))]
    wanted = sweep(model, many, reducers, options=SweepOptions(batch_size=11, shard=11))
    for batch_size, shard in [(1, 1), (2, 7), (8, 3)]:
        found = sweep(
            model, many, reducers, options=SweepOptions(batch_size=batch_size, shard=shard)
        )
        np.testing.assert_array_equal(
            found["fraction.pre"]["count"], wanted["fraction.pre"]["count"]
        )
        examples, others = found["topexamples.pre"], wanted["topexamples.pre"]
        moved = examples["sequence"] != others["sequence"]  # only such as rounding tells apart
        apart = abs(examples["activation"] - others["activation"])
        assert float(apart.where(moved, 0.0).max()) < 1e-5
        assert float(moved.mean()) < 0.01
        np.testing.assert_array_equal(found["coactivation"]["both"], wanted["coactivation"]["both"])


def test_no_more_is_computed_than_is_looked_at(kind, many, monkeypatch):
    """Of a parallel model the last layer's attention is not run for its MLP's input."""
    model = kind("parallel")
    calls = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def counted(*args, **kwargs):
        calls.append(1)
        return attend(*args, **kwargs)

    # What is known of the model is remembered: its own check attends too.
    sweep(model, many, Fraction(), options=SweepOptions(batch_size=11))
    monkeypatch.setattr("mlp_interp.models.forward.F.scaled_dot_product_attention", counted)
    sweep(model, many, Fraction(), options=SweepOptions(batch_size=11))
    assert len(calls) == 2
    sweep(model, many, Fraction(layers=(0,)), options=SweepOptions(batch_size=11))
    assert len(calls) == 2
    sweep(model, many, Loss(), options=SweepOptions(batch_size=11))
    assert len(calls) == 5


def test_the_unembedding_is_left_alone_unless_wanted(kind, many, monkeypatch):
    def refuse(_model):
        raise RuntimeError("the unembedding was asked for")

    model = kind()
    monkeypatch.setattr("mlp_interp.corpus.shards.Unembed.of", refuse)
    sweep(model, many, [r for r in EVERY if not isinstance(r, Loss)])
    with pytest.raises(RuntimeError, match="asked for"):
        sweep(model, many, Loss())


def test_a_corpus_gives_its_provenance(kind, many):
    corpus = Corpus(many, attrs={"source": "random ids"})
    found = sweep(kind(), corpus, Fraction(first=1))["fraction.pre"]
    assert found.attrs["data"] == "random ids, 11 sequences of 9 tokens"
    assert found.attrs["engine"] == "lean"
    assert "Fraction(site='pre'" in found.attrs["reducer"]
    assert found["pos"].values.tolist() == list(range(1, 9))


def test_progress_shows_tokens(kind, many, capsys):
    sweep(kind(), many, Fraction(), options=SweepOptions(progress=True))
    assert "99.0/99.0" in capsys.readouterr().err


def test_errors_name_what_is_wrong(kind, many):
    model = kind()
    for reducers, text in [
        ([], "reducers is empty"),
        ([Fraction(), Fraction(above=1.0)], r"fraction\.pre more than once"),
        (Fraction(layers=(3,)), r"layers=\[3\]; wanted integers from -3 to 2, each once"),
        (Fraction(layers=(1, -2)), r"layers=\[1, -2\]; wanted .*, each once"),
        (Fraction(layers=()), r"layers=\[\]; wanted at least one"),
        (Fraction(first=9), "sequences of 9 tokens have no such position"),
        (BandExamples(neuron="L0N64", edges=(0.0, 1.0)), "L0N64"),
        (BandExamples(neuron="L0N1", edges=(0.0, 1.0), first=9), "sequences have 9 tokens"),
        (CoActivation(neurons=("L0N64",)), "neurons 0 to 63"),
        (CoActivation(neurons=("L0N1",), first=9), "sequences have 9 tokens"),
    ]:
        with pytest.raises(ValueError, match=text):
            sweep(model, many, reducers)
    with pytest.raises(ValueError, match="no next token"):
        sweep(model, many[:, :1], Loss())
    with pytest.raises(ValueError, match="batch_size=0"):
        SweepOptions(batch_size=0)
    with pytest.raises(ValueError, match="shard=0"):
        SweepOptions(shard=0)
    spark = SweepOptions()
    object.__setattr__(spark, "backend", "spark")
    with pytest.raises(ValueError, match="backend='spark'; wanted 'local' or 'ray'"):
        unchecked(SweepOptions.__post_init__)(spark)
    with pytest.raises(ValueError, match=r"workers=2.*wanted backend='ray'"):
        SweepOptions(workers=2)
    with pytest.raises(ValueError, match="tokens hold 300; wanted ids from 0 to 299"):
        sweep(model, torch.full((1, 4), 300), Fraction())


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Fraction(site="logits"), "site='logits'"),
        (lambda: Fraction(first=-1), "first=-1"),
        (lambda: Moments(order=5), "order=5"),
        (lambda: Histogram(per_octave=3), "power of 2"),
        (lambda: Histogram(octaves=(3, 3)), "octaves"),
        (lambda: TopExamples(k=0), "k=0"),
        (lambda: TopExamples(before=-1), "before=-1"),
        (lambda: TopExamples(site="z"), "single numbers"),
        (lambda: BandExamples(neuron="L1H2", edges=(0.0, 1.0)), "wanted a neuron"),
        (lambda: BandExamples(neuron="L1N2", edges=(1.0, 0.0)), "ascending"),
        (lambda: BandExamples(neuron="L1N2", edges=(0.0, 1.0), first=-1), "first=-1"),
        (lambda: CoActivation(neurons=()), "one or more"),
        (lambda: CoActivation(neurons=("L0H1",)), "neurons='L0H1'; wanted a neuron"),
        (lambda: CoActivation(neurons=("L0N1",), first=-1), "first=-1"),
    ],
)
def test_reducers_check_their_options(make, text):
    with pytest.raises(ValueError, match=text):
        make()


@pytest.mark.parametrize("reducer", [Fraction(), Loss()], ids=["fraction", "loss"])
def test_activations_that_are_not_finite_are_refused(many, reducer):
    from random_models import build

    model = build("parallel", BACKENDS[0], "folded", torch.float32)
    with torch.no_grad():
        model.W_E[int(many[4, 3])] = torch.nan
    first = int((many == many[4, 3]).any(1).nonzero()[0])
    with pytest.raises(ValueError, match=f"activations of sequence {first} are not finite"):
        sweep(model, many, reducer, options=SweepOptions(batch_size=2))


class _Counts(Fraction):
    """Counts the batches that were run in this process."""

    runs = 0

    def finish(self, state, batch):
        super().finish(state, batch)
        type(self).runs += 1


class _Stops(Reducer):
    """Interrupts the sweep when it comes to some shard (of three sequences)."""

    def __init__(self, shard):
        self.shard = shard

    def __repr__(self):
        return "Stops()"  # the same for all, so that they share a checkpoint

    name = "stops"

    def empty(self, shape):
        return {"sequences": torch.zeros((), dtype=torch.int64)}

    def finish(self, state, batch):
        if batch.first // 3 == self.shard:
            raise KeyboardInterrupt
        state["sequences"] += len(batch.tokens)

    def result(self, state, shape):
        import xarray as xr

        return xr.Dataset({"sequences": ((), int(state["sequences"]))})


def _shape(d_model, length):
    from mlp_interp.corpus.reducers import Shape

    return Shape(1, 1, 1, d_model, d_model, d_model, 9, length)


def _batch(x):
    from mlp_interp.corpus.reducers import Batch
    from mlp_interp.models import HookForward, Weights

    return Batch(torch.zeros(x.shape[:2], dtype=torch.long), 0, HookForward(Weights(None)), None)


@dataclass(frozen=True, kw_only=True)
class _Resident(Fraction):
    """Notes how much memory the process holds while a sweep goes on."""

    def finish(self, state, batch):
        super().finish(state, batch)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        _RESIDENT.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)


_RESIDENT: list[float] = []


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory from /proc")
def test_a_million_tokens_in_flat_memory(kind, tmp_path):
    generator = torch.Generator().manual_seed(0)
    Corpus(torch.randint(VOCABULARY, (16_000, 64), generator=generator)).save(tmp_path / "ids.npy")
    corpus = open_corpus(tmp_path / "ids.npy")
    reducers = [_Resident(), Moments(site="mlp_out"), Histogram(layers=(1,)), TopExamples(k=3)]
    _RESIDENT.clear()
    found = sweep(
        kind(),
        corpus,
        reducers,
        options=SweepOptions(batch_size=128, shard=1024, checkpoint=tmp_path / "kept"),
    )
    assert int(found["_resident.pre"].attrs["sequences"]) == 16_000
    settled = _RESIDENT[len(_RESIDENT) // 10 :]
    # What may grow is the corpus' own map: 4 MB of ids.
    assert max(settled) - settled[0] < 16


@pytest.mark.parametrize("kinds", APART, ids="-".join)
def test_hooks_on_the_model_are_in_force(kind, kinds, many):
    """A model that somebody holds edits on is swept as it is then, and left alone."""
    model = kind(*kinds)
    name = Site("mlp_out", 0).hook_name

    def silence(x, hook=None):
        return 0 * x

    plain = sweep(model, many, Fraction())["fraction.pre"]
    with model.hooks(fwd_hooks=[(name, silence)]):
        found = sweep(model, many, [Fraction(), Loss()], options=SweepOptions(batch_size=4))
        early = sweep(model, many, Fraction(layers=(1,)), options=SweepOptions(batch_size=4))[
            "fraction.pre"
        ]
        cache = full_cache(model, many)
    assert found["fraction.pre"].attrs["engine"] == "hooks"
    pre = torch.stack([cache[Site("pre", layer).hook_name] for layer in range(3)])
    wanted = (pre > 0).sum((1, 2))
    np.testing.assert_array_equal(found["fraction.pre"]["count"], wanted)
    np.testing.assert_array_equal(early["count"], wanted[1:2])
    assert not (plain["count"][1:] == wanted[1:].numpy()).all()


def test_shards_out_of_turn_wait_on_disk_too(kind, many, tmp_path, monkeypatch):
    """Shards that workers finish early are merged in their turn, also by the next run."""
    from mlp_interp.corpus.shards import reduce_shard

    model, options = kind(), {"batch_size": 2, "shard": 3}
    wanted = sweep(model, many, EVERY, options=SweepOptions(**options))
    asked = []

    def workers(order, fail):
        def run(forward, plan, tokens, todo, _options):
            asked.append(list(todo))
            for n in order:
                yield n, reduce_shard(forward, plan, tokens[plan.rows(n)], n)
            if fail:
                raise RuntimeError("the cluster is gone")

        return run

    def ray(order, *, fail):
        monkeypatch.setattr("mlp_interp.corpus._sweep.reduce_on_ray", workers(order, fail))
        return sweep(
            model, many, EVERY, options=SweepOptions(backend="ray", checkpoint=tmp_path, **options)
        )

    with pytest.raises(RuntimeError, match="gone"):
        ray([2, 3], fail=True)
    with pytest.raises(RuntimeError, match="gone"):
        ray([0], fail=True)
    same(ray([1], fail=False), wanted)
    assert asked == [[0, 1, 2, 3], [0, 1], [1]]
    assert sorted(path.name for path in tmp_path.rglob("*.safetensors")) == ["merged.safetensors"]


def test_what_hooks_do_has_no_name_to_be_kept_under(kind, many, tmp_path):
    model = kind()
    with (
        model.hooks(fwd_hooks=[(Site("mlp_out", 0).hook_name, lambda x, hook=None: 0 * x)]),
        pytest.raises(ValueError, match="has hooks on it"),
    ):
        sweep(model, many, Fraction(), options=SweepOptions(checkpoint=tmp_path))


def test_reducers_of_one_repr_are_told_apart_by_class(kind, many, tmp_path):
    @dataclass(frozen=True, kw_only=True, repr=False)
    class Twice(Fraction):
        def see(self, state, site, x, batch):
            super().see(state, site, x, batch)
            super().see(state, site, x, batch)

        def __repr__(self):
            return repr(Fraction())

    once = sweep(kind(), many, {"a": Fraction()}, options=SweepOptions(checkpoint=tmp_path))["a"]
    twice = sweep(kind(), many, {"a": Twice()}, options=SweepOptions(checkpoint=tmp_path))["a"]
    np.testing.assert_array_equal(twice["count"], 2 * once["count"])


def test_half_precision_is_summed_up_in_single():
    """600 activations of 200 exceed what float16 holds; their sum must not."""
    x, shape = torch.full((2, 600, 3), 200.0, dtype=torch.float16), _shape(d_model=3, length=600)
    for reducer in (Mean(site="resid_pre"), Moments(site="resid_pre", order=4)):
        state = reducer.empty(shape)
        batch = _batch(x)
        reducer.see(state, Site("resid_pre", 0), x, batch)
        reducer.finish(state, batch)
        np.testing.assert_allclose(reducer.result(state, shape)["mean"], 200.0, rtol=1e-6)
    above, state = Fraction(site="resid_pre", above=0.1), None
    state = above.empty(shape)
    # 0.1 in bfloat16 is larger than 0.1.
    above.see(state, Site("resid_pre", 0), torch.full((1, 600, 3), 0.1).bfloat16(), _batch(x[:1]))
    assert (state["count"] == 600).all()


def test_keys_and_values_may_have_fewer_heads():
    from mlp_interp.corpus.reducers import Shape

    shape = Shape(1, 4, 2, 32, 8, 64, 9, 5)
    assert [shape.units(site)["head"] for site in "qkvz"] == [4, 2, 2, 4]


def test_all_tokens_and_the_folder_are_looked_at_before_the_first_is_run(kind, many, tmp_path):
    bad = many.clone()
    bad[-1, -1] = VOCABULARY
    with pytest.raises(ValueError, match="tokens hold 300"):
        sweep(kind(), bad, _Stops(0), options=SweepOptions(batch_size=1, shard=1))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"checkpoint='.*file' is a file; wanted a directory"):
        sweep(kind(), many, _Stops(0), options=SweepOptions(checkpoint=tmp_path / "file"))


def test_lists_serve_where_tuples_are_meant(kind, many):
    pair = CoActivation(neurons=["L0N1", "L2N5"])
    assert sweep(kind(), many, pair)["coactivation"].sizes["neuron"] == 2
    bands = BandExamples(neuron="L0N1", edges=[-9.0, 0.0, 9.0])
    assert sweep(kind(), many, bands)["bandexamples.L0N1"].sizes["band"] == 2
    with pytest.raises(ValueError, match="has one of layer 0 twice"):
        CoActivation(neurons=("L0N1", "L0N1.pre"))


def test_bos_between_texts_does_not_count(kind, backend, tokens):
    """Every reducer of activations against the plain numbers of the tokens that count."""
    model = kind("parallel", backend)
    tokens[1, 4] = tokens[3, 2] = 0
    counted = reference_counted(tokens)
    cache = full_cache(model, tokens)
    x = {s: cache[f"blocks.1.mlp.hook_{s}"].detach().double().numpy() for s in ("pre", "post")}
    pre, post = (
        np.concatenate([each[n, places] for n, places in enumerate(counted)])
        for each in (x["pre"], x["post"])
    )
    options = {"first": 1, "layers": (1,)}
    reducers = {
        "fraction": Fraction(**options),
        "moments": Moments(**options),
        "histogram": Histogram(**options),
        "mean": Mean(site="post", **options),
        "norms": Norms(site="mlp_out", **options),
        "top": TopExamples(k=40, **options),
        "band": BandExamples(neuron="L1N3.pre", edges=(-100.0, 100.0), k=40, first=1),
        "together": CoActivation(neurons=["L1N3", "L1N5"], first=1),
    }
    found = sweep(model, tokens, reducers, options=SweepOptions(batch_size=3, shard=3))
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(found["fraction"]["fraction"][0], (pre > 0).mean(0))
    at_four = np.delete(x["pre"][:, 4], 1, axis=0) > 0
    by_position = found["fraction"]["by_position"].sel(pos=4)[0]
    np.testing.assert_allclose(by_position, at_four.mean(), **close)
    np.testing.assert_allclose(found["moments"]["mean"][0], pre.mean(0), **close)
    np.testing.assert_allclose(found["moments"]["std"][0], pre.std(0, ddof=1), **close)
    assert (found["histogram"]["count"].sum("bin") == len(pre)).all()
    np.testing.assert_allclose(found["mean"]["mean"][0], post.mean(0), **close)
    out = cache["blocks.1.hook_mlp_out"].norm(dim=-1)
    each = [float(out[n, places].mean()) for n, places in enumerate(counted)]
    np.testing.assert_allclose(found["norms"]["norm"][0], np.mean(each), **close)
    best = [x["pre"][n, places].max(0) for n, places in enumerate(counted)]
    kept = found["top"]["activation"][0][:, :4]
    np.testing.assert_allclose(kept, np.sort(best, 0)[::-1].T, **close)
    places = {(n, pos) for n, chosen in enumerate(counted) for pos in chosen}
    band = found["band"].isel(band=0)
    drawn = {*zip(band["sequence"].values.tolist(), band["pos"].values.tolist(), strict=True)}
    assert drawn - {(-1, -1)} == places
    both = ((pre[:, 3] > 0) & (pre[:, 5] > 0)).sum()
    assert float(found["together"]["both"][0, 1]) == both
