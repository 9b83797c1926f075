"""The report: what it says, that it stands by itself, and that a run can be interrupted."""

import contextlib
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
from browser import needs_browser, open_page

from mlp_interp import load_model
from mlp_interp.corpus import load_corpus
from mlp_interp.report import Work, build, compute, render, sections, summarise
from mlp_interp.report.format import with_error
from mlp_interp.report.progress import Forecast
from mlp_interp.report.sections import heads, importance, lens, memories, neurons, norms, ranges
from mlp_interp.report.store import Store
from mlp_interp.report.units import commands

HOSTILE = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def model():
    return load_model("nano", device="cpu")


@pytest.fixture(scope="module")
def corpus(model):
    return load_corpus("nano", model, sequences=4, length=24, seed=3)


@pytest.fixture(scope="module")
def computed(model, corpus, tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("parts"), "x")
    return compute(Work(model, corpus, store, prompts=3, progress=False))


@pytest.fixture
def calls(computed, monkeypatch):
    """The long analyses, done already; the list tells which were asked for."""
    asked = []

    def done(name, result):
        return lambda *args, **options: asked.append(name) or result

    def of_kind(*args, kind, **options):
        return done(f"ranges/{kind}", computed.found["ranges"][kind])()

    found = computed.found
    monkeypatch.setattr(norms, "norms", done("norms", found["norms"]))
    monkeypatch.setattr(importance, "subupdate_importance", done("importance", found["importance"]))
    monkeypatch.setattr(ranges, "ablate_ranges", of_kind)
    for section in (lens.LENS, heads.HEADS, neurons.NEURONS, memories.MEMORIES):
        measured = replace(section, compute=done(section.name, found[section.name]))
        monkeypatch.setitem(sections.SECTIONS, section.name, measured)
    return asked


@pytest.fixture(scope="module")
def written(model, corpus, computed, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "report.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlp_interp.report._build.compute", lambda *args, **options: computed)
        return build(model, corpus, out=out, prompts=3, progress=False)


def with_effects(content, **rows):
    """The same content with other effects: label=(direct, total)."""
    importance = content.found["importance"].sel(component=list(rows)).copy(deep=True)
    for label, (direct, total) in rows.items():
        values = {"kl_direct": direct, "kl_total": total, "kl_later": total - direct}
        errors = {"kl_direct_se": 0.01, "kl_total_se": 0.01, "kl_later_se": 0.02}
        for name, value in (values | errors).items():
            importance[name].loc[{"component": label}] = value
    return replace(content, found={**content.found, "importance": importance})


def only(content, *names):
    """The same content with these sections alone: a page of all takes seconds."""
    return replace(content, found={name: content.found[name] for name in names})


def told(content):
    """What the report says of importance, in its summary and its section."""
    return [
        *summarise(content).sentences,
        *sections.SECTIONS["importance"].sentences(content.found["importance"]),
    ]


def test_three_files_and_nothing_else(written):
    assert {path.name for path in written.page.parent.iterdir()} == {
        "report.html",
        "report.nc",
        "report.json",
    }
    assert written.page.stat().st_size < 4_000_000


def test_data_holds_every_result(written):
    groups = set(xr.open_datatree(written.data, engine="h5netcdf").groups)
    wanted = {"/check", "/norms", "/importance", "/ranges/mlp", "/ranges/attn", "/ranges/both"}
    wanted |= {f"/attribution/ioi/{level}" for level in ("component", "head", "neuron", "sources")}
    assert wanted <= groups
    importance = xr.open_dataset(written.data, group="importance", engine="h5netcdf")
    assert importance["kl_total"].attrs["unit"] == "nats"
    assert importance.attrs["model"] == "nano"


def test_examples_say_where_their_prompts_come_from(computed):
    example = computed.found["attribution"][0]
    for shares in (*example.shares.values(), example.sources):
        assert (shares.attrs["task"], shares.attrs["seed"]) == ("ioi", 0)
        assert shares.attrs["split"] == "heldout"


