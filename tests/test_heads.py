"""Heads from weights: tables that are never made, against tables that are."""

import numpy as np
import pytest
import torch
import xarray as xr
from random_models import HAS_HOOKED, hooked

import mlp_interp as mi
from mlp_interp import heads as of_heads
from mlp_interp.dictionaries import Dictionary, TopK
from mlp_interp.heads._compose import _groups
from mlp_interp.heads._match import Matching
from mlp_interp.heads._sides import Side, compared
from mlp_interp.heads._spectral import _largest, _rotations, spectral
from mlp_interp.heads._vocabulary import Vocabulary
from mlp_interp.models import Unembed, Weights
from mlp_interp.models.heads import Heads
from mlp_interp.models.token_streams import streams_of
from mlp_interp.sites import Site


def tokens_of(model, source, layer):
    """Normalised streams, doubles, as heads of a layer read them."""
    return Weights.of(model).norm.standardize(streams_of(model, source).stream(layer)).double()


@pytest.fixture
def small(kind, backend):
    return kind("parallel", backend, "raw")


def test_kernels_are_the_moments_of_the_whole_table(small):
    heads = Heads.of(Weights.of(small), 1)
    share = torch.rand(300, generator=torch.Generator().manual_seed(0)).double()
    share /= share.sum()
    found = of_heads.positions(small, distances=5, heads=["L1H2"], frequencies=share)
    rows = tokens_of(small, "extended", 1)
    assert found.attrs["uniform"] == 1 / 5
    q, k = rows @ heads.Q[2].double() + heads.b_q[2], rows @ heads.K[2].double() + heads.b_k[2]
    for distance, between in enumerate(heads.relative(range(5)).double()):
        table = heads.scale * q @ between @ k.T
        mean = share @ table @ share
        of_query, of_key = table @ share - mean, share @ table - mean
        rest = table - mean - of_query[:, None] - of_key
        here = found.sel(head="L1H2", distance=distance)
        for name, part in {
            "query": share @ of_query.square(),
            "key": of_key.square() @ share,
            "both": share @ rest.square() @ share,
        }.items():
            assert float(here[f"spread_{name}"]) == pytest.approx(float(part.sqrt()), rel=1e-4)
        assert float(here.score) == pytest.approx(float(mean), rel=1e-4, abs=1e-5)
        bias = heads.scale * heads.b_q[2].double() @ between @ heads.b_k[2].double()
        assert float(here.bias) == pytest.approx(float(bias), rel=1e-4, abs=1e-5)


