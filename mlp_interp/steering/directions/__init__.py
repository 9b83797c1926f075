"""Directions in a model's activations: how they are found."""
