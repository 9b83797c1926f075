"""Dimensions, noise, bounds and modes against slow references and plants."""

from dataclasses import replace
from itertools import permutations
from typing import Any, get_args

import numpy as np
import pytest
import torch
import xarray as xr
from random_models import unchecked
from reference import full_cache
from typer.testing import CliRunner

import mlp_interp as mi
from mlp_interp.cli import app, superposition_text
from mlp_interp.cli import superposition as command
from mlp_interp.sites import Site
from mlp_interp.superposition import (
    _modes,
    _moments,
    _noise,
    _spectrum,
    capacity,
    modes,
    noise_tolerance,
    spectrum,
    underdetermined,
)
from mlp_interp.superposition._moments import _sums_of, participation_of_pairs


@pytest.fixture
def texts():
    """Six sequences of nine tokens."""
    return torch.randint(1, 300, (6, 9), generator=torch.Generator().manual_seed(3))


def drawn(sequences, lengths, units=3, shift=0.0):
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randn(n, units, generator=generator).double() + shift for n in lengths]
    return rows[:sequences]


def sums(rows):
    x = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    m = torch.tensor([len(row) for row in rows]).double()
    return {name: value.numpy() for name, value in _sums_of(x, m).items()}


def by_hand(rows):
    """Over all quadruples of different sequences, one by one."""
    outer, total = [r.T @ r for r in rows], [r.sum(0) for r in rows]
    m = [len(r) for r in rows]

    def mean(term, n):
        every = list(permutations(range(len(rows)), n))
        return sum(float(term(*p)) for p in every) / sum(np.prod([m[i] for i in p]) for p in every)

    four = mean(lambda s, t, u, v: (total[s] @ total[t]) * (total[u] @ total[v]), 4)
    square = mean(lambda s, t: (outer[s] * outer[t]).sum(), 2)
    through = mean(lambda s, t, u: total[s] @ outer[t] @ total[u], 3)
    size = mean(lambda s, t: outer[s].trace() * outer[t].trace(), 2)
    beside = mean(lambda s, t, u: outer[s].trace() * (total[t] @ total[u]), 3)
    return (size - 2 * beside + four) / (square - 2 * through + four)


def test_participation_of_pairs_is_that_of_all_quadruples():
    rows = drawn(6, (3, 1, 4, 2, 5, 3), shift=0.7)
    np.testing.assert_allclose(participation_of_pairs(sums(rows)), by_hand(rows), rtol=1e-9)
    assert np.isnan(participation_of_pairs(sums(rows[:3])))


def test_participation_of_pairs_does_not_depend_on_the_point():
    near, far = (participation_of_pairs(sums(drawn(6, (4,) * 6, shift=s))) for s in (0.0, 30.0))
    np.testing.assert_allclose(near, far, rtol=1e-6)


def test_pairs_have_no_bias_where_the_naive_ratio_has():
    """Twenty texts of one token in 40 dimensions: the naive ratio cannot exceed 19."""
    generator = torch.Generator().manual_seed(0)
    tops = [
        participation_of_pairs(sums([*torch.randn(20, 1, 40, generator=generator).double()]))
        for _ in range(60)
    ]
    assert 38 < 1 / np.mean([1 / x for x in tops]) < 42


@pytest.mark.parametrize("site", ["post", "resid_post"])
def test_spectrum_is_that_of_all_activations(some_model, texts, site):
    found = spectrum(some_model, texts, site=site, layers=(2, 0), points=(2, 6))
    cache = full_cache(some_model, texts)
    for layer in (2, 0):
        x = cache[Site(site, layer).hook_name][:, 1:].flatten(0, 1).double().numpy()
        values = np.linalg.eigvalsh(np.cov(x.T, ddof=0))[::-1]
        here = found.sel(layer=layer, n=6)
        np.testing.assert_allclose(here["eigenvalue"], values, rtol=1e-3, atol=1e-6 * values[0])
        ratio = values.sum() ** 2 / (values**2).sum()
        np.testing.assert_allclose(here["participation"], ratio, rtol=1e-4)
        share = values.clip(1e-300) / values.sum()
        np.testing.assert_allclose(
            here["entropy_rank"], np.exp(-(share * np.log(share)).sum()), rtol=1e-2
        )
        assert int(here["k90"]) == (share.cumsum() < 0.9).sum() + 1
    assert found["tokens"].values.tolist() == [16, 48]