def test_numbers_are_those_of_the_data(written):
    numbers = json.loads(written.numbers.read_text(encoding="utf-8"))
    importance = xr.open_dataset(written.data, group="importance", engine="h5netcdf")
    for label, row in numbers["importance"]["sub_updates"].items():
        assert row["total"] == pytest.approx(float(importance["kl_total"].sel(component=label)))
    best = str(importance["component"].values[np.argmax(importance["kl_total"].values)])
    assert numbers["importance"]["most_important_total"] == best
    assert best in written.summary.sentences[0]


def test_every_part_is_there_in_order(written):
    page = written.page.read_text(encoding="utf-8")
    anchors = re.findall(r'<section id="(\w+)">', page)
    assert anchors == [
        "answer", *sections.SECTIONS, "card",
    ]  # fmt: skip
    assert page.count('id="plotly"') == page.count('id="circuitsvis"') == 1


def test_no_reference_leaves_the_page(written):
    page = written.page.read_text(encoding="utf-8")
    packed = re.compile(r"[A-Za-z0-9+/=]{1000,}")
    assert not re.findall(r"(?:https?:)?//[a-z]", packed.sub("", page).replace("// ", ""))
    assert "default-src &#39;none&#39;" in page


@needs_browser
def test_the_page_draws_itself(written, tmp_path):
    dom, console = open_page(written.page.read_text(encoding="utf-8"), tmp_path)
    assert not console, console
    # Importance, scatter, norms, three ranges, lenses, four of the first example, heads, three of
    # neurons and two of memories.
    assert dom.count('class="plot js-plotly-plot"') == 17
    assert "layer 4 after " in dom  # the grid of layers, by its script
    assert dom.count('class="ramp') >= 3  # the legends of coloured texts
    assert re.search(r"rgba\((33, 102, 172|178, 24, 43), 0\.(698|7)\)", dom)  # the excerpt
    assert 'aria-label=""' not in dom


@needs_browser
def test_names_of_heads_and_neurons_tell_their_commands(written, tmp_path):
    """In words, tables and figures; by what the model was loaded."""
    page = written.page.read_text(encoding="utf-8")
    linked = re.findall(r'<a class="unit" href="#more">(L\d+[HN]\d+)</a>', page)
    assert {label[2] for label in linked} == {"H", "N"}
    assert '#more">L0H0</a>\u00a0→' in page.replace("&nbsp;", "\u00a0")
    clicked = (
        "<script>setTimeout(() => { const told = document.getElementById('more'), said = [];"
        "for (const unit of ['H', 'N']) { [...document.querySelectorAll('a.unit')]"
        ".find((x) => x.textContent.includes(unit)).click(); said.push(told.textContent); }"
        "const bars = [...document.querySelectorAll('.plot')]"
        ".find((x) => x.data?.[0].y?.[0] === {});"
        "bars.emit('plotly_click', { points: [{ y: bars.data[0].y[0], x: 1 }] });"
        "document.title = [...said, told.textContent, told.hidden].join('|'); }, 9000)</script>"
    )
    strongest = re.search(r"and neuron <a[^>]*>(\w+)", page)[1]
    clicked = clicked.replace("{}", json.dumps(strongest))
    dom, console = open_page(page.replace("</body>", f"{clicked}</body>"), tmp_path)
    assert not console, console
    head, neuron, bar, hidden = re.search(r"<title>(.*?)</title>", dom)[1].split("|")
    assert re.fullmatch(r"mlp-interp heads L\d+H\d+ --model nano", head)
    assert re.fullmatch(r"mlp-interp neuron L\d+N\d+ --model nano", neuron)
    assert bar == f"mlp-interp neuron {strongest} --model nano"
    assert hidden == "false"


@pytest.mark.parametrize(
    ("attrs", "head"),
    [
        ({"model": "pythia-70m"}, "mlp-interp heads {} --model pythia-70m"),
        (
            {"model": "a b", "revision": "step1"},
            "mlp-interp heads {} --model 'a b' --revision step1",
        ),
        ({"model": "x", "processing": "raw"}, "mlp-interp heads {} --model x --processing raw"),
        ({"model": "memory"}, "mlp_interp.heads.roles(model)"),
        ({"model": "x", "processing": "as loaded by the user"}, "mlp_interp.heads.roles(model)"),
    ],
)
def test_commands_load_the_model_that_was_measured(attrs, head):
    known = {"revision": "main", "processing": "folded", **attrs}
    assert commands(known)["head"].startswith(head)


