"""Do neurons say what comes next? Measured, put into words, and drawn."""

from mlp_interp.models import Weights
from mlp_interp.report.progress import passes
from mlp_interp.report.section import Section, Work
from mlp_interp.report.sections.memories.compute import Memories as Memories
from mlp_interp.report.sections.memories.compute import measure
from mlp_interp.report.sections.memories.words import numbers, sentences, shown

__all__ = ["MEMORIES", "Memories"]


def _cost(work: Work) -> float:
    """Two passes over the corpus, and two readouts a layer at some of the positions."""
    return 2.0 + passes(work.model, Weights.of(work.model).n_layers, 2) / 4


MEMORIES = Section(
    name="memories",
    title="Memories",
    compute=measure,
    show=shown,
    parts=vars,
    sentences=sentences,
    numbers=numbers,
    cost=_cost,
    template="memories/memories.html",
)
