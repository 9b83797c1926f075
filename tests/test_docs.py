"""Pages of the documentation that are made of code: they run, block by block and call by call."""

import json
import re
from pathlib import Path

import every_table
import gallery
import pytest
import real_page

import mlp_interp as mi

DOCS = Path(__file__).parent.parent / "docs"
PAGES = (
    "questions",
    "runs",
    "from_transformerlens",
    "own_model",
    "contributing",
    "memories",
    "lens",
    "weights",
    "features",
    "probes",
    "superposition",
    "reach",
    "rewrites",
    "dictionaries",
)
CODE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
CALL = re.compile(r"^\| [^|`]+ \| `((?:mi|steering|clean)\.[^`]+)` \|", re.MULTILINE)


@pytest.mark.parametrize("name", PAGES)
def test_the_code_of_a_page_runs(name):
    page = (DOCS / f"{name}.md").read_text()
    blocks = CODE.findall(page)
    assert blocks, f"{name}.md has no code"
    names = {}
    for block in blocks:
        exec(compile(block, f"{name}.md", "exec"), names)
    calls = CALL.findall(page)
    found = [eval(call, names) for call in calls]
    assert all(x is not None for x in found)
    if name == "questions":
        made = every_table.results(calls, found, names)
        assert not every_table.left_out(made)
        for call, result in made.items():
            table = mi.table(result, 3)
            assert len(table.frame), call
            assert table._repr_html_().count("<tr>") == len(table.frame) + 1, call


def test_every_question_has_one_call():
    page = (DOCS / "questions.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and "?" in line]
    assert len(rows) > 25
    assert len(CALL.findall(page)) == len(rows)


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda path: path.stem)
def test_what_a_page_links_to_is_there(path):
    for target in re.findall(r"\]\(([^)#:\s]+)", path.read_text()):
        assert target in ("http", "https") or (DOCS / target).exists(), target


def test_the_tables_of_a_real_model_are_those_measured():
    page = real_page.PAGE.read_text()
    figures = json.loads(real_page.FIGURES.read_text())
    assert real_page.page_with(page, real_page.tables(figures)) == page


def test_the_gallery_has_every_figure_and_the_calls_that_made_them():
    assert not gallery.missing()
    assert gallery.page() == gallery.PAGE.read_text()
    for name in gallery.every():
        assert gallery.picture_of(name).exists(), name
