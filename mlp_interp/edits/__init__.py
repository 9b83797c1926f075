"""Interventions on a forward pass.

An `Edit` names a site, which part of it (positions, heads, neurons) and what to do there. Edits
are data: they compose by being put in a list. `mlp_interp.runs` runs a model with them.
"""

from mlp_interp.edits.actions import Action as Action
from mlp_interp.edits.actions import Add as Add
from mlp_interp.edits.actions import Clamp as Clamp
from mlp_interp.edits.actions import Noise as Noise
from mlp_interp.edits.actions import ProjectOut as ProjectOut
from mlp_interp.edits.actions import Replace as Replace
from mlp_interp.edits.actions import Scale as Scale
from mlp_interp.edits.actions import Set as Set
from mlp_interp.edits.applying import Fired as Fired
from mlp_interp.edits.edit import Edit as Edit
from mlp_interp.edits.edit import edits_of as edits_of
from mlp_interp.edits.latents import LatentValues as LatentValues

__all__ = [
    "Action",
    "Add",
    "Clamp",
    "Edit",
    "Fired",
    "LatentValues",
    "Noise",
    "ProjectOut",
    "Replace",
    "Scale",
    "Set",
    "edits_of",
]