def test_the_error_of_participation_is_that_of_other_draws(kind):
    """The spread of the ratio over many corpora of eight texts."""
    model = kind()
    generator = torch.Generator().manual_seed(0)
    found = [
        spectrum(
            model, torch.randint(1, 300, (48, 9), generator=generator), layers=1, points=(24, 48)
        )
        for _ in range(6)
    ]
    spread = np.std([float(x["participation"][0, -1]) for x in found], ddof=1)
    error = np.mean([float(x["participation_se"][0, -1]) for x in found])
    assert 0.5 < error / spread < 2


def test_influence_is_the_slope_of_participation():
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)).double()

    def log_ratio(of, more):
        weights = 1 + more * (torch.arange(3) == of).double()
        gram = torch.einsum("b,bpd,bpe->de", weights.double(), x, x)
        return float((gram.trace() ** 2 / gram.square().sum()).log())

    covariance = torch.einsum("bpd,bpe->de", x, x) / 12
    found = _moments._influence(x, covariance, torch.full((3,), 4.0))
    slopes = [(log_ratio(n, 1e-5) - log_ratio(n, -1e-5)) / 2e-5 for n in range(3)]
    np.testing.assert_allclose(found, 12 / 4 * np.array(slopes), rtol=1e-6)


def test_spectrum_of_some_tokens_of_each_text_and_in_batches(kind, texts):
    model = kind()
    some = [
        spectrum(model, texts, layers=1, each=2, points=(3, 6), sweep=mi.SweepOptions(batch_size=b))
        for b in (1, 4)
    ]
    assert some[0]["tokens"].values.tolist() == [6, 12]
    np.testing.assert_allclose(some[0]["eigenvalue"], some[1]["eigenvalue"], atol=1e-5)
    np.testing.assert_allclose(some[0]["participation_se"], some[1]["participation_se"], rtol=1e-3)


def test_padding_is_no_text(kind, texts):
    rows = [row[:n].tolist() for row, n in zip(texts, (9, 5, 9, 4, 9, 7), strict=True)]
    model = kind()
    found = spectrum(model, rows, layers=1, points=(6,))
    x = torch.cat(
        [full_cache(model, torch.tensor([r]))["blocks.1.mlp.hook_post"][0, 1:] for r in rows]
    )
    values = np.linalg.eigvalsh(np.cov(x.double().numpy().T, ddof=0))[::-1]
    np.testing.assert_allclose(found["eigenvalue"][0, 0, :5], values[:5], rtol=1e-3)


def test_bos_counts_only_if_it_is_asked_for(kind, texts):
    """With ``first=0`` every token does; else none where the first token stands again."""
    model, packed = kind(), texts.clone()
    packed[:, [0, 4]] = 0
    x = full_cache(model, packed)["blocks.1.mlp.hook_post"].double()
    for first, rows in [(0, x.flatten(0, 1)), (1, x[packed != 0])]:
        found = spectrum(model, packed, layers=1, points=(6,), first=first)
        values = np.linalg.eigvalsh(np.cov(rows.numpy().T, ddof=0))
        assert found["tokens"].item() == len(rows)
        ratio = values.sum() ** 2 / (values**2).sum()
        np.testing.assert_allclose(found["participation"].item(), ratio, rtol=1e-4)


def test_how_many_dimensions_nano_s_neurons_use(nano, monkeypatch):
    """58 of 768 with the BOS inside texts, as a model without tokenizer counts; more without."""
    corpus = mi.load_corpus("nano", nano, sequences=150)
    options: Any = {"layers": 2, "points": (40, 150)}
    without = spectrum(nano, corpus, **options)["participation"].values[0]
    monkeypatch.setattr(nano, "tokenizer", None)
    found = spectrum(nano, corpus.tokens, **options)
    assert found["tokens"].values.tolist() == [40 * 127, 150 * 127]
    np.testing.assert_allclose(found["participation_unbiased"][0], 58, atol=3)
    np.testing.assert_allclose(found["participation"][0], 58, atol=4)
    assert 0.5 < float(found["participation_se"][0, 1]) < 4
    assert (without > 1.2 * found["participation"].values[0]).all()


