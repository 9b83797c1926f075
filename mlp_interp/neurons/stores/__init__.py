"""MLPs as key-value memories: what sets a neuron off, and what its value says comes next."""
