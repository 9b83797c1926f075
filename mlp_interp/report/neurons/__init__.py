"""The report's section on neurons: measured, put into words, and drawn."""

from mlp_interp.report.neurons.compute import Neurons as Neurons
from mlp_interp.report.neurons.compute import measure as measure
from mlp_interp.report.neurons.figures import shown as shown
from mlp_interp.report.neurons.words import numbers as numbers
from mlp_interp.report.neurons.words import sentences as sentences

__all__ = ["Neurons", "measure", "numbers", "sentences", "shown"]
