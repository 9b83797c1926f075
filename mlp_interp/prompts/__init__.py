"""Prompts that contrast: clean and corrupted, answer and foil, and the tasks planted in nano.

Each task is a function ``task(model, n, seed)`` that returns a `Contrast` of `n` pairs. They work
with the tokenizer of nano and with those of real models: only words that are single tokens there
are exchanged, or asked for.
"""

from mlp_interp.prompts._places import by_place, places
from mlp_interp.prompts.contrast import Contrast
from mlp_interp.prompts.sentences import agreement, facts, ioi, refusal, sentiment
from mlp_interp.prompts.sequences import antonyms, counting, greater_than, induction

__all__ = [
    "Contrast",
    "agreement",
    "antonyms",
    "by_place",
    "counting",
    "facts",
    "greater_than",
    "induction",
    "ioi",
    "places",
    "refusal",
    "sentiment",
]
__dir__ = __all__.copy
