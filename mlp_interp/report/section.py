"""What a section of the report is: one question, measured, put into words and drawn.

A section is a `Section` in a module of `mlp_interp.report.sections`, and its name in the list
there: nothing else knows it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from mlp_interp.corpus import SweepOptions
from mlp_interp.models.protocol import Model
from mlp_interp.report.figure import Drawing
from mlp_interp.report.progress import Forecast
from mlp_interp.report.store import Part, Store

__all__ = ["Block", "Section", "Work"]


@dataclass(frozen=True)
class Work:
    """What a section is computed from.

    Attributes:
        model: The model.
        corpus: The `Corpus` to measure on.
        store: Keeps each finished analysis, and hands back those of an interrupted run.
        prompts: How many prompts of each task.
        seed: Draws the prompts.
        batch_size: Sequences per forward pass.
        progress: Show a progress bar on stderr.
        notes: What could not be shown, and why: plain sentences that sections add.
    """

    model: Model
    corpus: Any
    store: Store
    prompts: int = 16
    seed: int = 0
    batch_size: int = 16
    progress: bool = True
    notes: list[str] = field(default_factory=list)
    forecast: Forecast = field(default_factory=lambda: Forecast({}, shown=False))

    def sweep(self, start: float = 0.0, end: float = 1.0, **options: Any) -> SweepOptions:
        """How to run the corpus: an interrupted sweep goes on with its last whole shard.

        Args:
            start: The share of the section's work that comes before this sweep.
            end: The share that is done with it.
            **options: Others of `SweepOptions`; a `shard` of `batch_size` for what takes long.
        """
        told, kept = self.forecast.part(start, end), self.store.batches
        given = {"batch_size": self.batch_size, "progress": told, "checkpoint": kept}
        return SweepOptions(**(given | options))


@dataclass(frozen=True)
class Block:
    """A piece of a section that has no template of its own.

    Attributes:
        caption: What it shows and how to read it, a sentence or two; stands above it, and is the
            text alternative of its figure.
        figure: From `mlp_interp.report.figure.drawing`.
        html: From a template or a view; what it says of a corpus or model is escaped.
        heading: Where something new begins.
        folded: What to call it where it is folded away.
    """

    caption: str
    figure: Drawing | None = None
    html: Markup | None = None
    heading: str = ""
    folded: str = ""


def _itself(found: Any) -> Mapping[str, Part]:
    return {"": found}


def _nothing(found: Any) -> Sequence[Any]:
    return ()


def _one(work: Work) -> float:
    return 1.0


@dataclass(frozen=True, kw_only=True)
class Section:
    """One question of the report.

    Attributes:
        name: A short word: what `--only` and `--skip` take, the anchor on the page, and the group
            of its results in the netCDF file.
        title: Two or three words for the table of contents.
        compute: Measures; gives what the other functions take.
        show: What its template takes. That of ``section.html``, which is there for all: `heading`,
            the question; `intro`, how to read the answer; `blocks`, each a `Block`.
        parts: The results by name, for the netCDF file; "" is the section's own group.
        sentences: The answer in plain sentences, which stand below the heading.
        numbers: Plain numbers by name, for the JSON file.
        cost: About how long it takes, in forward passes of the corpus: for the time left.
        template: A file beside the sections' modules.
    """

    name: str
    title: str
    compute: Callable[[Work], Any]
    show: Callable[[Any], Mapping[str, Any]]
    parts: Callable[[Any], Mapping[str, Part]] = _itself
    sentences: Callable[[Any], Sequence[str]] = _nothing
    numbers: Callable[[Any], Any] = _nothing
    cost: Callable[[Work], float] = _one
    template: str = "section.html"