@needs_browser
def test_the_page_prints_whole(written, tmp_path):
    """Everything is opened and drawn for paper, and all is as it was afterwards."""
    page = written.page.read_text(encoding="utf-8")
    count = "document.querySelectorAll({}).length"
    counts = [count.format(f"'{x}'") for x in (".js-plotly-plot", "details:not([open])", "canvas")]
    printed = (
        "<script>setTimeout(() => { dispatchEvent(new Event('beforeprint')); "
        f"document.title = [{', '.join(counts)}].join(' '); "
        "dispatchEvent(new Event('afterprint')); }, 9000)</script>"
    )
    dom, console = open_page(page.replace("</body>", f"{printed}</body>"), tmp_path)
    assert not console, console
    figures, folded, attention = map(int, re.search(r"<title>(.*?)</title>", dom)[1].split())
    assert (figures, folded) == (page.count('class="plot"'), 0)
    assert figures >= 25
    assert attention >= 6
    # Chromium tells of what was folded by an empty attribute.
    assert dom.count("<details open") == page.count("<details open")
    assert 'class="paper"' not in dom


@needs_browser
def test_text_of_the_corpus_is_text(computed, tmp_path):
    excerpt = computed.found["excerpt"]
    tokens = [HOSTILE, *excerpt.tokens[1:]]
    example = computed.found["attribution"][0]
    example = replace(example, tokens=[HOSTILE, *example.tokens[1:]], answer=HOSTILE, foil="<b>x")
    found = computed.found["lens"]
    grid, best = found.grid.copy(deep=True), computed.found["memories"].best.copy(deep=True)
    grid["top_text"][:] = HOSTILE
    best["text"][:] = HOSTILE
    bad = replace(
        computed,
        corpus={**computed.corpus, "data": HOSTILE},
        found={
            **computed.found,
            "excerpt": replace(excerpt, tokens=tokens),
            "attribution": [example],
            "lens": replace(found, grid=grid),
            "memories": replace(computed.found["memories"], best=best),
        },
        notes=[HOSTILE],
    )
    page = render(bad, summarise(bad)).replace("<details>", "<details open>")
    dom, console = open_page(page, tmp_path)
    shown = re.sub(r"<script.*?</script>", "", dom, flags=re.DOTALL)
    assert not console, console
    assert "<img" not in shown
    assert shown.count("&lt;img src=x onerror=alert(1)&gt;") >= 4


def test_headline_tells_both_ways(computed):
    made = with_effects(computed, **{"0.mlp": (0.5, 4.0), "1.attn": (0.9, 1.0)})
    summary = summarise(made)
    assert "most important in total is 0.mlp" in summary.sentences[0]
    assert "4.000 ± 0.010 nats" in summary.sentences[0]
    assert "it is 1.attn with 0.900 ± 0.010 nats" in summary.sentences[1]
    assert "72% of the total effect" in summary.sentences[2]
    assert "most of it from 0.mlp (3.500 ± 0.020 of its 4 nats)" in summary.sentences[2]
    assert summary.numbers["importance"]["share_through_later_layers"] == pytest.approx(3.6 / 5)


def test_headline_tells_of_repair(computed):
    made = with_effects(computed, **{"0.mlp": (2.0, 1.0), "1.attn": (0.5, 0.6)})
    text = " ".join(told(made))
    assert "Later layers make up for what is removed" in text
    assert "56% of itself smaller" in text
    assert (
        "make up most for the removal of 0.mlp: the prediction changes by 2 nats (KL) directly and "
        "by 1 in total, 1.000 ± 0.020 less"
    ) in text
    assert "loss" not in text