def test_edge_of_noise():
    """Of pure noise hardly an eigenvalue is above; of four planted directions these four."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((4000, 200))
    values = np.linalg.eigvalsh(np.cov(x.T, ddof=0))[::-1]
    assert _spectrum._above_edge(values, 4000.0) <= 2
    x[:, :4] *= 3
    values = np.linalg.eigvalsh(np.cov(x.T, ddof=0))[::-1]
    assert 4 <= _spectrum._above_edge(values, 4000.0) <= 6
    few = np.linalg.eigvalsh(np.cov(generator.standard_normal((80, 200)).T, ddof=0))[::-1]
    assert _spectrum._above_edge(few.clip(0), 80.0) <= 2


def test_noise_is_what_adding_it_does(some_model, texts):
    """At the last stream, against logits by hand."""
    found = noise_tolerance(some_model, texts, sites="resid_post", layers=2, sizes=(0.1, 0.2))
    noise = _noisy(some_model, texts, 0.2)
    with torch.no_grad():
        logits = some_model(texts).double()
        hook = (Site("resid_post", 2).hook_name, lambda x, hook: x + noise)
        moved = some_model.run_with_hooks(texts, fwd_hooks=[hook]).double()
    p, q = logits.log_softmax(-1), moved.log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1)[:, 1:].mean()
    np.testing.assert_allclose(found["kl"][0, 0, 1].item(), kl, rtol=1e-2)


def _noisy(model, texts, size):
    """The noise of `noise_tolerance`, made again."""
    from mlp_interp.corpus.reducers import Batch
    from mlp_interp.models import forward_of
    from mlp_interp.superposition._noise import Noisy

    x = full_cache(model, texts)[Site("resid_post", 2).hook_name]
    around = x[:, 1:].flatten(0, 1)
    spread = float((around - around.mean(0)).square().sum(-1).sum() / (len(around) - 1)) ** 0.5
    site = Site("resid_post", 2)
    reducer = Noisy(sizes=(size,), kind="isotropic", first=1, seed=0, moments={})
    noise = reducer._gaussian(site, x.shape[-1], Batch(texts, 0, forward_of(model), None))
    noise[:, 0] = 0
    return size * spread * noise


def test_noise_costs_its_square(kind, texts):
    found = noise_tolerance(kind(), texts, layers=1, sizes=(0.01, 0.02))
    np.testing.assert_allclose(found["exponent"], 2, atol=0.1)


def test_deviations_of_others_are_the_same_before_and_after_w_out(kind, texts):
    """W_out is linear: neurons' deviations of other tokens are the output's."""
    found = noise_tolerance(
        kind(), texts, sites=("post", "mlp_out"), layers=1, kind="shuffled", sizes=(0.1, 0.4)
    )
    np.testing.assert_allclose(found["kl"][0], found["kl"][1], rtol=1e-3)


def test_noise_of_values_stays_in_their_span(kind, texts):
    """Of a layer without neurons' span there is nothing to compare: sizes are those asked for."""
    from mlp_interp.corpus.reducers import Batch
    from mlp_interp.models import forward_of
    from mlp_interp.superposition._noise import Noisy

    batch = Batch(texts, 0, forward_of(kind()), None)
    reducer = Noisy(sizes=(1.0,), kind="values", first=1, seed=0, moments={})
    noise = reducer._gaussian(Site("mlp_out", 1), 32, batch).flatten(0, 1)
    assert 0.7 < float(noise.square().sum(-1).mean()) < 1.3
    round_one = replace(reducer, kind="isotropic")._gaussian(Site("mlp_out", 1), 32, batch)
    assert 0.8 < float(round_one.square().sum(-1).mean()) < 1.2
    value = batch.weights.parameter(1, "W_out")
    wanted = value.T @ value / value.square().sum()
    assert float((noise.T @ noise / len(noise) * wanted).sum() / wanted.square().sum()) > 0.8


def test_tolerated_is_read_between_two_sizes(kind, texts):
    sizes = (0.1, 0.2, 0.4, 0.8)
    found = noise_tolerance(kind(), texts, sites="resid_post", layers=1, sizes=sizes)
    kl = found["kl"].values[0, 0]
    level = float(np.sqrt(kl[1] * kl[2]))
    again = noise_tolerance(kind(), texts, sites="resid_post", layers=1, sizes=sizes, level=level)
    np.testing.assert_allclose(again["tolerated"].item(), np.sqrt(0.08), rtol=1e-4)


def test_capacity_solves_its_equations():
    found = capacity(64, 2, 0.5, d_mlp=256)
    m = float(found["features"].sel(bound="parameters"))
    np.testing.assert_allclose(m * np.log2(m), 16 * 64 * 256, rtol=1e-9)
    np.testing.assert_allclose(found["log_features"][:2], [4, 2])
    assert capacity(10**6, 1, 1.0)["features"][0] == np.inf


