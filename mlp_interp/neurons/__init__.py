"""What every neuron reads, writes and does.

A neuron reads the normalised stream through its *receptor* (its column of ``W_in``), and, where it
fires, adds its *value vector* (its row of ``W_out``) to the stream.
"""

from mlp_interp.neurons.similar import antipodal_pairs as antipodal_pairs
from mlp_interp.neurons.similar import nearest_neurons as nearest_neurons
from mlp_interp.neurons.weights import neuron_weights as neuron_weights
from mlp_interp.neurons.weights import promoted_tokens as promoted_tokens

__all__ = [
    "antipodal_pairs",
    "nearest_neurons",
    "neuron_weights",
    "promoted_tokens",
]
