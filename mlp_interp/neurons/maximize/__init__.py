"""Feature visualisation: the input that drives an activation highest, or lowest."""

from mlp_interp.neurons.maximize.maximize import maximize as maximize

__all__ = ["maximize"]