def test_enough_text():
    found = underdetermined(3000, [0.01, 0.1])
    assert found["determined"].values.tolist() == [[True, False], [True, True]]


def test_modes_split_logits_exactly(some_model, texts):
    found = modes(some_model, texts, positions=[2, -1], k=20, nucleus=0.5)
    final = full_cache(some_model, texts)[Site("resid_post", 2).hook_name]
    unembed = mi.Unembed.of(some_model)
    n = unembed.normalize(final).double()
    directions = (unembed.weight - unembed.weight.mean(-1, keepdim=True)).double()
    p = unembed.logits(final).softmax(-1)
    for place in range(found.sizes["place"]):
        here = found.isel(place=place)
        at = int(here["prompt"]), int(here["pos"])
        z, tokens = n[at] @ directions, here["token"].values
        np.testing.assert_allclose(here["logit"], z[tokens], atol=1e-4)
        likely = p[at].argsort(descending=True)[: int(here["likely_tokens"])]
        assert float(p[at][likely[:-1]].sum()) < 0.5 <= float(p[at][likely].sum()) + 1e-6
        shortest = torch.linalg.lstsq(directions[:, likely].T, z[likely], driver="gelsd").solution
        np.testing.assert_allclose(here["forced"], (shortest @ directions)[tokens], atol=1e-4)
        np.testing.assert_allclose(here["forced"] + here["own"], here["logit"], atol=1e-5)


def test_modes_do_not_depend_on_processing(kind, texts):
    folded, raw = (modes(kind("parallel", "bridge", p), texts, k=20) for p in ("folded", "raw"))
    np.testing.assert_allclose(folded["own"], raw["own"], atol=2e-3)


def test_half_precision_is_measured_in_single(kind, texts):
    whole, half = kind("parallel"), kind("parallel", dtype=torch.bfloat16)
    options = {"layers": 1, "sizes": (0.2, 0.4)}
    kl = [noise_tolerance(model, texts, **options)["kl"] for model in (whole, half)]
    np.testing.assert_allclose(kl[1], kl[0], rtol=0.2)
    found = [modes(model, texts, k=300) for model in (whole, half)]
    np.testing.assert_allclose(found[1]["forced"] + found[1]["own"], found[1]["logit"], atol=1e-5)
    by_token = [np.take_along_axis(x.logit.values, x.token.values.argsort(1), 1) for x in found]
    np.testing.assert_allclose(by_token[1], by_token[0], atol=0.02 * float(np.abs(by_token).max()))


