"""The page of a neuron: its numbers, its figure, and that text stays text."""

import re
from contextlib import suppress
from html import unescape

import numpy as np
import pytest
from browser import needs_browser, open_page

import mlp_interp as mi
from mlp_interp import views
from mlp_interp.neurons import memories, neuron_page
from mlp_interp.views._neuron_parts import histogram
from mlp_interp.views.numbers import number, percent

HOSTILE = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def page(nano):
    corpus = mi.load_corpus("nano", nano, sequences=12, length=48)
    return neuron_page(nano, "L3N506", corpus, k=5, examples=2, ablate=4)


def test_everything_is_on_the_page(page):
    shown = views.neuron(page)
    html = unescape(shown.html())
    assert "<h1>L3N506 of nano</h1>" in html
    assert "12 sequences of 48 tokens" in html
    escaped = views.neuron(page).html().split('<script type="text/plain"')[0]
    text = unescape(re.sub(r"<[^>]*>", "", escaped))
    for prefix in ("top", "band"):
        for words in page[f"{prefix}_text"].values.reshape(-1, page.sizes["context"]):
            assert "".join(words).replace("\n", "↵") in text
    for name in ("promoted_text", "suppressed_text", "similar"):
        for word in page[name].values.ravel():
            assert str(word).replace("\n", "↵") in text
    effect, error = (
        float(page[name].sel(measure="kl", path="total", where="all"))
        for name in ("effect", "effect_se")
    )
    assert number(effect, error) in text
    assert percent(page["fraction"], page["fraction_se"]) in text


def test_the_page_names_no_server_and_carries_plotly_once(page):
    html = views.neuron(page).html()
    packed = re.findall(r"[A-Za-z0-9+/=]{10000,}", html)
    assert len(packed) == 1
    assert "://" not in re.sub(r"[A-Za-z0-9+/=]{1000,}", "", html)
    assert "default-src 'none'" in unescape(html)
    assert len(html) < 2_500_000


def test_it_saves_and_shows_itself(page, tmp_path):
    shown = views.neuron(page)
    path = shown.save(tmp_path / "n.html")
    assert path.read_text(encoding="utf-8") == shown.html()
    assert [p.name for p in tmp_path.iterdir()] == ["n.html"]
    assert repr(shown) == "Page('L3N506 of nano')"
    assert shown._repr_html_().startswith("<iframe srcdoc=")
    with pytest.raises(ValueError, match=r"must end in \.html"):
        shown.save(tmp_path / "n.pdf")
    with pytest.raises(ValueError, match="folder that exists"):
        shown.save(tmp_path / "missing" / "n.html")


def test_texts_are_shown_and_never_run(page):
    changed = page.copy(deep=True)
    for name in ("top_text", "promoted_text"):
        values = changed[name].values.copy()
        values.flat[0] = HOSTILE
        changed[name] = changed[name].copy(data=values)
    changed.attrs["data"] = HOSTILE
    html = views.neuron(changed).html()
    assert "<img" not in html
    assert html.count("&lt;/script&gt;&lt;img") >= 3


@needs_browser
def test_a_browser_draws_it_without_complaint(page, tmp_path):
    document, console = open_page(views.neuron(page).html(), tmp_path)
    assert console == []
    assert document.count('class="main-svg"') >= 1
    assert 'id="trouble" hidden' in document


def test_bins_of_the_figure_hold_what_those_of_the_page_hold(page):
    edges, shares = histogram(page)
    assert shares.sum() == pytest.approx(1)
    assert np.isclose(edges, 0).any()
    np.testing.assert_allclose(np.diff(edges), edges[1] - edges[0])
    assert shares[edges[:-1] >= -1e-9].sum() == pytest.approx(float(page["fraction"]), abs=2e-3)


@pytest.fixture(scope="module")
def found(nano):
    corpus = mi.load_corpus("nano", nano, sequences=12, length=48)
    return memories(nano, corpus, layers=3, k=5)


