"""Features that a model is asked about itself: in texts, in its neurons, its kin and its past."""

from mlp_interp.features._generate import contrast_texts as contrast_texts
from mlp_interp.features._generate import self_generate as self_generate
from mlp_interp.features._index import index as index
from mlp_interp.features._pairs import agreement as agreement
from mlp_interp.features._pairs import rank_pairs as rank_pairs
from mlp_interp.features._queries import about as about
from mlp_interp.features._queries import best as best
from mlp_interp.features._revisions import PYTHIA_REVISIONS as PYTHIA_REVISIONS
from mlp_interp.features._revisions import over_revisions as over_revisions
from mlp_interp.features._self_score import self_score as self_score
from mlp_interp.features._universal import universal as universal

__all__ = [
    "PYTHIA_REVISIONS",
    "about",
    "agreement",
    "best",
    "contrast_texts",
    "index",
    "over_revisions",
    "rank_pairs",
    "self_generate",
    "self_score",
    "universal",
]
__dir__ = __all__.copy