@pytest.mark.parametrize(("amount", "modes_found"), [(0.0, 0), (2.0, 1)])
def test_a_planted_mode_is_found_and_only_it(amount, modes_found):
    """A stream of one likely token, and a share of five tokens that point alike."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(64, 400, generator=generator)
    planted = torch.arange(10, 15)
    directions[:, planted] = directions[:, 10:11] + 0.5 * directions[:, planted]
    stream = directions[:, 3] * 0.5 + amount * directions[:, planted].mean(1) * 0.2
    rest = _modes.unforced(stream, directions, torch.tensor([3]))
    logits = stream @ directions
    one = _modes._Place(stream, rest, logits, torch.tensor([3]), directions, 40)
    found = one.clusters(cosine=0.4, least=3, own=2.0)
    assert len(found) == modes_found
    assert one.clusters(cosine=0.4, least=3, own=100.0) == []
    for group in found:
        assert sorted(one.token[group].tolist()) == planted.tolist()
        said = _modes._mode(None, one, group, torch.tensor([1.0, 2.0, 10.0, 4.0]), row=2)
        np.testing.assert_allclose(said["z"], (10 - 7 / 3) / np.std([1, 2, 4], ddof=1), rtol=1e-5)
        assert (said["size"], said["own"]) == (5, 10)
        np.testing.assert_allclose(said["mass"], logits.softmax(0)[planted].sum(), rtol=1e-5)


def test_what_is_refused(kind, texts):
    model = kind()
    for call, text in [
        (lambda: spectrum(model, texts, site="z"), "site='z'"),
        (lambda: spectrum(model, texts[:3]), "3 sequences; wanted at least 4"),
        (lambda: spectrum(model, texts, points=(4, 2)), r"points=\[4, 2\]; wanted ascending"),
        (lambda: spectrum(model, texts, points=(7,)), "from 1 to 6"),
        (lambda: spectrum(model, texts, each=0), "each=0"),
        (lambda: spectrum(model, texts, layers=3), "layers"),
        (lambda: noise_tolerance(model, texts, sites="z"), "sites='z'"),
        (lambda: noise_tolerance(model, texts, sizes=(0.2, 0.1)), "ascending"),
        (lambda: noise_tolerance(model, texts, level=0.0), "level=0.0"),
        (lambda: noise_tolerance(model, texts, kind="values"), "width"),
        (lambda: noise_tolerance(model, texts[:1], kind="shuffled"), "alone"),
        (lambda: capacity(0, 1, 0.1), "d=0"),
        (lambda: capacity(8, 9, 0.1), "k_active=9"),
        (lambda: capacity(8, 2, 0.0), "noise=0.0"),
        (lambda: underdetermined(10, 0.0), "rates=0.0"),
        (lambda: underdetermined(0, 0.1), "tokens=0"),
        (lambda: modes(model, texts, nucleus=1.0), "nucleus=1.0"),
        (lambda: modes(model, texts, cosine=0.0), "cosine=0.0"),
        (lambda: modes(model, texts, least=1), "least=1"),
        (lambda: modes(model, texts, own=-1.0), "own=-1.0"),
        (lambda: modes(model, texts, k=301), "k=301"),
        (lambda: modes(model, texts, positions=0), "none that count"),
    ]:
        with pytest.raises(ValueError, match=text):
            call()
    with pytest.raises(ValueError, match="kind='other'"):
        unchecked(noise_tolerance)(model, texts, kind="other")


def on_command_line(*arguments):
    return CliRunner().invoke(app, ["superposition", *map(str, arguments)])


def test_the_command_says_what_was_measured(tmp_path, nano):
    out, size = tmp_path / "s.nc", ["-n", 8, "-t", 24, "--seed", 1]
    done = on_command_line("--site", "resid_post", "--noise", "shuffled", *size, "-o", out)
    assert done.exit_code == 0, done.stderr
    corpus = mi.load_corpus("nano", nano, sequences=8, length=24, seed=1)
    dimensions = spectrum(nano, corpus, site="resid_post", seed=1)
    noise = noise_tolerance(nano, corpus, sites="resid_post", kind="shuffled", seed=1)
    with xr.open_datatree(out) as tree:
        np.testing.assert_allclose(tree["noise"]["kl"], noise["kl"])
        np.testing.assert_allclose(tree["spectrum"]["eigenvalue"], dimensions["eigenvalue"])
    row = done.stdout.splitlines()[3].split()
    assert row[0] == "1"
    assert abs(float(row[1]) - float(dimensions["participation"][1, -1])) < 0.1
    assert row[-1] == f"{float(noise['exponent'][0, 1]):.2f}"
    assert row[-2] == f"{float(noise['tolerated'][0, 1]):.2f}"


def test_results_can_be_kept(kind, texts, tmp_path):
    model = kind()
    for n, found in enumerate(
        [
            capacity(64, 2, 0.5),
            underdetermined(3000, 0.01),
            spectrum(model, texts, layers=1, points=(6,)),
            noise_tolerance(model, texts, layers=1, sizes=(0.1, 0.2)),
            modes(model, texts, positions=-1, k=20),
        ]
    ):
        kept: Any = mi.load(mi.save(found, tmp_path / f"{n}.nc"))
        assert kept.identical(found), found.attrs


def test_what_is_tolerated_beyond_all_sizes_is_said():
    there = xr.Dataset(
        {"tolerated": np.nan, "kl": ("size", [1e-4, 2e-4])}, coords={"size": [0.1, 0.2]}
    )
    assert superposition_text._tolerated(there, 0.01) == "> 0.2"
    assert superposition_text._tolerated(there, 0.00005) == "< 0.1"


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--site", "z"], "--site 'z'"),
        (["--noise", "shuffle"], "did you mean 'shuffled'"),
        (["-o", "s.zarr"], "--out must end in .nc"),
        (["-c", "nosuch.txt"], "--corpus 'nosuch.txt'"),
        (["--noise", "values"], "got --site post"),
    ],
)
def test_the_command_refuses(arguments, match):
    done = on_command_line(*arguments)
    assert done.exit_code == 2
    assert match in done.stderr
    assert done.stderr.count("\n") == 1


def test_names_of_the_command_are_those_that_there_are():
    assert command.SITES == _noise._SITES
    assert get_args(_noise.Kind) == command.KINDS