def test_a_neuron_is_shown_as_a_memory(page, found):
    assert "Does its value say what follows?" not in views.neuron(page).html()
    html = views.neuron(page, memories=found).html()
    section = html.split('<section id="memory">')[1].split("</section>")[0]
    text = unescape(re.sub(r"<[^>]*>", "", section))
    one = found.sel(layer=3, neuron=506)
    for name in ("agreement", "agreement_chance"):
        assert percent(one[name]) in text
    for name in ("agreement_p", "lift", "lift_chance", "lift_p"):
        assert number(one[name]) in text
    for name in ("rank", "rank_chance"):
        assert f"{float(one[name]):,g}" in text
    rows = section.split("<tbody>")[1].split("<tr>")[1:]
    assert len(rows) == 5
    first = page["top_text"].values[:, page["context"].values <= 0]
    for row, i in zip(rows, range(5), strict=True):
        cells = unescape(re.sub(r"<[^>]*>", "", row)).replace("↵", "\n")
        here = one.isel(example=i)
        assert cells.startswith("".join(first[i]))  # its triggers are the page's strongest
        assert str(here["trigger_text"].item()) == first[i][-1]
        assert str(here["next_text"].item()) in cells
        assert ("yes" in row) == (int(here["next"]) == int(one["promoted"][0]))


def test_texts_of_memories_are_shown_and_never_run(page, found):
    changed = found.copy(deep=True)
    for name in ("promoted_text", "trigger_text", "next_text"):
        changed[name].values[..., 0] = HOSTILE
    html = views.neuron(page, memories=changed).html()
    assert "<img" not in html
    assert html.count("&lt;/script&gt;&lt;img") == 3


def test_memories_of_other_texts_have_triggers_without_their_context(page, found):
    section = views.neuron(page, memories=found.assign_attrs(data="others")).html()
    section = section.split('<section id="memory">')[1].split("</section>")[0]
    assert "(others)" in section
    assert section.count('class="token here"') == 5
    assert section.split("<tbody>")[1].count("<span") == 10


def test_a_neuron_without_triggers_has_no_numbers(page, found):
    empty = found.copy(deep=True)
    for name in ("activation", "agreement", "rank", "lift"):
        empty[name].loc[{"neuron": 506}] = np.nan
    html = views.neuron(page, memories=empty).html()
    assert "It has no trigger after which a token follows." in html
    assert 'class="token here"' not in html.split('<section id="memory">')[1].split("</section>")[0]


def test_memories_without_a_variable_are_refused_or_shown_without_it(page, found):
    for name in found.variables:
        if name not in found.dims:
            with suppress(ValueError):
                views.neuron(page, memories=found.drop_vars(name))


def test_memories_of_something_else_are_refused(page, found):
    for wrong, text in (
        (found.drop_vars("lift"), "memories lacks 'lift'; wanted the Dataset of memories"),
        (
            found.assign_attrs(model="other"),
            "memories is of model='other'; wanted the page's, 'nan",
        ),
        (found.assign_coords(layer=[2]), "memories has nothing of L3N506; wanted layers with this"),
    ):
        with pytest.raises(ValueError, match=text):
            views.neuron(page, memories=wrong)


def test_a_result_of_another_kind_is_refused(page):
    with pytest.raises(ValueError, match="page lacks 'histogram'; wanted the Dataset"):
        views.neuron(page.drop_vars("histogram"))


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        (1.23456, None, "1.23"),
        (0.0, None, "0.00"),
        (-0.1234, None, "−0.123"),
        (1234.5, 60.0, "1234 ± 60"),
        (-4.087e-5, 6.24e-5, "(−4.1 ± 6.2) · 10⁻⁵"),
        (1.5e-7, None, "1.50 · 10⁻⁷"),
        (0.0626, 0.0058, "0.0626 ± 0.0058"),
        (float("nan"), 1.0, "–"),
        (1.5, float("nan"), "1.50"),
        (-0.0, None, "0.00"),
        (-0.001, 3.0, "0.0 ± 3.0"),
        (9.9999e-4, None, "0.00100"),
        (9.9996e-5, None, "1.00 · 10⁻⁴"),
        (12.3, 0.0002, "12.3000 ± 0.0002"),
        (5.0, 0.0999, "5.00 ± 0.10"),
        (5.0, 0.0, "5.00 ± 0.00"),
    ],
)
def test_numbers_have_the_digits_that_their_errors_leave(value, error, said):
    assert number(value, error) == said


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        (0.5, 0.1, "50 ± 10%"),
        (0.1234, 0.0056, "12.3 ± 0.6%"),
        (1.0, 1e-7, "100.00000 ± 0.00001%"),
        (0.5, None, "50%"),
        (-0.0, None, "0%"),
        (1.234e-7, None, "1.23 · 10⁻⁵%"),
        (1.234e-8, None, "1.23 · 10⁻⁶%"),
        (float("nan"), 0.1, "–"),
    ],
)
def test_shares_have_the_digits_that_their_errors_leave(value, error, said):
    assert percent(value, error) == said
