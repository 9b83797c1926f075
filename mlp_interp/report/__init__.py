"""One page that answers: how important is each sub-update, directly and through later layers?

`build` computes everything and writes the page with its data beside it; `compute` and `render` are
its two halves.
"""

from mlp_interp.report.content import Content, compute
from mlp_interp.report.page import render
from mlp_interp.report.summary import Summary, summarise
from mlp_interp.report.writing import Written, build

__all__ = ["Content", "Summary", "Written", "build", "compute", "render", "summarise"]
