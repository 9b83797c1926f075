"""Activity of neurons and shares in updates, against everything held in memory, in float64."""

from itertools import pairwise

import numpy as np
import pytest
import scipy.stats
import torch
from random_models import BACKENDS, unchecked

import mlp_interp as mi
from mlp_interp.corpus import SweepOptions, sweep
from mlp_interp.corpus.reducers import quantiles
from mlp_interp.neurons import activity, neuron_weights, outliers, update_shares
from mlp_interp.neurons.sweeps.shares import UpdateShares
from mlp_interp.neurons.sweeps.subupdates import SubUpdates

LAYERS = 3


@pytest.fixture
def many():
    """Seven sequences, so that neither batches nor shards come out even."""
    return torch.randint(300, (7, 9), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def everything(model, tokens, site):
    """All activations at a site, float64 ``[layer, sequence, pos, neuron]``."""
    _, cache = model.run_with_cache(tokens)
    names = [mi.Site(site, layer).hook_name for layer in range(LAYERS)]
    return np.stack([cache[name].double().cpu().numpy() for name in names])


def error_of(means):
    """Standard error of the mean over the last axis."""
    return means.std(-1, ddof=1) / np.sqrt(means.shape[-1])


@pytest.mark.parametrize(("first", "above"), [(1, 0.0), (0, 0.25)])
def test_equals_what_is_computed_in_memory(model, many, first, above):
    found = activity(
        model, many, first=first, above=above, sweep=SweepOptions(batch_size=3, shard=4)
    )
    pre = everything(model, many, "pre")[:, :, first:]
    post = everything(model, many, "post")[:, :, first:]
    active = pre > above
    by_sequence = active.mean(2).swapaxes(1, 2)  # [layer, neuron, sequence]
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(found.fraction, active.mean((1, 2)), atol=1e-12)
    np.testing.assert_allclose(found.fraction_se, error_of(by_sequence), atol=1e-12)
    np.testing.assert_allclose(found.by_position, active.mean((1, 3)), atol=1e-12)
    by_position = active.mean(3).swapaxes(1, 2)
    np.testing.assert_allclose(found.by_position_se, error_of(by_position), atol=1e-12)
    assert found.pos.values.tolist() == list(range(first, 9))
    flat = pre.reshape(LAYERS, -1, pre.shape[-1])
    np.testing.assert_allclose(found["mean"], flat.mean(1), **close)
    np.testing.assert_allclose(found["std"], flat.std(1, ddof=1), **close)
    np.testing.assert_allclose(found.skewness, scipy.stats.skew(flat, 1), atol=1e-3)
    np.testing.assert_allclose(found.kurtosis, scipy.stats.kurtosis(flat, 1), atol=1e-3)
    np.testing.assert_allclose(found.least, flat.min(1), **close)
    np.testing.assert_allclose(found.greatest, flat.max(1), **close)
    np.testing.assert_allclose(found.mean_post, post.mean((1, 2)), **close)
    assert found.attrs["first"] == first
    assert found.attrs["above"] == above
    assert found.attrs["entries"] == 7 * (9 - first)


def test_quantiles_and_histogram_are_those_of_all_entries(kind, backend, many):
    model = kind("sequential", backend, "raw")
    found = activity(model, many)
    flat = np.sort(everything(model, many, "pre")[:, :, 1:].reshape(LAYERS, 56, -1), axis=1)
    assert (found["count"].sum("bin") == 56).all()
    # Between the entries around the place that is asked for, give or take a bin.
    for q in found["quantile"].values:
        low = flat[:, int(np.floor(max(q * 56 - 1, 0)))]
        high = flat[:, min(int(np.ceil(q * 56)), 55)]
        got = found.quantile_pre.sel(quantile=q).values
        slack = np.maximum(np.abs(got) / 8, 2.0**-5) + 1e-5
        assert (got >= low - slack).all()
        assert (got <= high + slack).all()
    np.testing.assert_array_equal(quantiles(found, 0.5)[..., 0], found.quantile_pre[..., 2])
    assert "count" not in activity(model, many, histogram=False)
    assert "quantile_pre" in activity(model, many, histogram=False)


@pytest.mark.parametrize("processing", ["folded", "raw"])
def test_beside_it_stands_what_the_weights_say(kind, backend, processing, many):
    model = kind("gpt2", backend, processing)
    found, weights = activity(model, many), neuron_weights(model, tokens=False)
    for name in ("receptor_norm", "receptor_norm_folded", "value_norm", "activation_volume"):
        np.testing.assert_array_equal(found[name], weights[name])
    for layer in range(LAYERS):
        for name in found.measure.values:
            row = found.isel(layer=layer)
            rho = scipy.stats.spearmanr(row.fraction, row[name]).statistic
            np.testing.assert_allclose(row.rank_correlation.sel(measure=name), rho, atol=1e-9)


def test_the_volume_is_of_the_threshold(kind):
    """Directions drawn at random through the real MLP input fire as often as predicted."""
    model = kind("parallel", BACKENDS[0], "raw")
    tokens = torch.arange(18).reshape(2, 9)
    found = activity(model, tokens, above=0.7)
    block = model.blocks[1]
    streams = torch.randn(40_000, 32, generator=torch.Generator().manual_seed(0)) * 100
    with torch.no_grad():
        normal = torch.nn.functional.layer_norm(streams, (32,))
        pre = (normal * block.ln2.w + block.ln2.b) @ block.mlp.W_in + block.mlp.b_in
    seen = (pre > 0.7).double().mean(0).numpy()
    np.testing.assert_allclose(found.activation_volume.sel(layer=1), seen, atol=0.015)


def test_a_constant_has_no_rank_correlation(kind, many):
    found = activity(kind(), many, above=1e6)
    assert found.rank_correlation.isnull().all()
    assert found.dead.all()
    assert not found.always.any()
    assert not found.outlier.any()
    assert (found.z == 0).all()
    assert activity(kind(), many, above=-1e6).always.all()


def test_outliers_by_hand(kind, many):
    found = activity(kind(), many)
    n = found.attrs["entries"]
    for layer in range(LAYERS):
        row = found.isel(layer=layer)
        count = np.round(row.fraction.values * n)
        odds = np.array([np.log((c + 0.5) / (n - c + 0.5)) for c in count])
        distance = odds - np.median(odds)
        z = distance / (1.4826 * np.median(np.abs(distance)))
        np.testing.assert_allclose(row.z, z, atol=1e-9)
        np.testing.assert_array_equal(row.outlier, np.abs(z) > 3.5)
    np.testing.assert_array_equal(found.dead, found.fraction == 0)
    np.testing.assert_array_equal(found.always, found.fraction == 1)
    flat = [
        (abs(float(found.z[layer, neuron])), f"L{layer}N{neuron}")
        for layer in range(LAYERS)
        for neuron in range(found.sizes["neuron"])
    ]
    for side, sign in (("both", None), ("high", 1), ("low", -1)):
        extreme = outliers(found, k=7, side=side)
        score = extreme.z.values if sign else np.abs(extreme.z.values)
        assert (np.diff(score * (sign or 1)) <= 0).all()
        assert extreme.kind.values.tolist() == ["neuron"] * 7
        for label, z, fraction in zip(
            extreme.component.values, extreme.z, extreme.fraction, strict=True
        ):
            site = mi.Site.parse(str(label))
            there = found.isel(layer=site.layer, neuron=site.neuron)
            assert float(there.z) == float(z)
            assert float(there.fraction) == float(fraction)
    assert {x for x, _ in sorted(flat)[-7:]} == {*np.abs(outliers(found, k=7).z.values).tolist()}
    assert outliers(found.sel(layer=[2]), k=1).component.item().startswith("L2N")


def test_where_most_fire_alike_the_mean_distance_is_the_spread(kind, many):
    """More than half never fire: the median of the distances is zero."""
    found = activity(kind(), many, above=3.0)
    assert float(found.fraction.median()) == 0
    row = found.isel(layer=int((found.fraction > 0).sum("neuron").argmax("layer")))
    count = np.round(row.fraction.values * 56)
    odds = np.log((count + 0.5) / (56 - count + 0.5))
    distance = odds - np.median(odds)
    np.testing.assert_allclose(row.z, distance / (1.2533 * np.abs(distance).mean()), atol=1e-9)


def test_one_shard_or_many_a_checkpoint_or_none(kind, many, tmp_path):
    model = kind()
    whole = activity(model, many, sweep=SweepOptions(batch_size=3, shard=100))
    again = activity(model, many, sweep=SweepOptions(batch_size=3, shard=3, checkpoint=tmp_path))
    for name in ("fraction", "fraction_se", "by_position", "by_position_se", "count", "z"):
        np.testing.assert_array_equal(whole[name], again[name])
    np.testing.assert_allclose(whole["kurtosis"], again["kurtosis"], rtol=1e-9)
    assert activity(
        model, many, sweep=SweepOptions(batch_size=3, shard=3, checkpoint=tmp_path)
    ).identical(again)


def test_activity_is_saved_and_loaded(kind, many, tmp_path):
    found = activity(kind(), many)
    assert mi.load(mi.save(found, tmp_path / "activity.nc")).identical(found)
    shares = update_shares(kind(), many)
    assert mi.load(mi.save(shares, tmp_path / "shares.nc")).identical(shares)
    extreme = outliers(found, k=3)
    assert mi.load(mi.save(extreme, tmp_path / "outliers.nc")).identical(extreme)


def bias_of(model, layer):
    """What an MLP writes whatever its neurons do; zeros where the model has no such weights."""
    bias = model.blocks[layer].mlp.b_out
    return torch.zeros(32) if bias is None else bias.detach()


def slow_shares(model, tokens, order, points, first=1, sample=1):
    """Token by token, with every sub-update as a vector."""
    post = everything(model, tokens, "post")[:, :, first::sample]
    rows = []
    for layer in range(LAYERS):
        W = model.blocks[layer].mlp.W_out.detach().double().cpu().numpy()
        bias = bias_of(model, layer).double().cpu().numpy()
        row = {name: [] for name in ("cosine", "curve", "negative", "norms", "update")}
        for sequence in post[layer]:
            for a in sequence:
                parts = a[:, None] * W
                size = np.abs(a) * (np.linalg.norm(W, axis=-1) if order == "norm" else 1)
                parts = parts[np.argsort(-size, kind="stable")]
                total = parts.sum(0)
                running = parts.cumsum(0)
                lengths = np.linalg.norm(running, axis=-1) * np.linalg.norm(total)
                curve = [0.0, *(running @ total / lengths)]
                row["curve"].append(curve)
                row["cosine"].append([curve[k] for k in points])
                projected = [a[n] * W[n] @ total / (total @ total) for n in np.flatnonzero(a < 0)]
                row["negative"].append(sum(projected))
                norms = np.abs(a) * np.linalg.norm(W, axis=-1)
                row["norms"].append(norms[a < 0].sum() / norms.sum())
                row["update"].append(total)
        rows.append({name: np.array(value) for name, value in row.items()} | {"bias": bias})
    return rows


@pytest.mark.parametrize("order", ["activation", "norm"])
def test_shares_equal_loops(model, many, order):
    size = model.cfg.d_mlp
    points = [1, 2, 5, 16, size]
    found = update_shares(
        model, many, order=order, points=points, sweep=SweepOptions(batch_size=3, shard=4)
    )
    slow = slow_shares(model, many, order, points)
    for layer, row in enumerate(slow):
        here = found.sel(layer=layer)
        np.testing.assert_allclose(here.cosine, row["cosine"].mean(0), atol=1e-4)
        by_sequence = row["cosine"].reshape(7, 8, -1).mean(1).T
        np.testing.assert_allclose(here.cosine_se, error_of(by_sequence), atol=1e-4)
        np.testing.assert_allclose(here.negative_share, row["negative"].mean(), rtol=1e-3)
        np.testing.assert_allclose(here.positive_share, 1 - row["negative"].mean(), rtol=1e-3)
        np.testing.assert_allclose(
            here.negative_share_se, error_of(row["negative"].reshape(7, 8).mean(1)), rtol=1e-3
        )
        np.testing.assert_allclose(here.negative_norm_share, row["norms"].mean(), rtol=1e-4)
        update, bias = row["update"], row["bias"]
        mean = update.mean(0)
        np.testing.assert_allclose(here.virtual_bias, mean, atol=1e-4)
        np.testing.assert_allclose(here.virtual_bias_norm, np.linalg.norm(mean), rtol=1e-4)
        explained = mean @ mean / (update**2).sum(-1).mean()
        np.testing.assert_allclose(here.explained, explained, rtol=1e-4)
        varying = ((update - mean) ** 2).sum(-1).mean() / (update**2).sum(-1).mean()
        np.testing.assert_allclose(here.varying, varying, rtol=1e-4)
        cosines = update @ mean / np.linalg.norm(update, axis=-1) / np.linalg.norm(mean)
        np.testing.assert_allclose(here.virtual_bias_cosine, cosines.mean(), atol=1e-5)
        both = ((mean + bias) ** 2).sum() / ((update + bias) ** 2).sum(-1).mean()
        np.testing.assert_allclose(here.explained_with_b_out, both, rtol=1e-4)
        np.testing.assert_allclose(here.b_out_norm, np.linalg.norm(bias), rtol=1e-5)
        towards = mean @ bias / np.linalg.norm(mean) / (np.linalg.norm(bias) or 1)
        np.testing.assert_allclose(here.b_out_cosine, towards, atol=1e-4)


def bisected(curve, points, level):
    """What `needed` is said to be: the first point that reaches it, then bisection."""
    ends = [0, *points]
    low, high = next((a, b) for a, b in pairwise(ends) if curve[b] >= level)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if curve[middle] >= level else (middle, high)
    return high


@pytest.mark.parametrize("points", [[1, 2, 4, 8, 16, 32, 64], [3], None])
def test_needed_neurons(kind, backend, many, points):
    model = kind("parallel", backend, "raw")
    found = update_shares(model, many, points=points, level=0.8)
    grid = sorted({*(points or [1, 2, 4, 8, 16, 32]), 64})
    for layer, row in enumerate(slow_shares(model, many, "activation", [1])):
        curve = row["curve"]
        curve[:, -1] = 1
        needed = np.array([bisected(c, grid, 0.8) for c in curve])
        for n, c in zip(needed, curve, strict=True):
            assert c[n] >= 0.8 > c[n - 1]
        np.testing.assert_allclose(found.needed.sel(layer=layer), needed.mean())
        assert int(found.needed_median.sel(layer=layer)) == np.sort(needed)[(len(needed) - 1) // 2]
        error = error_of(needed.reshape(7, 8).mean(1))
        np.testing.assert_allclose(found.needed_se.sel(layer=layer), error)


def test_shares_are_whole_at_the_end(model, many):
    found = update_shares(model, many)
    assert found.k.values[-1] == model.cfg.d_mlp
    np.testing.assert_allclose(found.cosine.isel(k=-1), 1, atol=1e-6)
    np.testing.assert_allclose(found.negative_share + found.positive_share, 1, atol=1e-4)
    np.testing.assert_allclose(found.explained + found.varying, 1)
    assert found.attrs["without_direction"] == 0


def test_the_update_and_b_out_are_what_the_mlp_writes(model, many):
    found = update_shares(model, many, first=0)
    written = everything(model, many, "mlp_out").mean((1, 2))
    bias = torch.stack([bias_of(model, layer) for layer in range(LAYERS)])
    np.testing.assert_allclose(found.virtual_bias + bias.cpu().numpy(), written, atol=1e-4)


def test_positions_and_samples_and_layers(kind, many):
    model = kind()
    found = update_shares(model, many, first=2, sample=3, layers=[2, 0], points=[4])
    assert found.layer.values.tolist() == [2, 0]
    assert found.attrs["entries"] == 7 * 3
    slow = slow_shares(model, many, "activation", [4], first=2, sample=3)
    for layer in (2, 0):
        mean = slow[layer]["cosine"].mean()
        np.testing.assert_allclose(found.cosine.sel(layer=layer)[0], mean, atol=1e-5)
        length = np.linalg.norm(slow[layer]["update"].mean(0))
        np.testing.assert_allclose(found.virtual_bias_norm.sel(layer=layer), length, rtol=1e-4)
    with_bos = update_shares(model, many, first=0, points=[4])
    assert with_bos.attrs["entries"] == 63
    assert not np.allclose(with_bos.cosine, update_shares(model, many, points=[4]).cosine)


def test_shares_of_one_shard_or_many(kind, many, tmp_path):
    model = kind()
    whole = update_shares(model, many, sweep=SweepOptions(batch_size=3, shard=100))
    again = update_shares(
        model, many, sweep=SweepOptions(batch_size=3, shard=3, checkpoint=tmp_path)
    )
    for name in whole.data_vars:
        np.testing.assert_allclose(whole[name], again[name], rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(whole.needed_median, again.needed_median)
    resumed = update_shares(
        model, many, sweep=SweepOptions(batch_size=3, shard=3, checkpoint=tmp_path)
    )
    assert resumed.identical(again)
    other = update_shares(model, many, sweep=SweepOptions(batch_size=2))
    for name in whole.data_vars:
        np.testing.assert_allclose(whole[name], other[name], rtol=1e-3, atol=1e-5)


def test_pieces_change_nothing(kind, many, monkeypatch):
    whole = update_shares(kind(), many)
    monkeypatch.setattr("mlp_interp.corpus.reducers.base._PIECE", 1)
    parts = update_shares(kind(), many)
    np.testing.assert_allclose(whole.cosine, parts.cosine, atol=1e-6)
    np.testing.assert_allclose(whole.needed, parts.needed)


def test_tokens_without_an_update_are_left_out(kind, many):
    """As a model with ReLU may have them: here two tokens of one sequence, and another whole."""
    model = kind()
    reducer = UpdateShares(points=(1, 64))
    W = model.blocks[0].mlp.W_out.detach()
    shape = mi.corpus.reducers.Shape(3, 4, 4, 32, 8, 64, 300, 5)
    state = reducer.empty(shape)
    post = torch.randn(3, 4, 64, generator=torch.Generator().manual_seed(0))
    post[1, :2], post[2] = 0, 0
    batch, later = (
        mi.corpus.reducers.Batch(some, 0, mi.models.forward_of(model), None)
        for some in (many[:3, :5], many[:3, 1:5])
    )
    full = torch.cat((torch.zeros(3, 1, 64), post), dim=1)
    UpdateShares(points=(1, 64), first=1).see(state, mi.Site("post", 0), full, batch)
    reducer.see(state, mi.Site("post", 1), full[:, 1:], later)
    reducer.see(state, mi.Site("post", 2), full[:, 1:], later)
    found = reducer.result(state, shape)
    assert found.attrs["without_direction"] == 18
    np.testing.assert_allclose(found.cosine.sel(k=64), 1, atol=1e-6)
    updates = SubUpdates(post.flatten(0, 1), W, "activation")
    one = updates.cosine(1).view(3, 4)
    mean = (one[0].mean() + one[1, 2:].mean()) / 2
    np.testing.assert_allclose(found.cosine.sel(k=1)[0], mean, rtol=1e-6)
    assert found.needed_median[0] > 1


def test_the_median_of_an_even_number_is_the_lower_one():
    shape = mi.corpus.reducers.Shape(2, 4, 4, 32, 8, 64, 300, 5)
    reducer = UpdateShares(points=(1,))
    state = reducer.empty(shape)
    state["needed_by_tokens"][0, [2, 6]] = 1
    state["needed_by_tokens"][1, [2, 6, 7]] = 1
    state["tokens"] += torch.tensor([2, 3])
    assert reducer.result(state, shape).needed_median.values.tolist() == [2, 6]


def test_equal_sizes_are_ordered_by_number():
    post = torch.tensor([[1.0, -1.0, 0.0, 2.0, 0.0]])
    updates = SubUpdates(post, torch.eye(5), "activation")
    assert updates.rank.tolist() == [[1, 2, 3, 0, 4]]
    W = torch.diag(torch.tensor([1.0, 3.0, 1.0, 1.0, 1.0]))
    assert SubUpdates(post, W, "norm").rank.tolist() == [[2, 0, 3, 1, 4]]


def test_half_precision_and_double(kind, many):
    wanted = update_shares(kind(), many)
    double = update_shares(kind("parallel", "bridge", "folded", torch.float64), many)
    np.testing.assert_allclose(double.cosine, wanted.cosine, atol=1e-4)
    half = kind("parallel", "bridge", "folded", torch.bfloat16)
    np.testing.assert_allclose(update_shares(half, many).cosine, wanted.cosine, atol=0.05)
    np.testing.assert_allclose(
        activity(half, many).fraction, activity(kind(), many).fraction, atol=0.15
    )


def test_nano_keeps_its_beginning_apart(nano):
    corpus = mi.load_corpus("nano", nano, sequences=16, length=32)
    assert (corpus.tokens[:, 0] == corpus.tokens[0, 0]).all()
    without, with_bos = activity(nano, corpus), activity(nano, corpus, first=0)
    assert without.pos.values[0] == 1
    # The same tokens at 0 of every sequence: no spread over sequences there.
    assert (with_bos.by_position_se.sel(pos=0) == 0).all()
    # Where no text of another document begins.
    places = [pos for pos in range(1, 32) if (corpus.tokens[:, pos] != 0).all()]
    inner = with_bos.by_position.sel(pos=places)
    np.testing.assert_array_equal(inner, without.by_position.sel(pos=places))
    assert without.attrs["data"].startswith("nano")
    assert "reducer" not in without.attrs
    shares = update_shares(nano, corpus, points=[1], sample=2)
    assert shares.attrs["entries"] == int((corpus.tokens[:, 1::2] != 0).sum())
    assert shares.attrs["tokens"] == 16 * 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first": 9}, "first=9"),
        ({"first": -1}, "first=-1"),
    ],
)
def test_bad_options_of_activity(kind, many, options, message):
    with pytest.raises(ValueError, match=message):
        unchecked(activity)(kind(), many, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [3]}, r"layers=\[3\]"),
        ({"layers": []}, r"layers=\[\]"),
        ({"points": []}, r"points=\(\)"),
        ({"points": [0, 1]}, r"points=\(0, 1\)"),
        ({"points": [2, 2]}, r"points=\(2, 2\)"),
        ({"points": [1, 65]}, r"points=\(1, 65\)"),
        ({"order": "size"}, "order='size'"),
        ({"level": 1.0}, "level=1.0"),
        ({"sample": 0}, "sample=0"),
        ({"first": 9}, "first=9"),
    ],
)
def test_bad_options_of_shares(kind, many, options, message):
    with pytest.raises(ValueError, match=message):
        unchecked(update_shares)(kind(), many, **options)


def test_shares_are_of_post_alone(kind, many):
    with pytest.raises(ValueError, match="site='pre'"):
        sweep(kind(), many, UpdateShares(points=(1,), site="pre"))


def test_bad_options_of_outliers(kind, many):
    found = activity(kind(), many)
    with pytest.raises(ValueError, match="lacks fraction, z"):
        outliers(neuron_weights(kind(), tokens=False))
    with pytest.raises(ValueError, match="side='up'"):
        unchecked(outliers)(found, side="up")
    for k in (0, 3 * 64 + 1):
        with pytest.raises(ValueError, match=f"k={k}"):
            outliers(found, k=k)