def test_copying_and_match_are_of_whole_tables(small):
    weights = Weights.of(small)
    found = of_heads.roles(small, scan=True, sample=64, seed=3)
    assert found.attrs["uniform"] == 1 / 64
    by_distance = of_heads.positions(small, sample=64, seed=3)
    for name in ("spread_query", "spread_key", "spread_both"):
        wanted = (by_distance[name] ** 2).mean("distance") ** 0.5
        mine = found[name].stack(head_of=("layer", "head"))
        np.testing.assert_allclose(mine, wanted, rtol=1e-4, err_msg=name)
    pairs = of_heads.match(small, sample=64, seed=3)
    assert bool((pairs["match"].notnull() == (pairs.reader_layer > pairs.writer_layer)).all())
    tokens = Vocabulary.of(small, "extended", sample=64, seed=3).streams.tokens
    reads = [tokens_of(small, "extended", layer)[tokens] for layer in range(3)]
    reads = [x - x.mean(0) for x in reads]
    whole = Unembed.of(small).weight.double()
    W = whole.T
    # The mean over the tokens is a row and a column of the table that no spectrum knows of.
    W = W[tokens] - W.mean(0)
    held = [Heads.of(weights, layer) for layer in range(3)]
    for layer, heads in enumerate(held):
        rows = tokens_of(small, "extended", layer)[tokens]
        for head in range(4):
            wrote = rows @ heads.V[head].double() @ heads.O[head].double()
            top = ((wrote @ whole).argmax(1) == tokens).double().mean()
            here = found.sel(layer=layer, head=head)
            assert float(here.copying_top1) == pytest.approx(float(top))
            table = wrote @ W.T
            own = (table.diagonal() - table.mean(1)) / table.std(1, correction=0)
            assert float(here.copying_z) == pytest.approx(float(own.mean()), rel=1e-3)
            table = reads[layer] @ heads.V[head].double() @ heads.O[head].double() @ W.T
            values = torch.linalg.eigvals(table - table.mean(1, keepdim=True))
            positive = float(values.real.sum() / values.abs().sum())
            assert float(here.copying) == pytest.approx(positive, abs=1e-4)
            negative = float((-values.real).clamp_min(0).sum() / values.abs().sum())
            assert float(here.suppression) == pytest.approx(negative, abs=1e-4)
            between = heads.relative(range(1, 32)).double().mean(0)
            met = reads[layer] @ heads.Q[head].double() @ between @ heads.K[head].double().T
            values = torch.linalg.eigvals(met @ reads[layer].T)
            positive = float(values.real.sum() / values.abs().sum())
            assert float(here.duplicate) == pytest.approx(positive, abs=1e-4)
            for name, matrix in (
                ("ov", heads.V[head] @ heads.O[head]),
                ("qk", heads.Q[head] @ heads.K[head].T),
            ):
                squares = torch.linalg.svdvals(matrix.double()).square()
                total = squares.sum()
                sizes = {
                    "norm": total.sqrt(),
                    "rank": total.square() / squares.square().sum(),
                    "stable_rank": total / squares.max(),
                }
                for what, size in sizes.items():
                    assert float(here[f"{what}_{name}"]) == pytest.approx(float(size), rel=1e-4)
    kernel = of_heads.positions(small, sample=64, seed=3).score.values
    kernel = torch.from_numpy(kernel).softmax(-1).unflatten(0, (3, 4))
    np.testing.assert_allclose(found["self"], kernel[..., 0], atol=1e-5)
    np.testing.assert_allclose(found["previous"], kernel[..., 1], atol=1e-5)
    first, second = held[0], held[2]
    between = second.relative(range(1, 32)).double().mean(0)
    keys = reads[0] @ first.V[1].double() @ first.O[1].double() @ second.K[3].double()
    table = reads[2] @ second.Q[3].double() @ between @ keys.T
    values = torch.linalg.eigvals(table)
    expected = float(values.real.sum() / values.abs().sum())
    at = pairs["match"].sel(writer="L0H1", reader="L2H3")
    assert float(at) == pytest.approx(expected, abs=1e-4)
    own = (table.diagonal() / table.square().mean(1).sqrt()).mean()
    vocabulary = Vocabulary.of(small, "extended", sample=64, seed=3)
    found = Matching(first, second, vocabulary).own_z(3, 1, seed=0)
    assert found == pytest.approx(float(own), rel=1e-3)


def test_chance_is_that_of_heads_turned_in_what_norms_let_through(small):
    weights = Weights.of(small)
    first, second = (Heads.of(weights, layer) for layer in (0, 2))
    generator = torch.Generator().manual_seed(0)
    flat = torch.full((32, 1), 32**-0.5).double()
    span = torch.linalg.svd(flat)[0][:, 1:]
    turns = torch.linalg.qr(torch.randn(60, 31, 31, generator=generator).double())[0]
    turns = (span @ turns @ span.T)[:, None]
    vocabulary = Vocabulary.of(small, "extended", sample=64, seed=3)
    moments = vocabulary.moments(2)
    between = second.relative(range(1, 32)).double().mean(0)
    Q, K, V, O = (getattr(second, name).double() for name in "QKVO")  # noqa: E741

    def deviation(core):
        values = torch.linalg.eigvals(core)
        return float((values.real.sum(-1) / values.abs().sum(-1)).square().mean().sqrt())

    cross = vocabulary.cross(0, 2) @ (Q @ between)[3]
    wrote = first.O[1].double() @ turns[:, 0] @ K[3]
    wanted = {
        "copying": deviation(O @ moments.readout @ turns @ V),
        "duplicate": deviation(between @ K.mT @ moments.covariance @ turns @ Q),
        "match": deviation(wrote.mT @ (first.V[1].double().T @ cross)),
    }
    found = of_heads.roles(small, sample=64, seed=3, layers=2)
    mine = {name: found[f"{name}_null"].item() for name in ("copying", "duplicate")}
    pair = of_heads.match(small, writers="L0H1", readers="L2H3", sample=64, seed=3)
    mine["match"] = pair["null"].item()
    for name, value in wanted.items():  # of 24 and 64 draws
        assert mine[name] == pytest.approx(value, rel=0.35), name


