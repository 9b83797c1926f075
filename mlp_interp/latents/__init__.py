"""What a dictionary's latents write, do and mean, and what it leaves unexplained."""

from mlp_interp.latents._ablate import ablate as ablate
from mlp_interp.latents._absorption import absorption as absorption
from mlp_interp.latents._activity import activity as activity
from mlp_interp.latents._attribution import attribution_patch as attribution_patch
from mlp_interp.latents._direction import direction as direction
from mlp_interp.latents._evaluate import evaluate as evaluate
from mlp_interp.latents._page import page as page
from mlp_interp.latents._patch import patch as patch
from mlp_interp.latents._recovery import recovery as recovery
from mlp_interp.latents._replace import replace as replace
from mlp_interp.latents._separate import separate as separate
from mlp_interp.latents._train import train as train
from mlp_interp.latents._virtual import virtual_weights as virtual_weights
from mlp_interp.latents.in_runs import activations as activations

__all__ = [
    "ablate",
    "absorption",
    "activations",
    "activity",
    "attribution_patch",
    "direction",
    "evaluate",
    "page",
    "patch",
    "recovery",
    "replace",
    "separate",
    "train",
    "virtual_weights",
]
__dir__ = __all__.copy
