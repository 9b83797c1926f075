"""What does an MLP, a head or a single neuron of a Pythia model do?"""

from mlp_interp.models import check_model as check_model
from mlp_interp.models import load_model as load_model
