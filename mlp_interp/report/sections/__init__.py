"""The sections of the report, in the order of the page.

To add one, write its module and name it here.
"""

from collections.abc import Sequence

from mlp_interp.report.section import Section
from mlp_interp.report.sections.attribution import ATTRIBUTION
from mlp_interp.report.sections.excerpt import EXCERPT
from mlp_interp.report.sections.heads import HEADS
from mlp_interp.report.sections.importance import IMPORTANCE
from mlp_interp.report.sections.lens import LENS
from mlp_interp.report.sections.lists import LISTS
from mlp_interp.report.sections.memories import MEMORIES
from mlp_interp.report.sections.neurons import NEURONS
from mlp_interp.report.sections.norms import NORMS
from mlp_interp.report.sections.ranges import RANGES

__all__ = ["SECTIONS", "chosen"]

SECTIONS: dict[str, Section] = {
    section.name: section
    for section in (
        IMPORTANCE,
        NORMS,
        RANGES,
        EXCERPT,
        LENS,
        LISTS,
        ATTRIBUTION,
        HEADS,
        NEURONS,
        MEMORIES,
    )
}
"""Every section by its name."""


def chosen(only: Sequence[str] | None = None, skip: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of sections in the order of the page.

    Args:
        only: These; None for all.
        skip: But not these.

    Raises:
        ValueError: There is no section of that name, or none is left.
    """
    for option, names in (("only", only or ()), ("skip", skip)):
        if wrong := [name for name in names if name not in SECTIONS]:
            raise ValueError(f"{option}={wrong[0]!r}; wanted sections among {', '.join(SECTIONS)}")
    asked = SECTIONS if only is None else only
    left = tuple(name for name in SECTIONS if name in asked and name not in skip)
    if not left:
        raise ValueError(f"only={only}, skip={list(skip)} leave no section")
    return left