@pytest.mark.skipif(not HAS_HOOKED, reason="the library's composition scores are of this class")
@pytest.mark.parametrize("kind_of", ["Q", "K", "V"])
def test_composition_at_distance_0_is_the_library_s(nano, kind_of):
    theirs = nano.all_composition_scores(kind_of).detach().numpy()
    ours = of_heads.compose(nano, readers=kind_of.lower(), distance=0)
    np.testing.assert_allclose(
        ours.score.fillna(0).values, theirs.reshape(ours.score.shape), atol=1e-6
    )


def test_composition_over_distances_is_the_mean_of_squares(small):
    pair = {"writers": "L0H2", "readers": "L2H1.k"}
    every = [of_heads.compose(small, **pair, distance=i) for i in range(1, 32)]
    heads = Heads.of(Weights.of(small), 2)
    sizes = [
        (heads.K[1] @ between.mT @ heads.Q[1].mT).norm() ** 2
        for between in heads.relative(range(1, 32))
    ]
    squares = [x.score.item() ** 2 for x in every]
    mean = np.average(squares, weights=[float(x) for x in sizes]) ** 0.5
    found = of_heads.compose(small, **pair)
    assert found.score.item() == pytest.approx(mean, rel=1e-4)


def test_a_few_readers_at_a_time_are_all_readers(small, monkeypatch):
    readers = [
        f"L{layer}H{head}.{kind}" for kind in "vkq" for layer in (2, 0, 1) for head in (3, 1)
    ]
    asked = [
        *({"measure": name} for name in ("frobenius", "overlap", "spectral", "tokens")),
        {"writers": ["L1H2", "L0H3", "L1H0"]},
        {"writers": rows_of(small, torch.eye(32)[:3], layer=0), "distance": 2},
    ]
    whole = [of_heads.compose(small, readers=readers, **options) for options in asked]
    monkeypatch.setattr("mlp_interp.heads._compose._NUMBERS", 0)
    for options, wanted in zip(asked, whole, strict=True):
        found = of_heads.compose(small, readers=readers, **options)
        xr.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_readers_are_held_within_what_is_allowed(monkeypatch):
    sites = [Site.parse(f"L{layer}H0.k") for layer in (3, 1, 0, 2, 4)]
    for numbers, wanted in {
        0: [[2, 1], [3, 0], [4]],  # beside writers of 40 numbers half as many
        70: [[2, 1, 3], [0, 4]],
        90: [[2, 1, 3, 0, 4]],
    }.items():
        monkeypatch.setattr("mlp_interp.heads._compose._NUMBERS", numbers)
        assert _groups(sites, 10, 40) == wanted


@pytest.mark.parametrize("measure", ["frobenius", "overlap"])
def test_chance_of_composition_is_that_of_random_rotations(measure):
    generator = torch.Generator().manual_seed(0)
    size, draws = 24, 2000
    scales = torch.tensor([3.0, 2.0, 1.0, 0.5] + 16 * [0.0])
    # One that nearly fills the space, and so has little to find anywhere.
    wide = torch.linalg.qr(torch.randn(size, 20, generator=generator))[0]
    thin = torch.randn(size, 20, generator=generator) * scales
    turns = torch.linalg.qr(torch.randn(draws, size, size, generator=generator))[0]
    inner = torch.eye(20).double()
    writer = Side.of(turns @ wide, inner.expand(draws, 20, 20), measure, 0.99)
    reader = Side.of(thin[None], inner[None], measure, 0.9)
    _, z, _ = compared(writer, reader, [draws], size)
    assert abs(float(z.mean())) < 0.1
    assert abs(float(z.std()) - 1) < 0.1


