"""Path patching: what one component tells another along direct paths, and nothing else."""

from mlp_interp.paths._path_patch import path_patch as path_patch

__all__ = [
    "path_patch",
]
__dir__ = __all__.copy
