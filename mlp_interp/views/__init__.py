"""Tokens, attention heads, neurons and tables as views that need no network.

Each function returns what shows itself in Jupyter (as often per page as you like), gives a page
that stands by itself as `view.html()`, and keeps one with `view.save("view.html")`.
"""

from mlp_interp.views._choice import Choice, token_values
from mlp_interp.views._circuit import circuit
from mlp_interp.views._compare import Comparison, compare
from mlp_interp.views._heads import attention
from mlp_interp.views._lens import LensGrid, lens
from mlp_interp.views._neuron import Page, neuron
from mlp_interp.views._page import View
from mlp_interp.views._reachable import reachable
from mlp_interp.views._rewrite import rewrite
from mlp_interp.views._shared import share
from mlp_interp.views._table import Table, table
from mlp_interp.views._tokens import activations, tokens

__all__ = [
    "Choice",
    "Comparison",
    "LensGrid",
    "Page",
    "Table",
    "View",
    "activations",
    "attention",
    "circuit",
    "compare",
    "lens",
    "neuron",
    "reachable",
    "rewrite",
    "share",
    "table",
    "token_values",
    "tokens",
]
__dir__ = __all__.copy
