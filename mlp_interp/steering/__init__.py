"""Directions in a model's activations, and turning its behaviour with them.

`mean_difference`, `pca_direction`, `activation_addition`, `function_vector` and `output_direction`
find directions; `random_direction` makes controls for them. `add`, `project_out`, `hold` and
`scale` make edits, and `steer` holds edits on a model for as long as a block of code runs.
`generate_compare` continues texts with and without edits, and `dose_response` sets the effect of a
direction against its cost.
"""

from mlp_interp.steering._steer import Steering as Steering
from mlp_interp.steering._steer import steer as steer
from mlp_interp.steering.compare import generate_compare as generate_compare
from mlp_interp.steering.directions.contrast import by_answer as by_answer
from mlp_interp.steering.directions.contrast import mean_difference as mean_difference
from mlp_interp.steering.directions.contrast import pca_direction as pca_direction
from mlp_interp.steering.directions.few_shot import FewShot as FewShot
from mlp_interp.steering.directions.function_vectors import function_vector as function_vector
from mlp_interp.steering.directions.function_vectors import head_effects as head_effects
from mlp_interp.steering.directions.single import activation_addition as activation_addition
from mlp_interp.steering.directions.single import output_direction as output_direction
from mlp_interp.steering.directions.single import random_direction as random_direction
from mlp_interp.steering.dose.dose import dose_response as dose_response
from mlp_interp.steering.dose.scores import REFUSALS as REFUSALS
from mlp_interp.steering.dose.scores import Keywords as Keywords
from mlp_interp.steering.dose.scores import Refusal as Refusal
from mlp_interp.steering.dose.scores import Score as Score
from mlp_interp.steering.edits import add as add
from mlp_interp.steering.edits import hold as hold
from mlp_interp.steering.edits import project_out as project_out
from mlp_interp.steering.edits import scale as scale
from mlp_interp.steering.generation import GenerationOptions as GenerationOptions

__all__ = [
    "REFUSALS",
    "FewShot",
    "GenerationOptions",
    "Keywords",
    "Refusal",
    "Score",
    "Steering",
    "activation_addition",
    "add",
    "by_answer",
    "dose_response",
    "function_vector",
    "generate_compare",
    "head_effects",
    "hold",
    "mean_difference",
    "output_direction",
    "pca_direction",
    "project_out",
    "random_direction",
    "scale",
    "steer",
]
__dir__ = __all__.copy
