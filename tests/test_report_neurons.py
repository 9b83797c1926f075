"""The report's section on neurons: its numbers, its passes over the corpus, its size."""

import json
import re
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
import xarray as xr
from browser import needs_browser, open_page
from random_models import VOCABULARY

from mlp_interp import load_corpus, neurons
from mlp_interp.corpus import Corpus, _sweep
from mlp_interp.corpus.reducers import TopExamples
from mlp_interp.report import Work, build, compute, render, summarise
from mlp_interp.report.format import percent
from mlp_interp.report.sections import SECTIONS
from mlp_interp.report.sections.neurons import Neurons, measure, numbers, sentences, shown
from mlp_interp.report.sections.neurons import compute as measuring
from mlp_interp.report.sections.neurons.words import layers
from mlp_interp.report.store import Store
from mlp_interp.report.units import linked
from mlp_interp.sites import Site

HOSTILE = "</script><img src=x onerror=alert(1)>"
NAMES = ["activity", "weights", "outliers", "updates", "examples"]


@pytest.fixture(scope="module")
def corpus(nano):
    return load_corpus("nano", nano, sequences=66, length=20, seed=3)


@pytest.fixture(scope="module")
def measured(nano, corpus, tmp_path_factory):
    return measure(Work(nano, corpus, Store(tmp_path_factory.mktemp("parts"), "x"), progress=False))


@pytest.fixture(scope="module")
def cached(nano, corpus):
    """Activations of the whole corpus, kept by the library's own hooks."""
    names = [Site(name, layer).hook_name for layer in range(4) for name in ("pre", "post")]
    with torch.no_grad():
        return nano.run_with_cache(corpus.tokens, names_filter=names)[1]


@pytest.fixture(scope="module")
def whole(nano, measured, tmp_path_factory):
    """A report of neurons alone."""
    few = load_corpus("nano", nano, sequences=2, length=12)
    with pytest.MonkeyPatch.context() as patch:
        done = replace(SECTIONS["neurons"], compute=lambda work: measured)
        patch.setitem(SECTIONS, "neurons", done)
        store = Store(tmp_path_factory.mktemp("other"), "x")
        return compute(Work(nano, few, store, progress=False), ["neurons"])


def page_of(whole, found):
    made = replace(whole, found={**whole.found, "neurons": found})
    return render(made, summarise(made))


def shards(monkeypatch):
    """The shards that are reduced from now on, and how many reducers see each."""
    asked, whole = [], _sweep.reduce_shard

    def counted(forward, plan, tokens, index, tick):
        asked.append((index, len(plan.reducers)))
        return whole(forward, plan, tokens, index, tick)

    monkeypatch.setattr(_sweep, "reduce_shard", counted)
    return asked


@pytest.fixture(scope="module")
def counts(corpus):
    """All tokens but the first of each sequence, and BOS wherever it stands."""
    tokens = torch.as_tensor(np.asarray(corpus.tokens))
    counts = tokens != 0
    counts[:, 0] = False
    return counts


