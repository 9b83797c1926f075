"""What does an MLP, a head or a single neuron of a Pythia model *do*?

    import mlp_interp as mi

    model = mi.load_model("nano")                 # or "pythia-70m", or a directory
    corpus = mi.load_corpus("nano", model, sequences=32, length=64)
    found = mi.subupdate_importance(model, corpus)    # directly, and through later layers
    mi.plots.importance(found)
    mi.table(found, 5)

`decompose`, `attribute_logits`: what was written, and what it does to the logits directly.
`ablate_total`, `patch`, `path_patch`, `steer`: what happens without it, or with another.
`lens.read`, `neurons.neuron_page`, `heads.roles`: a layer, a neuron, a head by itself.
`explore`: one prompt by hand. `table`, `plots`, `views`, `save`: what to do with results.
"""

from typing import Any

import lazy_loader

# The names of ``__init__.pyi``, loaded on first use: ``mlp-interp --help`` does not wait for torch.

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name in __all__ or name.startswith("_"):  # what Python and notebooks ask of any module
        return _load(name)
    from mlp_interp.sites import did_you_mean

    near = did_you_mean(name, __all__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{near}")