def test_overlap_is_of_the_directions_that_hold_so_much(small):
    first, second = (Heads.of(Weights.of(small), layer) for layer in (0, 2))
    spaces = []
    for matrix in (first.V[1] @ first.O[1], (second.V[3] @ second.O[3]).mT):
        _, values, basis = torch.linalg.svd(matrix.double())
        share = values.square().cumsum(0) / values.square().sum()
        spaces.append(basis[: int((share < 0.7).sum()) + 1])
    sizes = [len(x) for x in spaces]
    assert min(sizes) > 1
    assert max(sizes) < 8
    expected = float((spaces[0] @ spaces[1].mT).norm()) / (sizes[0] * sizes[1]) ** 0.5
    found = of_heads.compose(small, writers="L0H1", readers="L2H3.v", measure="overlap", energy=0.7)
    assert found.score.item() == pytest.approx(expected, rel=1e-4)


def test_the_spectral_measure_is_of_whole_products(small):
    first, second = (Heads.of(Weights.of(small), layer) for layer in (0, 2))
    between = second.relative([3])[0]
    written = first.V[1] @ first.O[1]
    read = {
        "q": second.Q[3] @ between @ second.K[3].mT,
        "k": second.K[3] @ between.mT @ second.Q[3].mT,
        "v": second.V[3] @ second.O[3],
    }
    found = of_heads.compose(small, writers="L0H1", measure="spectral", distance=3)
    for kind, matrix in read.items():
        sizes = [torch.linalg.matrix_norm(x, ord=2) for x in (written @ matrix, written, matrix)]
        mine = found.score.sel(writer="L0H1", reader=f"L2H3.{kind}")
        assert float(mine) == pytest.approx(float(sizes[0] / sizes[1] / sizes[2]), rel=1e-4)


def test_chance_of_the_spectral_measure_is_that_of_random_rotations():
    generator = torch.Generator().manual_seed(0)
    size, draws = 24, 500
    scales = torch.tensor([3.0, 2.0, 1.0, 0.5])
    thin = [torch.randn(size, 4, generator=generator) * scales for _ in range(2)]
    turns = torch.linalg.qr(torch.randn(draws, size, size, generator=generator))[0]
    inner = torch.eye(4).double()
    writer = Side.of(turns @ thin[0], inner.expand(draws, 4, 4), "spectral", 0.9)
    reader = Side.of(thin[1][None], inner[None], "spectral", 0.9)
    score, z, expected = spectral(writer, reader, [draws], size, 0)
    # The 48 draws that all pairs share leave an error of a seventh, and a tenth.
    assert abs(float(z.mean())) < 0.3
    assert abs(float(z.std()) - 1) < 0.2
    assert float(expected[0, 0]) == pytest.approx(float(score.mean()), rel=0.05)
    a, b = (torch.linalg.svdvals(x)[None] for x in thin)
    (block, *_) = _rotations(size, 4, 0, a)
    exact = torch.linalg.matrix_norm(a.T * block * b, ord=2)
    assert float(_largest(a, block, b)) == pytest.approx(float(exact), rel=1e-5)


