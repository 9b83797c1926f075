"""Views: what goes into them, what a browser makes of them, and that text stays text."""

import json
import re

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
import pytest
import torch
import xarray as xr
from browser import PROGRAM, needs_browser, open_page

from mlp_interp import views
from mlp_interp.views import _page
from mlp_interp.views._page import as_numbers
from mlp_interp.views.bundle import UNPACK, plotly, to_json

HOSTILE = "</script><img src=x onerror=alert(1)>"
TOKENS = ["<|endoftext|>", " Mary", HOSTILE, "&lt;", "<!--", "\u2028", "<b>"]
CAUSAL = np.tril(np.full((2, 7, 7), 0.5))


def data_of(html):
    return json.loads(re.search(r'view-data">(.*?)</script>', html, re.DOTALL)[1])


def test_values_become_plain_rounded_numbers():
    for values in (torch.tensor([0.123456, -2.0]), np.float32([0.123456, -2.0]), [0.123456, -2]):
        (row,) = views.tokens(["a", "b"], values).rows.values()
        assert row == [0.1235, -2.0]
        assert all(type(value) is float for value in row)


def test_rounding_keeps_four_digits_at_any_size():
    rounded = as_numbers("x", [123456.0, 1.23456e-9, 0.0, -9.99996], 1)
    np.testing.assert_allclose(rounded, [123500.0, 1.235e-9, 0.0, -10.0], rtol=1e-12)


def test_the_unit_is_that_of_the_values():
    values = xr.DataArray([0.5], attrs={"unit": "nats"})
    assert "</span> nats</span>" in views.tokens(["a"], values).fragment()
    assert "</span> bits</span>" in views.tokens(["a"], values, unit="bits").fragment()


@needs_browser
@pytest.mark.parametrize(
    ("values", "options", "said"),
    [
        ([1, -4], {}, ("−4.00", "+4.00", "rgba(33, 102, 172, 0.176)")),
        ([1, 4], {}, ("0", "4.00", "rgba(33, 102, 172, 0.176)")),
        ([0, 0], {}, ("0", "1.00", "rgba(33, 102, 172, 0)")),
        ([1, 4], {"limit": 2.0}, ("0", "2.00", "rgba(33, 102, 172, 0.35)")),
    ],
)
def test_the_legend_says_what_full_colour_is(values, options, said, tmp_path):
    dom, console = open_page(views.tokens(["a", "b"], values, **options).html(), tmp_path)
    assert not console, console
    ends = [re.search(f'class="{end}">([^<]*)<', dom)[1] for end in ("least", "most")]
    assert (*ends, re.search(r"background: (rgba[^;]*);", dom)[1]) == said


def test_a_choice_holds_all_values():
    rows = {"x": [1, 2, 3], "y": [-4, 5, 6]}
    choice = views.token_values(["a", "", "c"], rows, chosen="y", unit="nats")
    assert choice.rows == rows
    fragment = choice.fragment()
    assert re.findall(r"<option[^>]*>[xy]", fragment) == ["<option>x", "<option selected>y"]
    assert json.loads(re.search(r'json">(.*?)</script>', fragment)[1])["values"] == [*rows.values()]
    assert re.findall(r"<bdi[^>]*>(.*?)</bdi>", fragment) == ["a", "∅", "c"]


def test_the_mask_follows_the_pattern():
    assert views.attention(TOKENS, CAUSAL).props["maskUpperTri"] is True
    assert views.attention(TOKENS, CAUSAL.transpose(0, 2, 1)).props["maskUpperTri"] is False


def test_json_in_a_script_reads_back_and_holds_no_markup():
    text = to_json({"tokens": TOKENS})
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text)["tokens"] == TOKENS


def test_the_page_names_no_server():
    html = views.attention(TOKENS, CAUSAL).html()
    assert "http" not in re.sub(r"[A-Za-z0-9+/=]{1000,}", "", html)
    assert html.count('id="circuitsvis"') == 1
    assert len(html) < 600_000


def test_fragments_leave_the_bundle_to_the_page_and_close_what_they_open():
    fragment = views.attention(TOKENS, CAUSAL, caption=HOSTILE).fragment()
    assert len(fragment) < 3_000
    for tag in ("figure", "div", "script", "figcaption"):
        assert fragment.count(f"<{tag}") == fragment.count(f"</{tag}>") == 1
    assert "<img" not in fragment


def test_attention_names_blank_tokens():
    shown = data_of(views.attention([" Mary", "\n", "  "], CAUSAL[:, :3, :3]).fragment())["tokens"]
    assert shown == [" Mary", "↵", "··"]


@needs_browser
def test_text_is_text_and_views_share_a_page(tmp_path):
    """Four views in one notebook page: each draws, none injects, nothing is asked of a network."""
    shown = [
        views.tokens(TOKENS, range(7), caption=HOSTILE),
        views.token_values(TOKENS, {"one": range(7), "<i>two</i>": range(7)}),
        views.attention(TOKENS, CAUSAL, names=["L0H0", "<i>"]),
        views.tokens([" again"], [1.0]),
    ]
    for number, view in enumerate(shown):
        dom, console = open_page(view.html(), tmp_path)
        page = re.sub(r"<script.*?</script>", "", dom, flags=re.DOTALL)
        assert not console, (number, console)
        assert "<img" not in page
        assert "<b>" not in page
        assert "<i>" not in page
        if number < 2:
            assert (
                "rgba(33, 102, 172, 0.7)" in page or "0.698" in page
            )  # the largest, by the script
            assert page.count('title="6 "') == 1
        if number < 2:
            assert "&lt;/script&gt;&lt;img" in page
            assert "&amp;lt;" in page
        if number == 2:
            assert page.count("<canvas") == 3


