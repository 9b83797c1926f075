"""What logits mean: effects of their changes, and one number a prompt to compare runs by."""

from mlp_interp.metrics.change import Effects as Effects
from mlp_interp.metrics.change import LogitChange as LogitChange
from mlp_interp.metrics.change import Tally as Tally
from mlp_interp.metrics.change import rows_for as rows_for
from mlp_interp.metrics.divergence import excess as excess
from mlp_interp.metrics.divergence import kl_from_change as kl_from_change
from mlp_interp.metrics.metric import KL as KL
from mlp_interp.metrics.metric import Continuation as Continuation
from mlp_interp.metrics.metric import Custom as Custom
from mlp_interp.metrics.metric import Linear as Linear
from mlp_interp.metrics.metric import Metric as Metric
from mlp_interp.metrics.metric import Reader as Reader
from mlp_interp.metrics.named import METRICS as METRICS
from mlp_interp.metrics.named import MetricLike as MetricLike
from mlp_interp.metrics.named import answer_log_probability as answer_log_probability
from mlp_interp.metrics.named import kl as kl
from mlp_interp.metrics.named import log_probability as log_probability
from mlp_interp.metrics.named import logit as logit
from mlp_interp.metrics.named import logit_difference as logit_difference
from mlp_interp.metrics.named import metric_for as metric_for
from mlp_interp.metrics.named import of_function as of_function
from mlp_interp.metrics.named import probability as probability
from mlp_interp.metrics.named import probability_difference as probability_difference
from mlp_interp.metrics.values import finite as finite
from mlp_interp.metrics.values import normalized as normalized

__all__ = [
    "KL",
    "METRICS",
    "Continuation",
    "Custom",
    "Effects",
    "Linear",
    "Metric",
    "MetricLike",
    "answer_log_probability",
    "kl",
    "log_probability",
    "logit",
    "logit_difference",
    "probability",
    "probability_difference",
]
__dir__ = __all__.copy
