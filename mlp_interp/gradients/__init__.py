"""Gradients: fast estimates of what patching would do, and how wrong they are."""

from mlp_interp.gradients._compare import compare as compare
from mlp_interp.gradients.nodes import SITES as SITES
from mlp_interp.gradients.nodes import as_grid as as_grid
from mlp_interp.gradients.nodes import attribution_patch as attribution_patch

__all__ = [
    "SITES",
    "as_grid",
    "attribution_patch",
    "compare",
]
__dir__ = __all__.copy