def test_composition_over_tokens_is_of_whole_tables(small):
    first, second = (Heads.of(Weights.of(small), layer) for layer in (0, 2))
    before, after = (tokens_of(small, "extended", layer) for layer in (0, 2))
    before, after = before - before.mean(0), after - after.mean(0)
    logits = Unembed.of(small).weight.double()
    logits = logits - logits.mean(1, keepdim=True)
    Q, K, V, O = (getattr(second, name)[3].double() for name in "QKVO")  # noqa: E741
    between = second.relative([3])[0].double()
    written = before @ first.V[1].double() @ first.O[1].double()
    read = {
        "q": Q @ between @ (after @ K).T,
        "k": K @ (after @ Q @ between).T,
        "v": V @ O @ logits,
    }
    found = of_heads.compose(small, writers="L0H1", measure="tokens", distance=3, sample=None)
    assert found.attrs["source"] == "extended"
    for kind, matrix in read.items():
        expected = float((written @ matrix).norm() / written.norm() / matrix.norm())
        mine = found.score.sel(writer="L0H1", reader=f"L2H3.{kind}")
        assert float(mine) == pytest.approx(expected, rel=1e-4)


def rows_of(model, rows, **options):
    """A dictionary that writes these vectors."""
    nothing = torch.zeros(len(rows)), torch.zeros(rows.shape[1])
    return Dictionary(rows.T, nothing[0], rows, nothing[1], TopK(1), **options)


@pytest.mark.parametrize(
    ("writes", "later"),
    [("mlp_out", (2,)), ("resid_post", (2,)), ("resid_pre", (1, 2))],
)
def test_latents_compose_as_their_decoder_rows_do(small, writes, later):
    """Slow reference: whole products, of the part of each row that the norm keeps."""
    weights, generator = Weights.of(small), torch.Generator().manual_seed(5)
    rows = torch.randn(4, weights.d_model, generator=generator)
    rows[3] = 0
    one = rows_of(small, rows, layer=1, writes=writes, reads=writes)
    found = of_heads.compose(small, writers=one, distance=3)
    assert found.writer.values.tolist() == [f"L1F{n}" for n in range(4)]
    heard = found.score.isel(writer=0).notnull()
    assert {*found.reader_layer.values[heard.values].tolist()} == {*later}
    assert not bool(found.score.isel(writer=3).notnull().any())
    kept = weights.norm.keep(rows[:3]).double()
    for layer in later:
        heads = Heads.of(weights, layer)
        between = heads.relative([3])[0].double()
        Q, K, V, O = (getattr(heads, name)[2].double() for name in "QKVO")  # noqa: E741
        for kind, matrix in {
            "q": Q @ between @ K.mT,
            "k": K @ between.mT @ Q.mT,
            "v": V @ O,
        }.items():
            wanted = (kept @ matrix).norm(dim=1) / kept.norm(dim=1) / matrix.norm()
            mine = found.score.sel(reader=f"L{layer}H2.{kind}")[:3]
            np.testing.assert_allclose(mine, wanted, rtol=1e-4)


def test_chance_of_latents_is_that_of_random_directions_and_a_planted_one_is_far_above(nano):
    generator = torch.Generator().manual_seed(0)
    head = Heads.of(Weights.of(nano), 2).V[4]
    rows = torch.cat([torch.randn(3000, 192, generator=generator), head.T[:1] * 0.01])
    one = rows_of(nano, rows, layer=0)
    for measure in ("frobenius", "overlap", "tokens"):
        extra = {"sample": 64} if measure == "tokens" else {}
        found = of_heads.compose(
            nano, writers=one, readers=["L2H4.v", "L2H4.k"], measure=measure, **extra
        )
        z = found.z[:-1]
        np.testing.assert_allclose(z.mean("writer"), 0, atol=0.1)
        np.testing.assert_allclose(z.std("writer"), 1, atol=0.1)
        assert float(found.score[0, 0]) < float(found.score[-1, 0])
        assert float(found.z[-1, 0]) > 5