def test_activity_is_that_of_the_corpus(measured, cached, counts):
    """Against the activations of the whole corpus, at the tokens that count."""
    one = 1 / measured.activity.attrs["entries"]  # a value that rounding puts on zero's other side
    for layer in range(4):
        found = measured.activity.sel(layer=layer)
        pre, post = (cached[Site(name, layer).hook_name][counts] for name in ("pre", "post"))
        active = (pre > 0).double().mean(0)
        np.testing.assert_allclose(found.fraction, active, rtol=0, atol=1.01 * one)
        np.testing.assert_array_equal(found.dead, found.fraction == 0)
        np.testing.assert_allclose(found.greatest, pre.amax(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.mean_post, post.mean(0), rtol=1e-4, atol=1e-5)


def test_parts_are_those_of_the_analyses(nano, corpus, measured):
    updates = neurons.update_shares(nano, corpus, sample=measured.updates.attrs["sample"])
    assert [*measured.updates.data_vars] == [*updates.data_vars]
    for name, values in updates.data_vars.items():
        np.testing.assert_allclose(measured.updates[name], values, rtol=1e-4, atol=1e-5)
    assert measured.updates.attrs["analysis"] == "update_shares"
    weights = neurons.neuron_weights(nano, k=1)
    np.testing.assert_array_equal(measured.weights["logit_kurtosis"], weights["logit_kurtosis"])
    for label, promoted in zip(
        measured.examples["component"].values,
        measured.examples["promoted_text"].values,
        strict=True,
    ):
        site = Site.parse(str(label))
        wanted = neurons.promoted_tokens(nano, site, k=5)
        assert [*promoted] == [*wanted["promoted_text"].values]


def test_examples_are_the_largest_activations(nano, corpus, measured, cached, counts):
    """Against the activations of the whole corpus, one by one."""
    found = measured.examples
    for n, label in enumerate(found["component"].values):
        site = Site.parse(str(label))
        post = cached[site.hook_name][..., site.neuron]
        best = post.masked_fill(~counts, -torch.inf).amax(1).sort(descending=True).values[:4]
        np.testing.assert_allclose(found["activation"].values[n], best, rtol=1e-4, atol=1e-5)
        for k in range(4):
            row, pos = int(found["sequence"][n, k]), int(found["pos"][n, k])
            assert float(post[row, pos]) == pytest.approx(float(best[k]), rel=1e-4, abs=1e-5)
            assert found["text"].sel(context=0).values[n, k] == corpus.token_text(row)[pos]
            assert int(found["token"].sel(context=0)[n, k]) == int(corpus.tokens[row, pos])
    beyond = found["token"].values < 0
    assert beyond.any()
    assert (found["text"].values[beyond] == "").all()


def test_table_of_layers_against_all_activations(measured, cached, counts):
    for row in layers(measured):
        fires = cached[Site("pre", row.layer).hook_name][counts] > 0
        fraction = fires.double().mean(0).numpy()
        assert row.fraction == pytest.approx(np.median(fraction), abs=1e-4)
        assert (row.low, row.high) == pytest.approx((*np.quantile(fraction, [0.1, 0.9]),), abs=1e-3)
        assert row.dead == (fraction == 0).sum()
        assert row.always == (fraction == 1).sum()
        here = measured.activity.sel(layer=row.layer)
        assert row.predicted == pytest.approx(float(here["activation_volume"].median()))
        assert row.outliers == int((abs(here["z"]) > 3.5).sum())
        assert row.needed == int(measured.updates["needed_median"].sel(layer=row.layer))


def test_outliers_listed_fire_and_are_beyond(measured):
    far, active = measured.outliers, measured.activity
    assert 0 < far.sizes["component"] <= 12
    z = far["z"].values
    assert (abs(z) > 3.5).all()
    assert (np.diff(z) <= 0).all()
    assert (far["fraction"].values > 0).all()
    low = active["z"].where(active["fraction"] > 0)
    assert z[-1] == pytest.approx(float(low.min()))


def test_neurons_with_examples_are_extreme(measured):
    """Each of its kind the first of its layer, and no layer twice in a kind."""
    found = measured.examples
    burst = found.isel(component=(found["why"] == "fires in bursts").values)
    sites = [Site.parse(str(label)) for label in burst["component"].values]
    assert len({site.layer for site in sites}) == len(sites) == 3
    active = measured.activity
    rare = active["fraction"] < active["fraction"].median("neuron")
    bursting = rare & (active["skewness"] > 0) & (active["fraction"] > 0)
    kurtosis = active["kurtosis"].where(bursting)
    for site in sites:
        assert np.nanargmax(kurtosis.sel(layer=site.layer).values) == site.neuron
    assert sum(found["why"].values == "writes for few tokens") == 3


def test_dips_and_what_fires_often_are_no_bursts(measured):
    active = measured.activity.copy(deep=True)
    active["outlier"][:] = False
    for neuron, skewness, fraction in ((5, -9.0, 1e-4), (6, 9.0, 0.97), (7, 9.0, 1e-4)):
        active["kurtosis"][2, neuron] = 1e6 - neuron
        active["skewness"][2, neuron], active["fraction"][2, neuron] = skewness, fraction
    chosen = measuring._chosen(active, measured.weights)
    assert chosen.get("L2N7") == "fires in bursts"
    assert not {"L2N5", "L2N6"} & {n for n, why in chosen.items() if why == "fires in bursts"}
    active["skewness"][:] = -1.0
    assert "fires in bursts" not in measuring._chosen(active, measured.weights).values()


def test_who_fires_unusually_often_is_shown(nano, corpus, measured, tmp_path):
    active = measured.activity.copy(deep=True)
    active["outlier"][:] = False
    for n, z in ((5, 9.0), (6, 8.0)):
        active["z"][2, n], active["outlier"][2, n], active["fraction"][2, n] = z, True, 0.97
    found = measuring._outliers(nano, active)
    assert [*found["component"].values[:2]] == ["L2N5", "L2N6"]
    chosen = measuring._chosen(active, measured.weights)
    assert [label for label, why in chosen.items() if why == "fires unusually often"] == ["L2N5"]
    text = sentences(replace(measured, outliers=found))[0]
    assert "L2N5 is furthest above its layer, with 97.0%" in text


def test_two_passes_over_the_corpus(nano, corpus, measured, tmp_path, monkeypatch):
    asked = shards(monkeypatch)
    measure(Work(nano, corpus, Store(tmp_path, "x"), progress=False))
    examples = measured.examples.sizes["component"]
    assert asked == [(0, 4), (1, 4), (0, 1 + examples), (1, 1 + examples)]


def test_an_interrupted_pass_goes_on(nano, corpus, measured, tmp_path, monkeypatch):
    """In the middle of the second pass, then between its two results."""
    store, see = Store(tmp_path, "x"), TopExamples.see

    def interrupted(self, state, site, x, batch):
        if batch.first >= 64:
            raise KeyboardInterrupt
        see(self, state, site, x, batch)

    monkeypatch.setattr(TopExamples, "see", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure(Work(nano, corpus, store, progress=False))
    monkeypatch.setattr(TopExamples, "see", see)
    assert store.batches.is_dir()
    assert {path.name.rsplit("-", 1)[0] for path in tmp_path.glob("*.nc")} == {
        "neurons-activity", "neurons-weights", "neurons-outliers",
    }  # fmt: skip

    asked, again, get = shards(monkeypatch), Store(tmp_path, "x"), Store.get

    def stopped(self, name, compute):
        if name == "neurons/examples":
            raise KeyboardInterrupt
        return get(self, name, compute)

    monkeypatch.setattr(Store, "get", stopped)
    with pytest.raises(KeyboardInterrupt):
        measure(Work(nano, corpus, again, progress=False))
    monkeypatch.setattr(Store, "get", get)
    assert again.reused == ["neurons/activity", "neurons/weights", "neurons/outliers"]
    assert [index for index, _ in asked] == [1]

    asked.clear()
    last = Store(tmp_path, "x")
    found = measure(Work(nano, corpus, last, progress=False))
    assert asked == []
    assert last.reused == [f"neurons/{name}" for name in NAMES[:4]]
    parts, wholes = vars(found), vars(measured)
    assert [*parts] == [*wholes] == NAMES
    for name, part in parts.items():
        assert part.equals(wholes[name]), name


def test_files(nano, whole, measured, tmp_path, monkeypatch):
    monkeypatch.setattr("mlp_interp.report._build.compute", lambda *args, **options: whole)
    few = load_corpus("nano", nano, sequences=2, length=12)
    written = build(nano, few, out=tmp_path / "r.html", progress=False)
    with h5py.File(written.data) as file:
        assert {*NAMES} <= {*file["neurons"]}
    active = xr.open_dataset(written.data, group="neurons/activity", engine="h5netcdf")
    np.testing.assert_array_equal(active["fraction"], measured.activity["fraction"])
    assert active.attrs["model"] == "nano"
    told = json.loads(written.numbers.read_text(encoding="utf-8"))["neurons"]
    assert told["layers"]["2"]["dead"] == int(active["dead"].sel(layer=2).sum())
    assert told["fraction_median"] == pytest.approx(float(active["fraction"].median()))
    assert [*told["outliers"]] == [*measured.outliers["component"].values]
    assert [*told["examples"]] == [*measured.examples["component"].values]
    for sentence in sentences(measured):
        assert linked(sentence) in written.page.read_text(encoding="utf-8")
    assert written.page.stat().st_size < 4_000_000


def test_the_section_holds_tables_figures_and_texts(whole, measured):
    html = page_of(whole, measured)
    section = html[html.index('<section id="neurons">') :].partition("</section>")[0]
    assert section.count('class="plot"') == 5
    assert section.count("<summary>") == 1 + measured.examples.sizes["component"]
    rows = re.findall(r'<tr><th scope="row">(?:<a[^>]*>)?(\w+)(?:</a>)?</th>', section)
    assert rows == [*"0123", *measured.outliers["component"].values]
    positive = int((measured.examples["activation"] > 0).sum())
    assert section.count('class="choice"') == positive
    fires = int((measured.examples["activation"] > 0).any("example").sum())
    assert section.count('class="legend"') == fires
    for label in measured.examples["component"].values:
        assert re.search(rf'<summary><a class="unit"[^>]*>{label}</a>', section)


@needs_browser
def test_tokens_are_text(whole, measured, tmp_path):
    bad = replace(measured, outliers=measured.outliers.copy(), examples=measured.examples.copy())
    for part, names in (
        (bad.outliers, ["promoted_text"]),
        (bad.examples, ["promoted_text", "suppressed_text", "text"]),
    ):
        for name in names:
            part[name] = part[name].copy(data=np.full(part[name].shape, HOSTILE, dtype=object))
    html = page_of(whole, bad)
    dom, console = open_page(html.replace("<details>", "<details open>"), tmp_path)
    visible = re.sub(r"<script.*?</script>", "", dom, flags=re.DOTALL)
    assert not console, console
    assert "<img" not in visible
    assert "&lt;img src=x onerror" in visible


def test_without_tokenizer(kind, tmp_path):
    model = kind("parallel")
    tokenizer, model.tokenizer = model.tokenizer, None
    try:
        rows = torch.randint(VOCABULARY, (3, 12), generator=torch.Generator().manual_seed(0))
        few = Corpus(rows, {"data": "random"})
        # Of these no words are shown, and they take longest.
        options = {"skip": ["importance", "norms", "ranges"], "progress": False}
        written = build(model, few, out=tmp_path / "r.html", prompts=2, **options)
    finally:
        model.tokenizer = tokenizer
    section = written.page.read_text(encoding="utf-8").split('<section id="neurons">')[1]
    assert re.search(r'<span class="word">#\d+</span>', section)
    examples = xr.open_dataset(written.data, group="neurons/examples", engine="h5netcdf")
    token, text = (examples[name].sel(context=0).values.ravel() for name in ("token", "text"))
    assert [*text] == [f"#{each}" if each >= 0 else "" for each in token]


def test_shortest_sequences(nano, tmp_path):
    few = load_corpus("nano", nano, sequences=1, length=2)
    found = measure(Work(nano, few, Store(tmp_path, "x"), progress=False))
    assert shown(found)["layers"]
    assert all("nan" not in sentence for sentence in sentences(found))


def test_without_outliers(measured, whole, tmp_path):
    none = measured.outliers.isel(component=slice(0))
    active = measured.activity.assign(outlier=measured.activity["outlier"] & False)
    without = Neurons(active, measured.weights, none, measured.updates, measured.examples)
    assert "None does: no neuron is beyond 3.5" in page_of(whole, without)
    assert "0 are outliers of their layer" in sentences(without)[0]
    assert numbers(without)["outliers"] == {}
    store = Store(tmp_path, "y")
    kept = store.get("neurons/outliers", lambda: none)
    xr.testing.assert_equal(store.get("neurons/outliers", lambda: kept), none)


def test_a_large_model_stays_small(measured):
    """36 layers of 10,000 neurons, 2,048 positions."""
    picks = np.random.default_rng(0).integers(768, size=10_000)
    deep = np.arange(36) % 4
    active = measured.activity.isel(layer=deep, neuron=picks, pos=np.arange(2048) % 19)
    active = active.assign_coords(layer=range(36), neuron=range(10_000), pos=range(2048))
    updates = measured.updates.isel(layer=deep).assign_coords(layer=range(36))
    big = replace(measured, activity=active, updates=updates)
    section = shown(big)
    names = ("fractions", "predicted", "norms", "position", "updates")
    assert sum(len(section[name].json) for name in names) < 1_500_000
    assert max(section[name].height for name in names) < 1_200
    assert len(section["layers"]) == 36
    assert section["some_neurons"] == (
        "500 of each layer's 10,000 neurons are drawn, at random. 8 of 36 layers are drawn."
    )
    assert section["some_places"].startswith("256 of 2,048 positions are drawn.")
    assert "Every layer is in the table" in section["some_layers"]
    assert re.search(r"^[\d,]+ more are in the netCDF file\.$", section["more"])
    small = shown(measured)
    assert small["some_layers"] == small["some_neurons"] == small["some_places"] == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0%"), (1.0, "100%"), (0.00002, "below 0.01%"), (0.99999, "above 99.99%"),
        (0.0012, "0.12%"), (0.034, "3.4%"), (0.51, "51%"), (0.953, "95.3%"),
        (0.9991, "99.91%"), (float("nan"), "unknown"),
    ],
)  # fmt: skip
def test_shares_read_well(value, text):
    assert percent(value) == text
