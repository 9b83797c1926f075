"""Everything the report shows, computed: results only, no HTML."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import xarray as xr

from mlp_interp.models import check_model
from mlp_interp.report.progress import Forecast
from mlp_interp.report.section import Section, Work
from mlp_interp.report.sections import SECTIONS
from mlp_interp.report.store import Part


@dataclass(frozen=True)
class Content:
    """What a report shows.

    Attributes:
        check: What `check_model` found.
        corpus: The provenance of the corpus.
        found: What each section measured, by its name, in the order of the page.
        notes: What could not be shown, and why, in plain sentences.
        seconds: How long each section took.
    """

    check: xr.Dataset
    corpus: dict[str, Any]
    found: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def sections(self) -> Iterator[tuple[Section, Any]]:
        """Every section that was computed, with what it found."""
        yield from (
            (section, self.found[name]) for name, section in SECTIONS.items() if name in self.found
        )

    def parts(self) -> Iterator[tuple[str, Part]]:
        """Every result with the name of its group in the netCDF file."""
        yield "check", self.check
        for section, found in self.sections():
            for name, part in section.parts(found).items():
                yield f"{section.name}/{name}".rstrip("/"), part


def compute(work: Work, sections: Sequence[str] = tuple(SECTIONS)) -> Content:
    """Run the analyses of some sections.

    Args:
        work: What to measure on, and how.
        sections: Names of sections.

    Returns:
        The results. A task whose words the model's tokenizer does not know is left out with a note.

    Raises:
        ValueError: What the analyses raise for bad input.
    """
    found: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    check = check_model(work.model)
    costs = {name: SECTIONS[name].cost(work) for name in sections}
    with Forecast(costs, shown=work.progress) as forecast:
        work = replace(work, forecast=forecast)
        for name in sections:
            forecast.begin(name)
            begun = perf_counter()
            found[name] = SECTIONS[name].compute(work)
            seconds[name] = perf_counter() - begun
    return Content(check, dict(work.corpus.attrs), found, work.notes, seconds)
