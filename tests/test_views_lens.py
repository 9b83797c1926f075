"""The view of a lens: it holds what the result holds, and draws it, whatever tokens are."""

import json
import re
from typing import Any

import numpy as np
import pytest
from browser import needs_browser, open_page

import mlp_interp as mi
from mlp_interp import views

HOSTILE = "</script><img src=x onerror=alert(1)>"
TEXTS = ["The capital of France is", "Anna gave the book to John"]


@pytest.fixture(scope="module")
def found(nano: Any) -> Any:
    return mi.lens.read(nano, TEXTS, targets=" Paris", k=3)


def data_of(html: str) -> dict[str, Any]:
    return json.loads(re.search(r'application/json">(.*?)</script>', html)[1])


def test_it_holds_the_result(found: Any) -> None:
    data = data_of(views.lens(found, "rank_target", prompt=0).fragment())
    length = int((found["token"][0] != "").sum())
    assert len(data["read"]) == length
    words = [[data["words"][cell[0]] for cell in row] for row in data["top"]]
    assert words == found["top_text"][0, :, :length, 0].values.tolist()
    np.testing.assert_allclose(data["p"], np.exp(found["top_logp"][0, :, :length]), rtol=1e-3)
    for name in ("kl_output", "rank_target", "logp_next"):
        wanted = found[name][0, :, :length].values
        drawn = np.array(data["values"][name], dtype=float)
        np.testing.assert_allclose(drawn, wanted, rtol=1e-3, atol=1e-30)
    assert data["values"]["logp_next"][0][-1] is None


def test_it_is_small(found: Any) -> None:
    """As large a grid as anybody looks through: 24 layers, 64 tokens."""
    one = found.isel(prompt=[0], pos=np.resize(np.arange(5), 64), layer=np.resize([*range(5)], 24))
    assert len(views.lens(one).html()) < 300_000


@needs_browser
def test_the_page_draws_itself(found: Any, tmp_path: Any) -> None:
    bad = found.copy(deep=True)
    bad["top_text"] = bad["top_text"].astype(object)
    bad["top_text"][:, -1, :, 0] = HOSTILE
    page = views.lens(bad).html()
    assert not re.findall(r"(?:https?:)?//[a-z]", page)
    click = "<script>document.querySelectorAll('.told ol button')[0].click()</script>"
    dom, console = open_page(page.replace("</body>", f"{click}</body>"), tmp_path)
    shown = re.sub(r"<script.*?</script>", "", dom, flags=re.DOTALL)
    assert not console, console
    assert "<img" not in shown
    assert "&lt;img" in shown
    assert shown.count('aria-pressed="true"') == 2  # the cell, and the token that was clicked
    top = float(np.exp(found["top_logp"][0, -1, -1, 0]))
    assert f"{top:.3g}" in shown


def test_what_it_refuses(nano: Any, found: Any) -> None:
    both = mi.lens.read(nano, TEXTS, {"a": mi.lens.logit(nano), "b": mi.lens.decoder(nano, 1)})
    wide = found.isel(pos=np.resize(np.arange(5), 2000))
    for call, message in (
        (lambda: views.lens(both), "has the lenses 'a', 'b'"),
        (lambda: views.lens(found, "agrees"), "variable='agrees'; wanted one of"),
        (lambda: views.lens(found, prompt=2), "prompt=2; wanted one of 2"),
        (lambda: views.lens(found.drop_vars("top_logp")), "lacks top_logp"),
        (lambda: views.lens(wide), "at most 8,000 cells"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
