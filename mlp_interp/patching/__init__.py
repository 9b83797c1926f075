"""Activation patching: exchange activations between two runs and see what comes of it."""

from mlp_interp.patching._patch import patch as patch
from mlp_interp.patching.trace import causal_trace as causal_trace
