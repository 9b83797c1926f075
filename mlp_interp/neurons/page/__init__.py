"""All that is known of one neuron, on one page."""
