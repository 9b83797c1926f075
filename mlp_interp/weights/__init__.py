"""Weights read as tokens, and as virtual weights between any two components."""

from mlp_interp.weights._bigrams import bigrams as bigrams
from mlp_interp.weights._fidelity import embedding_fidelity as embedding_fidelity
from mlp_interp.weights._singular import singular as singular
from mlp_interp.weights._subspaces import subspaces as subspaces
from mlp_interp.weights._table import table as table
from mlp_interp.weights._trigrams import skip_trigrams as skip_trigrams
from mlp_interp.weights._virtual import virtual_weights as virtual_weights

__all__ = [
    "bigrams",
    "embedding_fidelity",
    "singular",
    "skip_trigrams",
    "subspaces",
    "table",
    "virtual_weights",
]
__dir__ = __all__.copy
