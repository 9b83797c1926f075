"""Inputs made for a neuron instead of read: the best of all, and mixtures of tokens."""
