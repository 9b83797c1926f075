"""What the model would say if it stopped at each layer."""

from mlp_interp.lens._over import over as over
from mlp_interp.lens._parts import read_parts as read_parts
from mlp_interp.lens._patchscope import patchscope as patchscope
from mlp_interp.lens._read import read as read
from mlp_interp.lens._repetition import repetition as repetition
from mlp_interp.lens._tuned import tuned as tuned
from mlp_interp.lens._vectors import read_vectors as read_vectors
from mlp_interp.lens.files import load as load
from mlp_interp.lens.files import save as save
from mlp_interp.lens.fitted import linear as linear
from mlp_interp.lens.fitted import mean as mean
from mlp_interp.lens.lens import Lens as Lens
from mlp_interp.lens.lens import decoder as decoder
from mlp_interp.lens.lens import logit as logit

__all__ = [
    "Lens",
    "decoder",
    "linear",
    "load",
    "logit",
    "mean",
    "over",
    "patchscope",
    "read",
    "read_parts",
    "read_vectors",
    "repetition",
    "save",
    "tuned",
]
__dir__ = __all__.copy
