"""What does an MLP, a head or a single neuron of a Pythia model *do*?

The names used every day, listed in ``__init__.pyi``; each lives in the module of its own name,
where the rest of its kind is found. They are loaded on first use, so that ``mlp-interp --help``
does not wait for torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
