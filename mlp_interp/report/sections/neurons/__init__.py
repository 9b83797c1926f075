"""What do the neurons do? Measured, put into words, and drawn."""

from mlp_interp.report.section import Section
from mlp_interp.report.sections.neurons.compute import Neurons as Neurons
from mlp_interp.report.sections.neurons.compute import measure as measure
from mlp_interp.report.sections.neurons.figures import shown as shown
from mlp_interp.report.sections.neurons.words import numbers as numbers
from mlp_interp.report.sections.neurons.words import sentences as sentences

__all__ = ["NEURONS", "Neurons", "measure", "numbers", "sentences", "shown"]

NEURONS = Section(
    name="neurons",
    title="Neurons",
    compute=measure,
    show=shown,
    parts=vars,
    sentences=sentences,
    numbers=numbers,
    cost=lambda work: 6.0,
    template="neurons/neurons.html",
)
