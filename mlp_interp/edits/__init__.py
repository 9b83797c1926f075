"""Interventions on a forward pass.

An `Edit` names a site, which part of it (positions, heads, neurons) and what to do there. Edits
are data: they compose by being put in a list. `mlp_interp.runs` runs a model with them.
"""

from mlp_interp.edits.applying import Fired as Fired
from mlp_interp.edits.edit import Edit as Edit

__all__ = ["Edit", "Fired"]
