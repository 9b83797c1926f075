"""SAEs and transcoders as data: what they read and write, and their files.

`mlp_interp.latents` trains and evaluates them, and uses their latents as components.
"""

from mlp_interp.dictionaries.activations import GroupMax as GroupMax
from mlp_interp.dictionaries.activations import JumpRelu as JumpRelu
from mlp_interp.dictionaries.activations import Relu as Relu
from mlp_interp.dictionaries.activations import TopK as TopK
from mlp_interp.dictionaries.dictionary import Dictionary as Dictionary
from mlp_interp.dictionaries.files import load as load
from mlp_interp.dictionaries.files import load_all as load_all
from mlp_interp.dictionaries.files import save as save
from mlp_interp.dictionaries.latents import Latents as Latents
from mlp_interp.dictionaries.reading import Reading as Reading

__all__ = [
    "Dictionary",
    "GroupMax",
    "JumpRelu",
    "Latents",
    "Reading",
    "Relu",
    "TopK",
    "load",
    "load_all",
    "save",
]
__dir__ = __all__.copy
