"""More features than dimensions: how many there can be, and what it does to what is read."""

from mlp_interp.superposition import toy as toy
from mlp_interp.superposition._capacity import capacity, underdetermined
from mlp_interp.superposition._concepts import concepts
from mlp_interp.superposition._modes import modes
from mlp_interp.superposition._noise import noise_tolerance
from mlp_interp.superposition._overlaps import overlaps
from mlp_interp.superposition._spectrum import spectrum

__all__ = [
    "capacity",
    "concepts",
    "modes",
    "noise_tolerance",
    "overlaps",
    "spectrum",
    "toy",
    "underdetermined",
]
__dir__ = __all__.copy
