"""One page that answers: how important is each sub-update, directly and through later layers?

`build` computes everything and writes the page with its data beside it; `compute` and `render` are
its two halves.
"""

from mlp_interp.report._build import Written, build
from mlp_interp.report.content import Content, compute
from mlp_interp.report.page import render
from mlp_interp.report.section import Block, Section, Work
from mlp_interp.report.summary import Summary, summarise

__all__ = [
    "Block",
    "Content",
    "Section",
    "Summary",
    "Work",
    "Written",
    "build",
    "compute",
    "render",
    "summarise",
]
