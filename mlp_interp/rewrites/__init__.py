"""Facts written into MLPs, which are taken as linear memories, and what else changes with them."""

from mlp_interp.rewrites._associations import associations
from mlp_interp.rewrites._footprint import footprint
from mlp_interp.rewrites._many import rewrite_many
from mlp_interp.rewrites._rewrite import rewrite
from mlp_interp.rewrites._score import score_rewrite
from mlp_interp.rewrites.result import Rewrite, rewritten
from mlp_interp.rewrites.values import Search

__all__ = [
    "Rewrite",
    "Search",
    "associations",
    "footprint",
    "rewrite",
    "rewrite_many",
    "rewritten",
    "score_rewrite",
]
__dir__ = __all__.copy
