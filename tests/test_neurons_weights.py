"""What the weights of neurons say, against loops in float64, planted directions and sampling."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import reference
import scipy.stats
import torch
from random_models import BACKENDS, build, unchecked

import mlp_interp as mi
from mlp_interp.neurons import antipodal_pairs, nearest_neurons, neuron_weights, promoted_tokens
from mlp_interp.neurons.weights.volume import activation_volume, cap_share
from mlp_interp.prompts.reading import texts
from mlp_interp.sites import Site

RAW = ("receptor_norm", "value_norm", "bias", "cosine")  # what processing changes


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """The tests' models fit into one piece; several must give the same."""
    monkeypatch.setattr("mlp_interp.models.vocabulary._TOKENS", 77)
    monkeypatch.setattr("mlp_interp.neurons.weights.statistics._VECTORS", 24)
    monkeypatch.setattr("mlp_interp.neurons.weights.similar._ROWS", 20)


def parts(model, layer):
    """Receptors and value vectors as the norms see them, and biases; float64, by hand."""
    block, gated = model.blocks[layer], model.cfg.gated_mlp
    w, v = block.mlp.W_gate if gated else block.mlp.W_in, block.mlp.W_out
    w, v = w.detach().double(), v.detach().double()
    norm = block.ln2
    scale = torch.ones(len(w)) if getattr(norm, "w", None) is None else norm.w.detach()
    shift = torch.zeros(len(w)) if getattr(norm, "b", None) is None else norm.b.detach()
    folded = reference.kept(model, (w * scale.double()[:, None]).T)
    linear = reference.kept(model, (block.mlp.W_in.detach() * scale[:, None]).T).double()
    bias = torch.zeros(w.shape[1]).double() if gated else block.mlp.b_in.detach().double()
    return SimpleNamespace(
        receptor=w.T,
        value=v,
        bias=bias,
        folded=folded,
        bias_folded=bias + shift.double() @ w,
        value_folded=reference.kept(model, v),
        linear=linear if gated else None,
    )


def logits_of(model, vectors):
    """What vectors add to the logits of a stream, sigma held, times that sigma; less the mean."""
    stream = torch.linspace(-1, 1, vectors.shape[-1])
    changed = reference.frozen_logits(model, stream + vectors.float(), stream)
    change = changed - reference.frozen_logits(model, stream, stream)
    change = (change * reference.scale(model, stream)).double()
    return (change - change.mean(-1, keepdim=True)).numpy()


def cosines(a, b):
    """All cosines, one loop over one side."""
    return np.array([torch.cosine_similarity(x[None], b, dim=-1).tolist() for x in a])


def test_norms_biases_and_angles(model):
    found = neuron_weights(model, tokens=False)
    assert found.sizes == {"layer": 3, "neuron": model.cfg.d_mlp}
    for layer in range(3):
        x, row = parts(model, layer), found.sel(layer=layer)
        close = {"rtol": 1e-5, "atol": 1e-6}
        np.testing.assert_allclose(row.receptor_norm, x.receptor.norm(dim=-1), **close)
        np.testing.assert_allclose(row.receptor_norm_folded, x.folded.norm(dim=-1), **close)
        np.testing.assert_allclose(row.value_norm, x.value.norm(dim=-1), **close)
        np.testing.assert_allclose(row.value_norm_folded, x.value_folded.norm(dim=-1), **close)
        np.testing.assert_allclose(row.bias, x.bias, **close)
        np.testing.assert_allclose(row.bias_folded, x.bias_folded, **close)
        raw = torch.cosine_similarity(x.receptor, x.value, dim=-1)
        folded = torch.cosine_similarity(x.folded, x.value_folded, dim=-1)
        np.testing.assert_allclose(row.cosine, raw, **close)
        np.testing.assert_allclose(row.cosine_folded, folded, **close)
        assert ("linear_norm" in found) == model.cfg.gated_mlp
        if x.linear is not None:
            np.testing.assert_allclose(row.linear_norm_folded, x.linear.norm(dim=-1), **close)
            for name, other in (("linear", x.folded), ("linear_value", x.value_folded)):
                by_hand = torch.cosine_similarity(x.linear, other, dim=-1)
                np.testing.assert_allclose(row[f"cosine_{name}"], by_hand, **close)


