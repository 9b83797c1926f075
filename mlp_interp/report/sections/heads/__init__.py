"""What do the heads do? Measured, put into words, and drawn."""

from mlp_interp.report.section import Section
from mlp_interp.report.sections.heads.compute import HeadRoles as HeadRoles
from mlp_interp.report.sections.heads.compute import measure
from mlp_interp.report.sections.heads.words import numbers, sentences, shown

__all__ = ["HEADS", "HeadRoles"]

HEADS = Section(
    name="heads",
    title="Heads",
    compute=measure,
    show=shown,
    parts=lambda found: {name: part for name, part in vars(found).items() if part is not None},
    sentences=sentences,
    numbers=numbers,
    cost=lambda work: 1.0,
    template="heads/heads.html",
)
