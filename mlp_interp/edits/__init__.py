"""Interventions on a forward pass, and the one runner that applies them.

An `Edit` names a site, which part of it (positions, heads, neurons) and what to do there. Edits
are data: they compose by being put in a list, and no hook ever stays on the user's model, because
the runner computes on the weights or inside the library's own hook context.
"""

from mlp_interp.edits.applying import Fired as Fired
from mlp_interp.edits.edit import Edit as Edit
from mlp_interp.edits.generate import Generation as Generation
from mlp_interp.edits.runner import Run as Run
from mlp_interp.edits.runner import Runner as Runner

__all__ = ["Edit", "Fired", "Generation", "Run", "Runner"]
