"""Two runs, one exchanged for the other: what every analysis of a contrast is built on.

A `Question` is a contrast with a metric, checked. It gives a `Pair` of runs, the base that is
changed and the source that activations come from, with the metric read on both. An `Exchange` says
what the stream gets where activations of the source take the place of the base's. `measure` runs a
`Grid` of such exchanges, and `outcome_dataset` is what all of them are reported in. `merged` puts
together what prompts of several lengths gave, each length by itself. `Graph` says who writes to the
stream before whom reads.

("Interchange intervention": Geiger et al., "Causal Abstractions of Neural Networks", 2021.)
"""

from mlp_interp.interchange.exchange import Exchange as Exchange
from mlp_interp.interchange.exchange import Write as Write
from mlp_interp.interchange.graph import Graph as Graph
from mlp_interp.interchange.grid import Grid as Grid
from mlp_interp.interchange.grid import Positions as Positions
from mlp_interp.interchange.grid import grid_of as grid_of
from mlp_interp.interchange.grid import positions_of as positions_of
from mlp_interp.interchange.lengths import in_order as in_order
from mlp_interp.interchange.lengths import merged as merged
from mlp_interp.interchange.lengths import order_of as order_of
from mlp_interp.interchange.measuring import Added as Added
from mlp_interp.interchange.measuring import Outcome as Outcome
from mlp_interp.interchange.measuring import kept_for as kept_for
from mlp_interp.interchange.measuring import measure as measure
from mlp_interp.interchange.measuring import measure_added as measure_added
from mlp_interp.interchange.pair import Direction as Direction
from mlp_interp.interchange.pair import Pair as Pair
from mlp_interp.interchange.pair import Reading as Reading
from mlp_interp.interchange.question import Engine as Engine
from mlp_interp.interchange.question import GivenRuns as GivenRuns
from mlp_interp.interchange.question import Question as Question
from mlp_interp.interchange.question import engine_of as engine_of
from mlp_interp.interchange.question import given_runs as given_runs
from mlp_interp.interchange.result import both_runs as both_runs
from mlp_interp.interchange.result import outcome_dataset as outcome_dataset