def turned(heads, layer):
    """The same heads with their own spaces in another basis, where no rotation stands between."""
    from dataclasses import replace

    generator = torch.Generator().manual_seed(layer)
    turn = torch.linalg.qr(
        torch.randn(heads.V.shape[0], *heads.V.shape[2:] * 2, generator=generator)
    )
    turn = turn[0]
    values = {"V": heads.V @ turn, "b_v": (heads.b_v[:, None] @ turn)[:, 0], "O": turn.mT @ heads.O}
    plain = turn.clone()
    rotated = 4  # of the small models' queries and keys; their other entries may be turned
    plain[:, :rotated], plain[:, :, :rotated] = 0, 0
    plain[:, :rotated, :rotated] = torch.eye(rotated)
    rest = torch.linalg.qr(plain[:, rotated:, rotated:])[0]
    plain[:, rotated:, rotated:] = rest
    for name in "QK":
        values[name] = getattr(heads, name) @ plain
        bias = getattr(heads, f"b_{name.lower()}")
        values[f"b_{name.lower()}"] = (bias[:, None] @ plain)[:, 0]
    return replace(heads, **values)


def everything(model):
    """All that weights alone say of a model's heads, as one vector for each."""
    return {
        "roles": of_heads.roles(model).drop_vars("component").to_array(),
        "positions": of_heads.positions(model, distances=8).to_array(),
        "compose": of_heads.compose(model).to_array(),
        "match": of_heads.match(model).to_array(),
    }


def assert_same(first, second):
    for name, values in first.items():
        other = second[name].sel(variable=values["variable"])
        for number, again in zip(values, other, strict=True):
            # Of numbers that cancel, as z and eigenvalues of random cores, what is large counts.
            size = max(1.0, float(abs(number).max()))
            said = f"{name}: {number['variable'].item()}"
            np.testing.assert_allclose(
                again.values, number.values, rtol=0, atol=5e-5 * size, err_msg=said
            )


def test_the_basis_of_a_head_s_space_changes_nothing(small, monkeypatch):
    before, of = everything(small), Heads.of.__func__
    again = classmethod(lambda cls, w, layer, **o: turned(of(cls, w, layer, **o), layer))
    monkeypatch.setattr(Heads, "of", again)
    assert_same(before, everything(small))


def test_processing_and_class_change_nothing(kind):
    from random_models import BACKENDS

    models = [kind("parallel", b, p) for b in BACKENDS for p in ("raw", "folded")]
    first = everything(models[0])
    for model in models[1:]:
        assert_same(first, everything(model))


def test_shared_keys_sequential_blocks_and_added_positions(kind, backend):
    llama = everything(kind("llama", backend, "raw"))
    assert all(np.isfinite(x.values).any() for x in llama.values())
    # An RMSNorm lets all 32 dimensions through, a LayerNorm one less.
    for architecture, dimensions in (("llama", 32), ("sequential", 31)):
        composed = of_heads.compose(kind(architecture, backend, "raw"), readers="v")
        assert float(composed.expected.max()) == pytest.approx(dimensions**-0.5)
    sequential = of_heads.roles(kind("sequential", backend, "raw"))
    assert sequential.attrs["exact"] == 0
    assert "MLP 0" in sequential.attrs["approximation"]
    assert sequential.exact.values.tolist() == [1, 0, 0]
    gpt2 = kind("gpt2", backend, "raw")
    found = of_heads.roles(gpt2)
    assert bool(found.previous.isnull().all())
    assert bool(found.copying.notnull().all())
    assert "positions are left out" in found.attrs["approximation"]
    assert bool(of_heads.compose(gpt2).z.notnull().any())
    for analysis in (of_heads.positions, of_heads.induction):
        with pytest.raises(ValueError, match="adds learned positions to its embedding"):
            analysis(gpt2)


def test_what_is_planted_in_nano_is_in_its_weights(nano):
    found = of_heads.roles(nano)
    assert float(found.previous.sel(layer=0, head=0)) > 0.98
    others = found.previous.stack(at=("layer", "head"))
    assert float(others.drop_sel(at=(0, 0)).max()) < 0.2
    assert bool((found.copying.sel(layer=1) > 0.98).all())
    planted = [("L0H0", f"L1H{head}.k") for head in range(6)]
    # One direction in common has a wide chance, so that no z of the spectral measure is so large.
    for measure, name, least, most in [
        ("frobenius", "z", 60, 25),
        ("tokens", "z", 60, 35),
        ("spectral", "score", 0.7, 0.6),
    ]:
        composed = of_heads.compose(nano, measure=measure)[name]
        composed = composed.stack(pair=("writer", "reader")).dropna("pair")
        assert float(composed.sel(pair=planted).min()) > least
        assert float(composed.drop_sel(pair=planted).max()) < most
    matched = of_heads.match(nano)["match"]
    assert float(matched.sel(writer="L0H0", reader=[f"L1H{h}" for h in range(6)]).min()) > 0.98
    assert float(np.abs(matched.drop_sel(writer="L0H0")).max()) < 0.6


