"""Straight lines through activations: what can be read there, and whether the model reads it.

`Labelled` holds prompts and labels; `probe` fits lines at every layer and tests them on entities
that they were not fitted on, beside controls; `sparse_probe` asks how few neurons are enough,
`each_unit` what single ones do over a corpus, and `compare_directions` whether the line is one that
the model uses. `probe_direction` makes a direction of `mlp_interp.steering` of a line.
"""

from mlp_interp.probes._compare import compare_directions as compare_directions
from mlp_interp.probes._direction import probe_direction as probe_direction
from mlp_interp.probes._each_unit import each_unit as each_unit
from mlp_interp.probes._probe import probe as probe
from mlp_interp.probes._scores import haversine_km as haversine_km
from mlp_interp.probes._scores import place_errors as place_errors
from mlp_interp.probes._sparse import sparse_probe as sparse_probe
from mlp_interp.probes.labelled import Labelled as Labelled

__all__ = [
    "Labelled",
    "compare_directions",
    "each_unit",
    "haversine_km",
    "place_errors",
    "probe",
    "probe_direction",
    "sparse_probe",
]
__dir__ = __all__.copy
