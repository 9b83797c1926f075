"""What the model would say if it stopped at each layer."""

from mlp_interp.lens._read import read as read
from mlp_interp.lens.lens import Lens as Lens
from mlp_interp.lens.lens import decoder as decoder
from mlp_interp.lens.lens import logit as logit