def test_what_a_sample_says_is_not_exact(small):
    whole, some = (of_heads.roles(small, sample=size, layers=[0, 1]) for size in (300, 299))
    assert whole.attrs["exact"] == 1
    assert whole.exact.values.tolist() == [1, 1]
    assert "approximation" not in whole.attrs
    assert some.attrs["exact"] == 0
    assert some.exact.values.tolist() == [0, 0]
    assert some.attrs["approximation"] == "299 tokens of the vocabulary stand for all 300"
    later = of_heads.positions(small, sample=64, heads="L2H0").attrs["approximation"]
    assert later.endswith("after block 0; 64 tokens of the vocabulary stand for all 300")


def test_double_precision(kind, backend):
    first, second = (
        everything(kind("parallel", backend, "raw", dtype))
        for dtype in (torch.float32, torch.float64)
    )
    assert_same(first, second)
    values = [
        of_heads.compose(kind("parallel", backend, "raw", dtype), measure="spectral").to_array()
        for dtype in (torch.float32, torch.float64)
    ]
    xr.testing.assert_allclose(*values, rtol=1e-3, atol=1e-4)


def test_the_default_precision_is_the_user_s_own(small):
    tokens = torch.tensor([[0, 5, 6, 5, 6, 7], [0, 9, 8, 9, 8, 8]])
    asked = [
        lambda: of_heads.roles(small, sample=64).drop_vars("component"),
        lambda: of_heads.match(small, sample=64),
        lambda: of_heads.detect(small, tokens).drop_vars("component"),
        lambda: of_heads.detect(small, n=2, period=4).drop_vars("component"),
    ]
    before = [call() for call in asked]
    torch.set_default_dtype(torch.float64)
    try:
        for wanted, call in zip(before, asked, strict=True):
            xr.testing.assert_allclose(call(), wanted, rtol=1e-4, atol=1e-5)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.skipif(not HAS_HOOKED, reason="only this class takes any sizes")
def test_heads_wider_than_the_stream_and_tokens_that_are_never_predicted():
    turned = {"positional_embedding_type": "rotary", "rotary_dim": 4}
    model = hooked(n_heads=2, d_head=48, d_vocab_out=50, **turned)
    first, second = (Heads.of(Weights.of(model), layer) for layer in (0, 1))
    spaces = []
    for matrix in (first.V[1] @ first.O[1], (second.V[0] @ second.O[0]).mT):
        _, values, basis = torch.linalg.svd(matrix.double())
        share = values.square().cumsum(0) / values.square().sum()
        spaces.append(basis[: int((share < 0.9).sum()) + 1])
    wanted = float((spaces[0] @ spaces[1].mT).norm()) / (len(spaces[0]) * len(spaces[1])) ** 0.5
    pair = {"writers": "L0H1", "readers": "L1H0.v"}
    found = of_heads.compose(model, measure="overlap", **pair)
    assert found.score.item() == pytest.approx(wanted, rel=1e-4)
    rows = tokens_of(model, "embed", 0)[:50]
    table = (rows - rows.mean(0)) @ first.V[1].double() @ first.O[1].double()
    weight = Unembed.of(model).weight.double()
    values = torch.linalg.eigvals(table @ (weight - weight.mean(1, keepdim=True)))
    copied = float(values.real.sum() / values.abs().sum())
    roles = of_heads.roles(model, source="embed", layers=0, scan=True)
    assert roles.copying.sel(head=1).item() == pytest.approx(copied, abs=1e-4)
    assert bool(of_heads.match(model, source="embed")["match"].notnull().any())


