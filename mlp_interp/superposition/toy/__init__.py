"""Small models that store more features than they have dimensions, and the shapes they make."""

from mlp_interp.superposition.toy._geometry import geometry, thomson
from mlp_interp.superposition.toy._phases import phase_diagram
from mlp_interp.superposition.toy._train import toy_models

__all__ = ["geometry", "phase_diagram", "thomson", "toy_models"]
