"""Corpora: rows of tokens of one length, and an exact account of where they come from."""

from mlp_interp.corpus.corpus import Corpus, open_corpus
from mlp_interp.corpus.loading import load_corpus

__all__ = ["Corpus", "load_corpus", "open_corpus"]