@needs_browser
def test_frames_in_one_page(tmp_path):
    """What Jupyter puts on a page: the frames stay apart, and fit what they show."""
    view = views.tokens(TOKENS, range(7), caption=HOSTILE)
    report = (
        "<script>setTimeout(() => { document.title = [...document.querySelectorAll('iframe')]"
        ".map(f => f.contentDocument.querySelectorAll('.token').length"
        " + ':' + f.contentDocument.images.length + ':' + f.style.height).join(' '); }, 3000)"
        "</script>"
    )
    dom, console = open_page(view._repr_html_() * 3 + report, tmp_path)
    assert not console, console
    seen = re.search(r"<title>(.*?)</title>", dom)[1].split()
    assert [part.split(":")[:2] for part in seen] == [["7", "0"]] * 3
    heights = [int(part.split(":")[2].removesuffix("px")) for part in seen]
    assert all(30 < height < 160 for height in heights), heights  # lower than it begins


@pytest.fixture
def shared(monkeypatch):
    """The scripts in a notebook; all is as it was afterwards."""
    before = pio.renderers.default
    monkeypatch.setattr(_page, "sharing", False)
    yield views.share()._repr_html_()
    pio.renderers.default = before


@needs_browser
def test_figures_share_one_script(shared, tmp_path):
    """Figures in the notebook's page, and pages in frames."""
    marks = go.Scatter(x=np.arange(3.0), y=[1, None, np.nan], text=HOSTILE)
    figure = pio.renderers["mlp_interp"].to_mimebundle(go.Figure(marks).to_dict())["text/html"]
    page = views.Page(
        "x",
        f'<script id="plotly">{plotly()}</script><script>{UNPACK}'
        'runPacked("plotly").then(() => Plotly.newPlot(document.body, [{ y: [1] }]))</script>',
    )
    assert len(figure) + len(page._repr_html_()) < 20_000
    ask = "d => d.querySelectorAll('.js-plotly-plot').length"
    count = (
        f"<script>setTimeout(() => {{ document.title = [document, document.querySelector('iframe')"
        f".contentDocument].map({ask}).join(' '); }}, 9000)</script>"
    )
    found = [figure, re.sub(r"figure-\w+", "other", figure), page._repr_html_(), count]
    dom, console = open_page("".join([shared, *found]), tmp_path)
    assert not console, console
    assert re.search(r"<title>(\d.*?)</title>", dom)[1] == "2 1"
    dom, _ = open_page("".join(found), tmp_path)
    assert dom.count("mi.views.share() again") >= 2


def test_views_share_one_script(shared, tmp_path):
    """Each is small, draws what it drew before, and says so where the script is not there."""
    view = views.attention(TOKENS, CAUSAL)
    alone = view.html()
    frame = view._repr_html_()
    assert len(frame) < 10_000 < len(shared)
    assert view.html() == alone
    if PROGRAM is None:
        return
    count = (
        "<script>setTimeout(() => { document.title = [...document.querySelectorAll('iframe')]"
        ".map(f => f.contentDocument.querySelectorAll('canvas').length"
        " + ':' + f.contentDocument.body.innerText.includes('share()')).join(' '); }, 12000)"
        "</script>"
    )
    dom, console = open_page(shared + frame * 3 + count, tmp_path)
    assert not console, console
    assert re.search(r"<title>(.*?)</title>", dom)[1].split() == ["3:false"] * 3
    dom, _ = open_page(frame + count, tmp_path)
    assert re.search(r"<title>(.*?)</title>", dom)[1] == "0:true"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: views.tokens(["a", "b"], [1.0]), "1 values, 2 tokens"),
        (lambda: views.tokens([], []), "1 to 2,000 tokens, got 0"),
        (lambda: views.tokens(["a"] * 2001, [0.0] * 2001), "got 2,001"),
        (lambda: views.tokens(["a"], [float("nan")]), "finite"),
        (lambda: views.tokens(["a"], [[1.0]]), "1 axes"),
        (lambda: views.tokens(["a"], [1.0], limit=0.0), "limit must be positive"),
        (lambda: views.tokens("ab", [1.0, 2.0]), "list of strings"),
        (lambda: views.token_values(["a"], {}), "at least one"),
        (
            lambda: views.token_values(["a"], {"x": [1]}, chosen="y"),
            "chosen='y'; wanted one",
        ),
        (lambda: views.token_values(["a"], {"x": [1, 2]}), "2 values, 1 tokens"),
        (lambda: views.attention(["a"], [[[1.0, 0.0]]]), r"\[head, 1, 1\]"),
        (lambda: views.attention(["a"], [[[1.0]]], names=["x", "y"]), "2 names, 1 heads"),
        (lambda: views.attention(["a"] * 256, np.zeros((9, 256, 256))), "fewer of the 9 heads"),
    ],
)
def test_bad_input_is_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
