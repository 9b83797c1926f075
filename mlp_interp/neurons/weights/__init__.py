"""What weights alone say of a neuron: its two vectors, their tokens, norms and neighbours."""
