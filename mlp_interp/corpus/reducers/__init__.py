"""What `sweep` can sum up over a corpus; write your own by deriving from `Reducer`."""

from mlp_interp.corpus.reducers.base import Batch as Batch
from mlp_interp.corpus.reducers.base import Reducer as Reducer
from mlp_interp.corpus.reducers.base import Shape as Shape
from mlp_interp.corpus.reducers.base import SiteReducer as SiteReducer
from mlp_interp.corpus.reducers.base import State as State
from mlp_interp.corpus.reducers.covariance import Covariance as Covariance
from mlp_interp.corpus.reducers.examples import BandExamples as BandExamples
from mlp_interp.corpus.reducers.examples import TopExamples as TopExamples
from mlp_interp.corpus.reducers.fraction import Fraction as Fraction
from mlp_interp.corpus.reducers.histogram import Histogram as Histogram
from mlp_interp.corpus.reducers.histogram import quantiles as quantiles
from mlp_interp.corpus.reducers.moments import Mean as Mean
from mlp_interp.corpus.reducers.moments import Moments as Moments
from mlp_interp.corpus.reducers.sizes import Loss as Loss
from mlp_interp.corpus.reducers.sizes import Norms as Norms
from mlp_interp.corpus.reducers.together import CoActivation as CoActivation
from mlp_interp.corpus.reducers.token_means import TokenMeans as TokenMeans
from mlp_interp.corpus.reducers.units import UnitReducer as UnitReducer

__all__ = [
    "BandExamples",
    "Batch",
    "CoActivation",
    "Covariance",
    "Fraction",
    "Histogram",
    "Loss",
    "Mean",
    "Moments",
    "Norms",
    "Reducer",
    "Shape",
    "SiteReducer",
    "State",
    "TokenMeans",
    "TopExamples",
    "UnitReducer",
    "quantiles",
]
