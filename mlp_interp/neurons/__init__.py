"""What every neuron reads, writes and does.

A neuron reads the normalised stream through its *receptor* (its column of ``W_in``), and, where it
fires, adds its *value vector* (its row of ``W_out``) to the stream.
"""

from mlp_interp.neurons.evidence.in_texts import activations as activations
from mlp_interp.neurons.evidence.verdict import verdict as verdict
from mlp_interp.neurons.evidence.verify import verify_neuron as verify_neuron
from mlp_interp.neurons.inputs.embeddings import (
    expected_embedding_generate as expected_embedding_generate,
)
from mlp_interp.neurons.inputs.maximize import maximize as maximize
from mlp_interp.neurons.inputs.options import AscentOptions as AscentOptions
from mlp_interp.neurons.page.page import neuron_page as neuron_page
from mlp_interp.neurons.stores.composed import composition as composition
from mlp_interp.neurons.stores.events import update_events as update_events
from mlp_interp.neurons.stores.pursuit import pursue as pursue
from mlp_interp.neurons.stores.triggers import memories as memories
from mlp_interp.neurons.sweeps.activity import activity as activity
from mlp_interp.neurons.sweeps.activity import outliers as outliers
from mlp_interp.neurons.sweeps.updates import update_shares as update_shares
from mlp_interp.neurons.weights.grouping import clusters as clusters
from mlp_interp.neurons.weights.similar import antipodal_pairs as antipodal_pairs
from mlp_interp.neurons.weights.similar import nearest_neurons as nearest_neurons
from mlp_interp.neurons.weights.statistics import neuron_weights as neuron_weights
from mlp_interp.neurons.weights.statistics import promoted_tokens as promoted_tokens

__all__ = [
    "AscentOptions",
    "activations",
    "activity",
    "antipodal_pairs",
    "clusters",
    "composition",
    "expected_embedding_generate",
    "maximize",
    "memories",
    "nearest_neurons",
    "neuron_page",
    "neuron_weights",
    "outliers",
    "promoted_tokens",
    "pursue",
    "update_events",
    "update_shares",
    "verdict",
    "verify_neuron",
]
__dir__ = __all__.copy