def test_repair_is_told_by_the_error_of_the_difference(computed):
    """Direct and total rise and fall together over sequences; each alone may be far less sure."""
    made = with_effects(computed, **{"0.mlp": (2.0, 1.9), "1.attn": (0.5, 0.6)})
    for name in ("kl_direct_se", "kl_total_se"):
        made.found["importance"][name][:] = 1.0
    assert "make up most" in " ".join(told(made))
    for error in (0.06, float("nan")):
        made.found["importance"]["kl_later_se"][:] = error
        assert "make up most" not in " ".join(told(made))


def test_most_is_more_than_half(computed):
    labels = [label for label in computed.found["importance"].component.values if label != "embed"][
        :3
    ]
    made = with_effects(computed, **dict.fromkeys(labels, (1.0, 2.0)))
    text = summarise(made).sentences[2]
    assert "the largest part from" in text
    assert "most of it" not in text


def test_the_table_shows_the_error_of_the_difference(computed):
    made = with_effects(computed, **{"0.mlp": (0.5, 4.0), "1.attn": (1.0, 0.9)})
    page = render(only(made, "importance"), summarise(made))
    assert "+3.500 ± 0.020" in page
    assert "−0.100 ± 0.020" in page


def test_headline_without_any_effect(computed):
    made = with_effects(computed, **{"0.mlp": (0.0, 0.0), "1.attn": (0.0, 0.0)})
    assert "Removing sub-updates has no measurable effect." in summarise(made).sentences


def test_rounding_in_the_last_layer_is_no_effect(computed):
    rows = {row.label: row for row in importance.rows(computed.found["importance"])}
    assert rows["3.mlp"].later == rows["3.attn"].later == 0.0


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (6.7812, 0.168, "6.78 ± 0.17"),
        (0.0261, 0.00494, "0.0261 ± 0.0049"),
        (1234.5, 78.9, "1,234 ± 79"),
        (0.5, float("nan"), "0.5"),
        (1e-9, 1e-10, "1.00e-09 ± 1.0e-10"),
    ],
)
def test_values_are_as_long_as_their_errors(value, error, text):
    assert with_error(value, error) == text


