"""Texts side by side: what is marked, that text stays text, and that no network is asked."""

import re
from html import unescape

import numpy as np
import pytest
import xarray as xr
from browser import needs_browser, open_page
from random_models import unchecked

from mlp_interp import views

HOSTILE = "</td><img src=x onerror=alert(1)>"


def generations(plain, edited, *, prompt="User: <b>hi</b>", samples=1):
    """Made-up texts; a token's id is its place among all."""
    both = [plain, edited]
    size = max(map(len, both))
    known = sorted({*plain, *edited})
    ids = [[known.index(word) for word in text] + [-1] * (size - len(text)) for text in both]
    words = [[*text, *[""] * (size - len(text))] for text in both]
    stack = lambda rows: np.repeat(np.array(rows)[:, None, None], samples, axis=2)
    token = stack(ids)
    length = stack([len(text) for text in both])
    return xr.Dataset(
        {
            "token": (("way", "prompt", "sample", "new"), token),
            "token_text": (("way", "prompt", "sample", "new"), stack(words)),
            "length": (("way", "prompt", "sample"), length),
            "fluency": (("way", "prompt", "sample"), 0.0 * length - 0.25),
            "share_differing": (
                ("prompt", "sample"),
                (token[0] != token[1]).sum(-1) / length.max(0),
            ),
        },
        coords={"way": ["plain", "edited"], "prompt_text": ("prompt", [prompt])},
        attrs={"edits": "add at 1.mlp: 3\nscale at <L1H2>: 2"},
    )


def cells(view):
    """The two texts with marks as brackets, notes left out."""
    html = view.fragment()
    found = re.findall(r'<td class="mlp-(?:plain|edited)">(.*?)<small>', html, re.DOTALL)
    return [unescape(re.sub("</mark>", "]", re.sub("<mark>", "[", text))) for text in found]


def test_what_differs_is_marked():
    one = views.compare(generations([" a", " b", " c"], [" a", " x", " c"]))
    assert cells(one) == [" a[ b] c", " a[ x] c"]
    inserted = views.compare(generations([" a", " b", " c"], [" a", " x", " y", " b", " c"]))
    assert cells(inserted) == [" a b c", " a[ x y] b c"]
    same = views.compare(generations([" a"], [" a"]))
    assert cells(same) == [" a", " a"]
    unlike = views.compare(generations([" a", " b"], [" c"]))
    assert cells(unlike) == ["[ a b]", "[ c]"]


def test_what_is_said_beside_it():
    found = views.compare(generations([" a", " b"], [" a", " c"]), caption="Odd <i>")
    html = found.fragment()
    assert "differs at 50% of positions" in html
    assert html.count("−0.25 nats per token") == 2
    assert "add at 1.mlp: 3; scale at &lt;L1H2&gt;: 2. Odd &lt;i&gt;" in html
    assert repr(found) == "Comparison(1 pairs of texts)"


def test_texts_without_tokens_have_no_numbers():
    empty = generations([" a"], [" b"]).assign(length=lambda made: 0 * made["length"])
    empty["fluency"], empty["share_differing"] = (
        np.nan * empty[n] for n in ("fluency", "share_differing")
    )
    html = views.compare(empty).fragment()
    assert "nan" not in html
    assert html.count("<small>– nats per token") == 2
    assert "differs at – of positions" in html


def test_no_more_rows_than_wanted():
    found = views.compare(generations([" a"], [" b"], samples=5), rows=2)
    assert found.fragment().count("<tr>") == 3
    assert "2 of 5 pairs of texts" in found.fragment()


def test_text_is_escaped_and_nothing_is_fetched():
    view = views.compare(generations([HOSTILE], ["&lt;", HOSTILE], prompt=HOSTILE), caption=HOSTILE)
    html = view.html()
    assert "<img" not in html
    assert "http" not in html
    assert cells(view) == [HOSTILE, f"[&lt;]{HOSTILE}"]
    for tag in ("table", "tr", "td", "th", "figure", "mark", "small", "style", "body"):
        assert len(re.findall(f"<{tag}[ >]", html)) == html.count(f"</{tag}>") > 0, tag
    assert "<img" not in view._repr_html_()


@needs_browser
def test_in_a_browser(tmp_path):
    view = views.compare(generations([HOSTILE, " b"], [" c", " b"], prompt=HOSTILE))
    dom, console = open_page(view.html(), tmp_path)
    assert not console
    assert dom.count("<mark>") == 2
    assert "<img" not in dom


@pytest.mark.parametrize(
    ("run", "text"),
    [
        (lambda: unchecked(views.compare)([1]), "must be the Dataset of .* got a list"),
        (lambda: views.compare(generations(["a"], ["b"]).drop_vars("fluency")), "lacks fluency"),
        (lambda: views.compare(generations(["a"], ["b"]), rows=0), "rows must be from 1 to 200"),
    ],
)
def test_other_things_are_refused(run, text):
    with pytest.raises(ValueError, match=text):
        run()
