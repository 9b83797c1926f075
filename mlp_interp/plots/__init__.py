"""Figures of results: every function takes a result and returns a plotly figure.

Nothing here touches a model, and nothing is estimated here: the numbers on a figure are the numbers
in the result. Signed values use a diverging scale centred at zero (red negative, blue positive),
magnitudes a sequential one; error bars are one standard error and say so.
"""

from mlp_interp.plots._absorption import absorption
from mlp_interp.plots._attribution import attribution, heads, neurons, sources
from mlp_interp.plots._compare import estimate
from mlp_interp.plots._edges import edges
from mlp_interp.plots._features import feature_index, revisions, universal
from mlp_interp.plots._footprint import footprint
from mlp_interp.plots._heads import compose, positions, roles, scores
from mlp_interp.plots._importance import direct_vs_total, importance
from mlp_interp.plots._lens import lens, lens_depth, trajectory
from mlp_interp.plots._memories import memories, update_events
from mlp_interp.plots._models import compare
from mlp_interp.plots._neurons import (
    activation_fractions,
    activity_by_position,
    receptor_value,
)
from mlp_interp.plots._norms import norms
from mlp_interp.plots._one_neuron import activation_histogram
from mlp_interp.plots._patching import patching
from mlp_interp.plots._probes import compare_directions, probe, sparse_probe
from mlp_interp.plots._ranges import ranges
from mlp_interp.plots._reach import reachable
from mlp_interp.plots._replacement import replacement
from mlp_interp.plots._steering import dose_response
from mlp_interp.plots._superposition import noise_tolerance, spectrum, toy
from mlp_interp.plots._trace import causal_trace
from mlp_interp.plots._updates import update_shares

__all__ = [
    "absorption",
    "activation_fractions",
    "activation_histogram",
    "activity_by_position",
    "attribution",
    "causal_trace",
    "compare",
    "compare_directions",
    "compose",
    "direct_vs_total",
    "dose_response",
    "edges",
    "estimate",
    "feature_index",
    "footprint",
    "heads",
    "importance",
    "lens",
    "lens_depth",
    "memories",
    "neurons",
    "noise_tolerance",
    "norms",
    "patching",
    "positions",
    "probe",
    "ranges",
    "reachable",
    "receptor_value",
    "replacement",
    "revisions",
    "roles",
    "scores",
    "sources",
    "sparse_probe",
    "spectrum",
    "toy",
    "trajectory",
    "universal",
    "update_events",
    "update_shares",
]
__dir__ = __all__.copy
