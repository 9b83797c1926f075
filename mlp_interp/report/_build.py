"""From a model and a corpus to three files: the page, the data, the summary numbers."""

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from mlp_interp.checkpoint import whole_file
from mlp_interp.models import fingerprint
from mlp_interp.models.indices import count
from mlp_interp.models.protocol import Model
from mlp_interp.report.content import compute
from mlp_interp.report.page import render
from mlp_interp.report.progress import peak_memory
from mlp_interp.report.section import Work
from mlp_interp.report.sections import chosen
from mlp_interp.report.store import Store
from mlp_interp.report.summary import Summary, summarise
from mlp_interp.results import save_groups


@dataclass(frozen=True)
class Written:
    """Where a report went, and what it says first.

    Attributes:
        page: The HTML file.
        data: netCDF, one group per result.
        numbers: JSON with the summary's numbers.
        summary: The answer at a glance.
        reused: Analyses taken over from an interrupted run.
    """

    page: Path
    data: Path
    numbers: Path
    summary: Summary
    reused: list[str]


def build(
    model: Model,
    corpus: Any,
    *,
    out: str | Path = "report.html",
    prompts: int = 16,
    seed: int = 0,
    batch_size: int = 16,
    only: Sequence[str] | None = None,
    skip: Sequence[str] = (),
    command: str = "",
    progress: bool = True,
) -> Written:
    """Measure every sub-update of a model and write the report.

    Each finished analysis is kept in ``<out>.parts`` until the page is written: run again after an
    interruption, with the same model, data and options, and only the rest is computed.

    Args:
        model: The model, from `load_model`.
        corpus: The corpus, from `load_corpus`.
        out: The page; netCDF and JSON files of the same name go beside it.
        prompts: How many prompts of each task to attribute.
        seed: Draws the prompts.
        batch_size: Sequences per forward pass.
        only: Names of sections, as "importance"; None for all.
        skip: Names of sections to leave out.
        command: What made the page, for the page to say.
        progress: Show a progress bar on stderr.

    Returns:
        The files and the summary.

    Raises:
        ValueError: If `out` is no ``.html`` file in a folder that exists, there is no such section,
            or the analyses refuse the input.

    Example:
        >>> from mlp_interp import load_model
        >>> from mlp_interp.corpus import load_corpus
        >>> model = load_model("nano")
        >>> corpus = load_corpus("nano", model, sequences=4, length=32)
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     written = build(model, corpus, out=f"{folder}/r.html", prompts=2, progress=False)
        ...     written.page.stat().st_size < 8_000_000
        True
    """
    sections, begun, page = chosen(only, skip), perf_counter(), Path(out)
    if page.suffix not in (".html", ".htm"):
        raise ValueError(f"out must end in .html, got {str(out)!r}")
    if not page.absolute().parent.is_dir():
        raise ValueError(f"out must lie in a folder that exists, got {str(out)!r}")
    for name, number in (("prompts", prompts), ("batch_size", batch_size)):
        count(name, number, least=0)
    if prompts < 1 or batch_size < 1:
        raise ValueError(f"prompts and batch_size must be positive, got {prompts}, {batch_size}")
    # Numbers depend on what is measured, not on how many sequences go through at once.
    store = Store(
        page.with_name(page.name + ".parts"), fingerprint(model, corpus.tokens, {"version": 1})
    )
    work = Work(model, corpus, store, prompts, seed, batch_size, progress)
    content = compute(work, sections)
    summary = summarise(content)
    made = _made(command, content.seconds, perf_counter() - begun)
    _write(page, render(content, summary, made=made))
    data = save_groups(dict(content.parts()), page.with_suffix(".nc"))
    numbers = page.with_suffix(".json")
    facts = {"model": dict(content.check.attrs), "corpus": content.corpus, **summary.numbers}
    text = json.dumps(_jsonable(facts), indent=1, ensure_ascii=False, allow_nan=False)
    _write(numbers, text)
    store.remove()
    return Written(page, data, numbers, summary, store.reused)


def _made(command: str, seconds: Mapping[str, float], whole: float) -> dict[str, str]:
    """What made the page, when, in what time and memory."""
    now = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    parts = ", ".join(f"{name} {_duration(time)}" for name, time in seconds.items())
    peak = peak_memory()
    facts = {
        "made by": command,
        "made on": now,
        "time": f"{_duration(whole)}: {parts}",
        "memory at its peak": f"{peak / 1e9:.1f} GB" if peak else "",
    }
    return {name: value for name, value in facts.items() if value}


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _write(path: Path, text: str) -> None:
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def _jsonable(value: Any) -> Any:
    """Plain JSON types; numpy numbers become Python's, and what is not finite becomes null."""
    if isinstance(value, dict):
        return {str(key): _jsonable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(entry) for entry in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and value - value != 0 else value