def test_tokens_and_moments_are_those_of_all_logits(model):
    found = neuron_weights(model, k=5).sel(layer=1)
    logits = logits_of(model, parts(model, 1).value)
    rows = np.arange(len(logits))[:, None]
    order = np.argsort(-logits, axis=-1, kind="stable")
    for name, best in (("promoted", order[:, :5]), ("suppressed", order[:, ::-1][:, :5])):
        ids, values = found[name].values, found[f"{name}_logit"].values
        assert all(len(set(row)) == 5 for row in ids.tolist())
        np.testing.assert_allclose(values, logits[rows, best], atol=2e-5)
        np.testing.assert_allclose(logits[rows, ids], logits[rows, best], atol=2e-5)
    np.testing.assert_allclose(found.logit_variance, logits.var(-1), rtol=1e-4)
    np.testing.assert_allclose(found.logit_skew, scipy.stats.skew(logits, -1), atol=1e-4)
    np.testing.assert_allclose(found.logit_kurtosis, scipy.stats.kurtosis(logits, -1), atol=1e-4)


def test_the_closest_tokens_are_those_of_all_cosines(model):
    found = neuron_weights(model).sel(layer=2)
    x = parts(model, 2)
    embed = model.W_E.detach().double()
    embed = reference.kept(model, embed)
    # The readout's directions: what each unit of the stream adds to the logits.
    readout = torch.tensor(logits_of(model, torch.eye(32))).T
    for name, mine, tokens in (
        ("embed", x.folded, embed),
        ("linear_embed", x.linear, embed),
        ("unembed", x.value_folded, readout),
    ):
        if mine is None:
            continue
        every = cosines(mine, tokens)
        closest = np.abs(every).argmax(-1)
        np.testing.assert_array_equal(found[f"closest_{name}"], closest)
        wanted = every[np.arange(len(every)), closest]
        np.testing.assert_allclose(found[f"cosine_{name}"], wanted, atol=1e-5)


@pytest.mark.parametrize("architecture", ["parallel", "sequential", "gpt2"])
def test_raw_and_processed_weights_say_the_same(kind, backend, architecture):
    folded, raw = (
        neuron_weights(kind(architecture, backend, processing), k=4)
        for processing in ("folded", "raw")
    )
    for name in set(folded.data_vars) - set(RAW):
        if "text" in name or folded[name].dtype.kind == "i":
            np.testing.assert_array_equal(folded[name], raw[name], err_msg=name)
        else:
            np.testing.assert_allclose(folded[name], raw[name], atol=1e-4, rtol=1e-4)
    for name in RAW:
        assert np.abs(folded[name] - raw[name]).max() > 1e-2, name


def test_the_norms_of_the_folded_parts_are_the_norms_of_processed_weights(kind, backend):
    found = neuron_weights(kind("parallel", backend), tokens=False)
    for name in ("receptor_norm", "value_norm", "bias", "cosine"):
        np.testing.assert_allclose(found[name], found[f"{name}_folded"], atol=1e-5)


