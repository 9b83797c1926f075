"""Loading models, checking them, and reading their weights."""

from mlp_interp.models._fingerprint import fingerprint as fingerprint
from mlp_interp.models._portable import portable as portable
from mlp_interp.models.check import check_model as check_model
from mlp_interp.models.engine import HookForward as HookForward
from mlp_interp.models.engine import forward_of as forward_of
from mlp_interp.models.forward import Forward as Forward
from mlp_interp.models.forward import UnsupportedModel as UnsupportedModel
from mlp_interp.models.loading import PYTHIA as PYTHIA
from mlp_interp.models.loading import describe as describe
from mlp_interp.models.loading import load_model as load_model
from mlp_interp.models.unembed import Unembed as Unembed
from mlp_interp.models.weights import Weights as Weights