def test_an_interrupted_run_goes_on_where_it_stopped(model, corpus, calls, tmp_path, monkeypatch):
    out, whole = tmp_path / "r.html", ranges.ablate_ranges
    options = {"out": out, "only": ["importance", "norms", "ranges", "lens"], "progress": False}

    def interrupted(*args, kind, **options):
        if kind == "attn":
            raise KeyboardInterrupt
        return whole(model, corpus, kind=kind)

    monkeypatch.setattr(ranges, "ablate_ranges", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(model, corpus, **options)
    kept = tmp_path / "r.html.parts"
    assert sorted(path.name.rsplit("-", 1)[0] for path in kept.iterdir()) == [
        "importance", "norms", "ranges-mlp",
    ]  # fmt: skip
    assert not out.exists()

    monkeypatch.setattr(ranges, "ablate_ranges", whole)
    calls.clear()
    written = build(model, corpus, **options)
    assert written.reused == ["importance", "norms", "ranges/mlp"]
    assert calls == ["ranges/attn", "ranges/both", "lens"]
    assert not kept.exists()


def test_some_sections(model, corpus, calls, tmp_path):
    """Only what is asked for is computed, and the page does without the rest."""
    written = build(model, corpus, out=tmp_path / "r.html", only=["norms"], command="me <now>",
                    progress=False)  # fmt: skip
    assert calls == ["norms"]
    page = written.page.read_text(encoding="utf-8")
    assert re.findall(r'<section id="(\w+)">', page) == ["answer", "norms", "card"]
    assert "me &lt;now&gt;" in page
    assert re.search(r"<dt>time</dt><dd>[\d.]+ s: norms [\d.]+ s</dd>", page)
    assert re.search(r"memory at its peak</dt><dd>[\d.]+ GB", page)
    assert sections.chosen(None, ["ranges"]) == tuple(n for n in sections.SECTIONS if n != "ranges")
    assert sections.chosen(["neurons", "norms"]) == ("norms", "neurons")


def test_ranges_of_deep_models_cost_about_what_importance_does(corpus, tmp_path):
    """Thirty layers: blocks of layers, and a share of the sequences."""
    deep = SimpleNamespace(n_layers=30, d_model=576, d_mlp=1536, d_vocab=49152)
    rows = SimpleNamespace(tokens=torch.zeros(64, 16))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlp_interp.models.Weights.of", lambda model: deep)
        work = Work(None, rows, Store(tmp_path, "x"))
        blocks, sequences = ranges._plan(work)
        cost = sections.SECTIONS["importance"].cost(work)
        assert blocks == 12
        assert 16 < sequences <= 64
        assert ranges._cost(work) <= 2.01 * cost
        deep.n_layers, deep.d_vocab = 96, 1000
        assert ranges._plan(work)[1] <= 64
        deep.n_layers, deep.d_vocab = 4, 49152
        assert ranges._plan(work) == (4, 64)


def test_what_was_left_out_of_ranges_is_said(computed):
    one = computed.found["ranges"]["mlp"]
    assert ranges._measured(one) == ""
    some = one.assign_coords(end=[2, 5, 8, 11]).assign_attrs(sequences_of=9)
    text = ranges._measured(some)
    assert "Of the 78 ranges of 12 layers, 10 are measured" in text
    assert "the first 4 of 9 sequences" in text


def test_zeros_and_digests_are_folded_away(computed):
    made = replace(
        computed, corpus={"data": "x", "documents_bad": 0, "seed": 3, "sha256": "a" * 64}
    )
    page = render(only(made, "norms"), summarise(made))
    seen, folded = page.split("Digests, and what there was none of")
    assert "<dt>seed</dt><dd>3</dd>" in seen
    assert "<dt>documents bad</dt><dd>0</dd>" in folded
    assert "a" * 64 in folded


def test_the_forecast_goes_forward(capsys):
    with Forecast({"a": 2.0, "b": 6.0}, shown=True) as forecast:
        forecast.begin("a")
        forecast.part(0.5, 1.0)(0.5)
        assert forecast.bar.n == pytest.approx(1.5)
        forecast.begin("b")
        assert forecast.bar.n == pytest.approx(2.0)
    assert forecast.bar.n == pytest.approx(8.0)
    with contextlib.suppress(KeyboardInterrupt), Forecast({"a": 2.0}, shown=True) as stopped:
        stopped.begin("a")
        stopped.part()(0.5)
        raise KeyboardInterrupt
    assert stopped.bar.n == pytest.approx(1.0)
    assert "left, b" in capsys.readouterr().err


def test_parts_of_other_runs_stay(tmp_path):
    mine, other = Store(tmp_path / "p", "a"), Store(tmp_path / "p", "b")
    result = xr.Dataset({"x": 1.0})
    for store in (mine, other):
        store.get("norms", lambda: result)
    mine.remove()
    assert [path.name for path in (tmp_path / "p").iterdir()] == ["norms-b.nc"]


def test_prompts_of_the_corpus_where_no_task_fits(model, corpus, tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise ValueError("no such words")

    for task in ("ioi", "facts", "agreement"):
        monkeypatch.setattr(f"mlp_interp.prompts.{task}", refuse)
    work = Work(model, corpus, Store(tmp_path, "x"), prompts=3, progress=False)
    found = compute(work, ["attribution"])
    examples = found.found["attribution"]
    assert [example.name for example in examples] == ["corpus"]
    assert len(found.notes) == 3
    page = render(found, summarise(found))
    assert "no such words" in page
    shares = examples[0].shares
    for level in ("head", "neuron"):
        np.testing.assert_allclose(
            shares[level].sum("component"), shares["component"].sum("component"), atol=1e-3
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": "report.pdf"}, "must end in .html"),
        ({"out": "no/such/folder/r.html"}, "folder that exists"),
        ({"prompts": 0}, "must be positive"),
        ({"batch_size": 0}, "must be positive"),
        ({"only": ["norm"]}, "only='norm'; wanted sections among importance"),
        ({"skip": ["x"]}, "skip='x'; wanted"),
        ({"only": ["norms"], "skip": ["norms"]}, "leave no section"),
    ],
)
def test_bad_options_fail_before_the_work(model, corpus, options, message):
    with pytest.raises(ValueError, match=message):
        build(model, corpus, **options)
