"""The report's section on neurons: measured, put into words, and drawn."""

from mlp_interp.report.neurons.measuring import Neurons as Neurons
from mlp_interp.report.neurons.measuring import measure as measure
from mlp_interp.report.neurons.showing import shown as shown
from mlp_interp.report.neurons.telling import numbers as numbers
from mlp_interp.report.neurons.telling import sentences as sentences

__all__ = ["Neurons", "measure", "numbers", "sentences", "shown"]