def test_streams_in_random_directions_fire_as_often_as_the_volume_says(kind, backend):
    """Through the model's own norm and weights."""
    for which, processing in (("sequential", "folded"), ("sequential", "raw"), ("llama", "raw")):
        model = kind(which, backend, processing)
        block, n = model.blocks[0], 20_000
        stream = 50 * torch.randn(n, 1, 32, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            read, mlp = block.ln2(stream)[:, 0], block.mlp
            pre = read @ mlp.W_gate if which == "llama" else read @ mlp.W_in + mlp.b_in
        if which == "llama":  # without biases every neuron fires in half of the directions
            found = neuron_weights(model, layers=[0], tokens=False)
            np.testing.assert_allclose(found.activation_volume, 0.5)
            np.testing.assert_allclose((pre > 0).double().mean(0), 0.5, atol=0.02)
            continue
        share = neuron_weights(model, layers=[0], tokens=False).activation_volume.values[0]
        assert share.min() < 0.4
        assert share.max() > 0.6
        error = np.sqrt(share * (1 - share) / n)
        assert (np.abs((pre > 0).double().mean(0).numpy() - share) < 4.5 * error + 1e-9).all()


def test_caps_of_the_circle_and_the_sphere():
    t = np.linspace(-1, 1, 41)
    np.testing.assert_allclose(cap_share(t, 2), np.arccos(t) / np.pi, atol=1e-12)
    np.testing.assert_allclose(cap_share(t, 3), (1 - t) / 2, atol=1e-12)
    np.testing.assert_allclose(cap_share(t, 50) + cap_share(-t, 50), 1, atol=1e-12)
    assert cap_share(np.array([-np.inf, -1.5, 1.5, np.inf]), 7).tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("dimension", [2, 3, 4, 11, 511])
def test_caps_are_what_sampling_gives(dimension):
    x = np.random.default_rng(0).standard_normal((20_000, dimension))
    cosine = x[:, 0] / np.linalg.norm(x, axis=-1)
    for height in (-0.9, -0.3, -0.01, 0.0, 0.05, 0.2, 0.7):
        share = float(cap_share(height, dimension))
        error = np.sqrt(share * (1 - share) / len(x))
        assert abs((cosine > height).mean() - share) < 4.5 * error + 1e-4


def test_where_the_bias_decides_alone():
    norm, bias = np.array([0, 0, 0, 1e-30, 2, 2, 2]), np.array([1, 0, -1, 1, 0, 1e6, -1e6])
    assert activation_volume(norm, bias, 16).tolist() == [1, 0, 0, 1, 0.5, 1, 0]
    # The sphere has the radius 4: a bias of 4 norms fires always, one of -4 never.
    edge = activation_volume(np.ones(3), np.array([-4.0, 4.0, 3.9]), 16)
    assert edge[:2].tolist() == [0, 1]
    assert 0.9 < edge[2] < 1


def test_the_stream_has_one_dimension_less_than_its_width():
    """Three numbers without a mean lie on a circle of radius sqrt(3), four on a sphere."""
    bias = np.array([-1.0, 0.5, 2.0])
    of_three = activation_volume(np.full(3, 2.0), bias, 3)
    np.testing.assert_allclose(of_three, np.arccos(-bias / (2 * np.sqrt(3))) / np.pi)
    np.testing.assert_allclose(activation_volume(np.full(3, 2.0), bias, 4), (1 + bias / 4) / 2)


def test_a_sphere_needs_two_dimensions():
    with pytest.raises(ValueError, match="dimension=1; wanted at least 2"):
        cap_share(0.0, 1)


def plant(model, layer, neuron, *, reads=None, writes=None, bias=None):
    """Give a neuron the folded receptor and the value vector that are wanted."""
    block = model.blocks[layer]
    with torch.no_grad():
        if reads is not None:
            scale = getattr(block.ln2, "w", None)
            block.mlp.W_in.data[:, neuron] = reads if scale is None else reads / scale
        if writes is not None:
            block.mlp.W_out.data[neuron] = writes
        if bias is not None:
            block.mlp.b_in.data[neuron] = bias


@pytest.fixture(scope="module", params=list(itertools.product(BACKENDS, ("folded", "raw"))))
def planted(request):
    """Neurons with directions that we know: of tokens, opposite, nearly equal, and none at all."""
    model = build("parallel", *request.param)
    readout = torch.tensor(logits_of(model, torch.eye(32))).T.float()
    reads, writes = torch.randn(2, 32, generator=torch.Generator().manual_seed(5))
    close = torch.randn(2, 32, generator=torch.Generator().manual_seed(6)) * 0.05
    plant(model, 0, 5, reads=2 * model.W_E[17], writes=-3 * readout[42])
    plant(model, 1, 6, reads=-0.1 * model.W_E[18], writes=1e-12 * readout[43])
    plant(model, 0, 7, reads=reads, writes=writes)
    plant(model, 2, 63, reads=-3 * reads + 1, writes=-0.5 * writes + 2)
    plant(model, 2, 1, reads=reads + close[0], writes=writes + close[1])
    plant(model, 1, 9, reads=torch.zeros(32), writes=torch.zeros(32), bias=0.1)
    plant(model, 1, 10, reads=-reads, writes=writes)
    return model


def test_planted_tokens_are_found(planted):
    found = neuron_weights(planted, k=3)
    neuron = found.sel(layer=0, neuron=5)
    assert (int(neuron.closest_embed), int(neuron.closest_unembed)) == (17, 42)
    np.testing.assert_allclose([neuron.cosine_embed, neuron.cosine_unembed], [1, -1], atol=1e-5)
    assert int(neuron.suppressed[0]) == 42
    neuron = found.sel(layer=1, neuron=6)
    assert (int(neuron.closest_embed), int(neuron.promoted[0])) == (18, 43)
    np.testing.assert_allclose([neuron.cosine_embed, neuron.cosine_unembed], [-1, 1], atol=1e-5)


def test_the_moments_of_a_tiny_value_vector_do_not_underflow(planted):
    neuron = neuron_weights(planted).sel(layer=1, neuron=6)
    logits = logits_of(planted, 1e12 * planted.blocks[1].mlp.W_out[6].detach())
    np.testing.assert_allclose(neuron.logit_variance, 1e-24 * logits.var(), rtol=1e-4)
    np.testing.assert_allclose(neuron.logit_skew, scipy.stats.skew(logits), atol=1e-4)
    np.testing.assert_allclose(neuron.logit_kurtosis, scipy.stats.kurtosis(logits), atol=1e-4)


def test_a_neuron_without_vectors(planted):
    neuron = neuron_weights(planted).sel(layer=1, neuron=9)
    for name in ("receptor_norm_folded", "value_norm", "cosine", "cosine_embed", "cosine_unembed"):
        assert float(neuron[name]) == 0, name
    assert float(neuron.activation_volume) == 1
    assert (neuron.promoted_logit == 0).all()
    assert float(neuron.logit_variance) == 0
    assert np.isnan([neuron.logit_skew, neuron.logit_kurtosis]).all()


def test_planted_neighbours_and_opposites_are_found(planted):
    for by in ("value", "receptor", "both"):
        nearest = nearest_neurons(planted, "L0N7", by=by, k=2)
        assert nearest.component[0 if by != "value" else 1] == "L2N1", by
        assert nearest.values.max() <= 1
        opposite = antipodal_pairs(planted, by=by)
        pairs = list(zip(opposite.first.values, opposite.second.values, strict=True))
        assert ("L0N7", "L2N63") in pairs
        assert (("L0N7", "L1N10") in pairs) == (by == "receptor")
        place = pairs.index(("L0N7", "L2N63"))
        np.testing.assert_allclose(opposite[place], -1, atol=1e-5)
    assert nearest_neurons(planted, "L0N7", by="value").component[0] == "L1N10"


def brute_force(model, by, layers=(0, 1, 2)):
    """Cosines of all pairs in float64 with their labels."""
    each = [parts(model, layer) for layer in layers]
    receptor = torch.cat([x.folded for x in each])
    value = torch.cat([x.value_folded for x in each])
    labels = [f"L{layer}N{n}" for layer in layers for n in range(model.cfg.d_mlp)]
    both = np.stack([cosines(receptor, receptor), cosines(value, value)])
    return labels, both[{"receptor": [0], "value": [1], "both": [0, 1]}[by]]


# Every architecture with folded and raw weights; pairs are of weights, however they came about.
PAIRS = [
    ("parallel", "folded", "value"),
    ("parallel", "raw", "both"),
    ("sequential", "folded", "receptor"),
    ("sequential", "raw", "value"),
    ("gpt2", "folded", "both"),
    ("gpt2", "raw", "receptor"),
]


@pytest.mark.parametrize(("architecture", "processing", "by"), PAIRS)
def test_the_nearest_are_those_of_all_pairs(kind, backend, architecture, processing, by):
    model = kind(architecture, backend, processing)
    labels, every = brute_force(model, by, (2, 0))
    own = labels.index("L0N3")
    row = every[:, own].min(0)
    row[own] = -2
    order = np.argsort(-row)[:7]
    found = nearest_neurons(model, "L0N3", k=7, by=by, layers=[2, 0])
    assert found.component.values.tolist() == [labels[i] for i in order]
    np.testing.assert_allclose(found, row[order], atol=1e-5)
    for which, name in ((0, "receptor_cosine"), (1, "value_cosine")):
        both = brute_force(model, "both", (2, 0))[1][which, own, order]
        np.testing.assert_allclose(found[name], both, atol=1e-5)
    assert found.layer.values.tolist() == [int(label[1]) for label in found.component.values]


@pytest.mark.parametrize(("architecture", "processing", "by"), PAIRS)
def test_opposite_pairs_are_those_of_all_pairs(kind, backend, architecture, processing, by):
    model = kind(architecture, backend, processing)
    labels, every = brute_force(model, by)
    score = every.max(0)
    ones = np.triu_indices(len(labels), 1)
    below = float(np.quantile(score[ones], 0.01))
    hits = [(score[i, j], labels[i], labels[j]) for i, j in zip(*ones, strict=True)]
    hits = sorted(hit for hit in hits if hit[0] < below)
    found = antipodal_pairs(model, by=by, below=below, k=30)
    assert abs(found.attrs["found"] - len(hits)) <= 1  # rounding at the threshold
    np.testing.assert_allclose(found, [hit[0] for hit in hits[:30]], atol=1e-5)
    pairs = list(zip(found.first.values, found.second.values, strict=True))
    assert pairs == [hit[1:] for hit in hits[:30]]
    at = [[labels.index(name) for name in pair] for pair in pairs]
    both = brute_force(model, "both")[1]
    for which, name in ((0, "receptor_cosine"), (1, "value_cosine")):
        np.testing.assert_allclose(found[name], [both[which, i, j] for i, j in at], atol=1e-5)
    for side in ("first", "second"):
        layers, neurons = found[f"{side}_layer"].values, found[f"{side}_neuron"].values
        made = [f"L{a}N{n}" for a, n in zip(layers, neurons, strict=True)]
        assert made == found[side].values.tolist()


def test_opposites_of_one_layer_and_their_number(kind, backend):
    model = kind("parallel", backend)
    found = antipodal_pairs(model, layers=[1], below=1.0, k=10_000)
    assert found.sizes["pair"] == found.attrs["found"] == 64 * 63 // 2
    assert (found.first_neuron < found.second_neuron).all()
    assert (found.first_layer == 1).all()
    assert (np.diff(found) >= 0).all()
    none = antipodal_pairs(model, below=-0.99)
    assert none.sizes["pair"] == none.attrs["found"] == 0


def test_one_neuron_is_its_row_of_all(model):
    every = neuron_weights(model, k=6)
    one = promoted_tokens(model, "L2N30", k=6)
    row = every.sel(layer=2, neuron=30)
    assert str(one.component.values) == "L2N30"
    for name in one.data_vars:
        if one[name].dtype.kind == "f":
            np.testing.assert_allclose(one[name], row[name], atol=1e-5)
        else:
            np.testing.assert_array_equal(one[name], row[name])
    assert len(one.data_vars) == 6
    assert one.promoted_text.values.tolist() == [
        model.tokenizer.decode([i]) or f"#{i}" for i in one.promoted.values
    ]


def test_layers_are_chosen_and_keep_their_order(kind, backend):
    model = kind("parallel", backend)
    every, some = neuron_weights(model), neuron_weights(model, layers=[2, 0])
    assert some.layer.values.tolist() == [2, 0]
    for name in some.data_vars:
        np.testing.assert_array_equal(some[name], every[name].sel(layer=[2, 0]), err_msg=name)
    assert some.identical(neuron_weights(model, layers=[-1, -3]))
    fewer = neuron_weights(model, k=2)
    np.testing.assert_array_equal(fewer.promoted, every.promoted[..., :2])
    whole = neuron_weights(model, layers=[0], k=300)
    assert (np.sort(whole.promoted) == np.arange(300)).all()
    assert (whole.promoted.values == whole.suppressed.values[..., ::-1]).all()
    bare = neuron_weights(model, tokens=False)
    assert "rank" not in bare.dims
    assert set(bare.data_vars) == {v for v in every.data_vars if v in bare.data_vars}
    assert len(bare.data_vars) == 9


def test_half_precision_weights_are_read_in_single(kind, backend):
    """In bfloat16 a sum over 32 numbers would be off by a percent."""
    model = kind("parallel", backend, "raw", torch.bfloat16)
    found = neuron_weights(model, k=2)
    x = parts(model, 1)
    np.testing.assert_allclose(found.receptor_norm[1], x.receptor.norm(dim=-1), rtol=1e-5)
    folded = torch.cosine_similarity(x.folded, x.value_folded, dim=-1)
    np.testing.assert_allclose(found.cosine_folded[1], folded, atol=1e-5)
    assert found.attrs["dtype"] == "bfloat16"
    assert antipodal_pairs(model, below=-0.2).dtype == np.float32


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_all_of_it_can_be_saved(kind, backend, suffix, tmp_path):
    model = kind("parallel", backend)
    for result in (
        neuron_weights(model, k=3),
        promoted_tokens(model, "L1N2"),
        nearest_neurons(model, "L1N2"),
        antipodal_pairs(model, below=-0.5),
        antipodal_pairs(model, below=-0.99),
    ):
        found = mi.load(mi.save(result, tmp_path / f"x{suffix}"))
        assert found.identical(result)
        assert found.attrs["unit"]
        assert found.attrs["backend"] == type(model).__name__


def test_every_variable_says_what_it_is(nano):
    found = neuron_weights(nano, layers=[0])
    for name, variable in found.data_vars.items():
        assert {"unit", "long_name"} <= variable.attrs.keys(), name


def test_tokens_as_text(kind, tmp_path):
    """Without a tokenizer, beyond its ids, and the one character that files do not keep."""
    assert texts(SimpleNamespace(), np.array([[3, 4], [4, 3]])).tolist() == [
        ["#3", "#4"],
        ["#4", "#3"],
    ]
    model = kind()
    (nul,) = (i for i in range(300) if model.tokenizer.decode([i]) == "\0")
    last = len(model.tokenizer) - 1
    found = texts(model, np.array([nul, last, last + 1]))
    assert found.tolist() == ["␀", model.tokenizer.decode([last]), f"#{last + 1}"]
    whole = promoted_tokens(model, "L0N0", k=300)
    assert "␀" in whole.promoted_text.values
    assert mi.load(mi.save(whole, tmp_path / "x.nc")).identical(whole)


@pytest.mark.parametrize(
    ("function", "arguments", "options", "text"),
    [
        (neuron_weights, (), {"layers": [3]}, r"layers=\[3\]; wanted integers from -3 to 2"),
        (neuron_weights, (), {"layers": [-1, 2]}, r"layers=\[-1, 2\]; wanted .* each once"),
        (neuron_weights, (), {"layers": []}, r"layers=\[\]; wanted"),
        (neuron_weights, (), {"layers": [0.5]}, r"layers=\[0.5\]; wanted"),
        (neuron_weights, (), {"k": 0}, "k=0; wanted an integer from 1 to 300, the number of tok"),
        (neuron_weights, (), {"k": 301}, "k=301; wanted an integer from 1 to 300"),
        (neuron_weights, (), {"k": 2.0}, "k=2.0; wanted an integer"),
        (promoted_tokens, ("L3N0",), {}, "neuron='L3N0'; wanted a layer from 0 to 2"),
        (promoted_tokens, ((0, 64),), {}, "neuron='L0N64'; wanted a neuron from 0 to 63"),
        (promoted_tokens, ((0, 0.5),), {}, r"neuron=\(0, 0.5\); wanted .* the pair"),
        (promoted_tokens, ((True, 1),), {}, r"neuron=\(True, 1\); wanted a label"),
        (promoted_tokens, ("L1H2",), {}, "neuron='L1H2' is no neuron"),
        (promoted_tokens, ((0, 1),), {"k": 301}, "k=301; wanted an integer from 1 to 300"),
        (nearest_neurons, ((0, -65),), {}, r"neuron=\(0, -65\); wanted .* from \(-3, -64\)"),
        (
            nearest_neurons,
            ((0, 1),),
            {"by": "input"},
            "by='input'; wanted one of 'receptor', 'value'",
        ),
        (nearest_neurons, ((0, 1),), {"layers": [7]}, r"layers=\[7\]; wanted"),
        (
            nearest_neurons,
            ((0, 1),),
            {"layers": [0], "k": 64},
            "k=64; .* 1 to 63, the number",
        ),
        (
            nearest_neurons,
            ((0, 1),),
            {"layers": [1], "k": 65},
            "k=65; wanted an integer from 1 to 64",
        ),
        (antipodal_pairs, (), {"layers": [3]}, r"layers=\[3\]; wanted"),
        (antipodal_pairs, (), {"by": None}, "by=None; wanted one of"),
        (antipodal_pairs, (), {"below": -1.0}, r"below=-1.0; wanted a cosine above -1, up to 1"),
        (antipodal_pairs, (), {"below": 1.1}, r"below=1.1; wanted a cosine"),
        (antipodal_pairs, (), {"below": float("nan")}, r"below=nan; wanted a cosine"),
        (antipodal_pairs, (), {"k": 0}, "k=0; wanted an integer from 1"),
    ],
)
def test_errors_name_what_was_wrong(kind, function, arguments, options, text):
    with pytest.raises(ValueError, match=text):
        unchecked(function)(kind(), *arguments, **options)


@pytest.mark.parametrize("number", [np.int64(2), np.array(2), torch.tensor(2)])
def test_integers_of_any_make_name_a_neuron(kind, number):
    found = unchecked(promoted_tokens)(kind(), (number, number))
    assert str(found.component.values) == "L2N2"


def test_a_neuron_is_named_in_any_way(kind):
    model = kind()
    found = [promoted_tokens(model, neuron) for neuron in ("L2N3", Site.parse("L2N3"), (2, 3))]
    assert found[0].identical(found[1])
    assert found[0].identical(found[2])


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(backend, wrong):
    for name, text in (
        ("W_in", "the MLP of layer 1 holds"),
        ("W_out", "the MLP of layer 1 holds"),
        ("b_in", "the MLP of layer 1 holds"),
        ("W_E", "W_E holds NaN or infinity"),
        ("W_U", "an unembedding with NaN or infinity"),
    ):
        model = build("parallel", backend, "folded")
        holder = model if name in ("W_E", "W_U") else model.blocks[1].mlp
        weight = getattr(holder, name).data
        weight[(1,) * weight.ndim] = wrong
        with pytest.raises(ValueError, match=text):
            neuron_weights(model)


def test_what_is_no_model_is_refused():
    for function in (neuron_weights, antipodal_pairs):
        with pytest.raises(ValueError, match="Linear has no cfg, blocks, W_U"):
            function(torch.nn.Linear(2, 2, device="meta"))
