"""The drawing of an induction circuit: it says what the result says, whatever heads are called."""

import re
from html import unescape
from typing import Any

import pytest
import xarray as xr
from browser import needs_browser, open_page

import mlp_interp as mi
from mlp_interp import views
from mlp_interp.views.numbers import number, percent


@pytest.fixture(scope="module")
def found(nano: Any) -> xr.Dataset:
    return mi.heads.induction(nano, n=4)


def words_of(page: str) -> str:
    plain = re.sub(r"<(style|script).*?</\1>", "", page, flags=re.DOTALL)
    return unescape(re.sub(r"<[^>]+>", " ", plain))


def test_it_says_what_was_found(found: xr.Dataset) -> None:
    name = "L0H0 → L2H4"
    said, one = words_of(views.circuit(found, name).html()), found.sel(circuit=name)
    for wanted in (
        f"L0H0 pays {percent(one['previous'])} of its attention",
        f"composition is {number(one['compose_z'])} standard",
        f"match {number(one['match'])} (chance 0 ± {number(one['match_null'])})",
        f"pays {percent(one['score'], one['score_se'])} of its attention to that place",
        f"({percent(one['expected'])} without a repetition)",
        f"{percent(one['score_share'])} of this preference",
        f"copies the token that it attends to: {number(one['copying'])}",
        f"rises by {number(one['knockout'], one['knockout_se'])} nats",
        "(weak)",
    ):
        assert wanted in said, wanted
    rows = re.findall(r"L0H0 → L\dH\d\s+([^a-zL]+?)\s+(strong|weak)", said)
    for place, (numbers, strength) in enumerate(rows):
        at = found.isel(circuit=place)
        names = ("previous", "compose_z", "match", "copying", "score", "expected", "score_share")
        assert " ".join(numbers.split()) == " ".join(number(at[x]) for x in names)
        assert strength == at["strength"].item()
    assert len(rows) == found.sizes["circuit"] == 8
    first = views.circuit(found)
    assert first.title == f"induction circuit {found['circuit'][0].item()} of nano"
    assert "(strong)" in words_of(first.html())


@needs_browser
def test_names_stay_names(found: xr.Dataset, tmp_path: Any) -> None:
    bad = found.assign_coords(writer=("circuit", ["<img src=x onerror=alert(1)>"] * 8))
    page = views.circuit(bad).html()
    assert not re.findall(r"(?:https?:)?//[a-z]", page)
    dom, console = open_page(page, tmp_path)
    assert not console, console
    assert "<img" not in dom
    assert "&lt;img" in dom


def test_what_it_refuses(found: xr.Dataset) -> None:
    for call, message in (
        (lambda: views.circuit(found, "L0H1 → L1H0"), "name='L0H1 → L1H0'; wanted one of"),
        (lambda: views.circuit(found.isel(circuit=slice(0))), "holds no circuit"),
        (lambda: views.circuit(found.drop_vars("match")), "lacks match; wanted what"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
