"""The sections of the report, in the order of the page.

To add one, write its module and name it here.
"""

from mlp_interp.report.section import Section
from mlp_interp.report.sections.attribution import ATTRIBUTION
from mlp_interp.report.sections.excerpt import EXCERPT
from mlp_interp.report.sections.importance import IMPORTANCE
from mlp_interp.report.sections.neurons import NEURONS
from mlp_interp.report.sections.norms import NORMS
from mlp_interp.report.sections.ranges import RANGES

__all__ = ["SECTIONS"]

SECTIONS: dict[str, Section] = {
    section.name: section
    for section in (
        IMPORTANCE,
        NORMS,
        RANGES,
        EXCERPT,
        ATTRIBUTION,
        NEURONS,
    )
}
"""Every section by its name."""