def test_streams_of_a_corpus_are_a_source(nano):
    corpus = mi.load_corpus("nano", nano, sequences=64, length=64)
    streams = mi.corpus.token_streams(nano, corpus, least=5)
    found = of_heads.roles(nano, source=streams, layers=[1])
    assert found.attrs["source"] == "corpus"
    assert bool((found.copying > 0.7).all())


def test_bad_questions_from_weights(nano):
    for error, call in [
        ("heads='L9H0'", lambda: of_heads.positions(nano, heads="L9H0")),
        (r"heads=\['L0H0', 'L0H0'\]", lambda: of_heads.positions(nano, heads=["L0H0"] * 2)),
        ("distances=1; wanted at least 2", lambda: of_heads.positions(nano, distances=1)),
        ("distances=9999", lambda: of_heads.roles(nano, distances=9999)),
        (r"layers=\[7\]", lambda: of_heads.roles(nano, layers=7)),
        ("source='unembed'", lambda: of_heads.roles(nano, source="unembed")),
        ("sample=1; wanted at least 2", lambda: of_heads.roles(nano, sample=1)),
        ("seed=-1", lambda: of_heads.roles(nano, seed=-1)),
        ("frequencies=.3,.", lambda: of_heads.positions(nano, frequencies=torch.ones(3))),
        (
            "frequencies has numbers from 1.0 to inf; wanted one finite",
            lambda: of_heads.positions(nano, frequencies=[*[1.0] * 2047, np.inf]),
        ),
        (
            "frequencies=.* of torch.complex64; wanted",
            lambda: of_heads.positions(nano, frequencies=torch.ones(2048) * 1j),
        ),
        ("readers='L1H9.k'", lambda: of_heads.compose(nano, readers="L1H9.k")),
        ("readers='1.mlp'", lambda: of_heads.compose(nano, readers="1.mlp")),
        (
            "writers=Dictionary: SAE of 0.mlp_out.* with measure='spectral'; wanted",
            lambda: of_heads.compose(
                nano, writers=rows_of(nano, torch.eye(192), layer=0), measure="spectral"
            ),
        ),
        (
            "writers is of layer 4",
            lambda: of_heads.compose(nano, writers=rows_of(nano, torch.eye(192), layer=4)),
        ),
        ("measure='nuclear'", lambda: of_heads.compose(nano, measure="nuclear")),
        ("source='x'", lambda: of_heads.compose(nano, measure="tokens", source="x")),
        ("seed=-2", lambda: of_heads.compose(nano, measure="spectral", seed=-2)),
        ("energy=2", lambda: of_heads.compose(nano, energy=2)),
        ("energy='all'; wanted a share", lambda: of_heads.compose(nano, energy="all")),
        ("readers=5; wanted a label", lambda: of_heads.compose(nano, readers=5)),
        ("writers=5; wanted a label", lambda: of_heads.compose(nano, writers=5)),
        ("frequencies='x'; wanted one", lambda: of_heads.positions(nano, frequencies="x")),
        ("distance=999", lambda: of_heads.compose(nano, distance=999)),
        ("distance=-1; wanted at least 0", lambda: of_heads.compose(nano, distance=-1)),
        ("distance=-1; wanted at least 0", lambda: of_heads.match(nano, distance=-1)),
        (
            "layers up to 1, .* from 1",
            lambda: of_heads.compose(nano, writers="L1H0", readers="L1H1.q"),
        ),
        ("layers up to 0, .* from 0", lambda: of_heads.match(nano, readers="L0H1")),
        ("writers=.'L0H0', 'L0H0'", lambda: of_heads.match(nano, writers=["L0H0", (0, 0)])),
    ]:
        with pytest.raises(ValueError, match=error):
            unwrapped(call)


def unwrapped(call):
    from jaxtyping import config

    config.update("jaxtyping_disable", True)
    try:
        return call()
    finally:
        config.update("jaxtyping_disable", False)
