"""Whether a neuron means what it seems to, on texts with and without the feature."""
