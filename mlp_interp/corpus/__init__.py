"""Corpora: rows of tokens with their provenance, and sweeps that sum up a model over them."""

from mlp_interp.corpus._sweep import sweep
from mlp_interp.corpus._token_streams import token_streams
from mlp_interp.corpus.corpus import Corpus, open_corpus
from mlp_interp.corpus.loading import load_corpus
from mlp_interp.corpus.options import SweepOptions

__all__ = ["Corpus", "SweepOptions", "load_corpus", "open_corpus", "sweep", "token_streams"]
__dir__ = __all__.copy
