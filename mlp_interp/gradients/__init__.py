"""Gradients: fast estimates of what patching would do, edge by edge too, and how wrong they are."""

from mlp_interp.gradients.agreement import compare as compare
from mlp_interp.gradients.circuit import FRACTIONS as FRACTIONS
from mlp_interp.gradients.circuit import faithfulness as faithfulness
from mlp_interp.gradients.edges import edge_attribution as edge_attribution
from mlp_interp.gradients.graph import Graph as Graph
from mlp_interp.gradients.nodes import SITES as SITES
from mlp_interp.gradients.nodes import as_grid as as_grid
from mlp_interp.gradients.nodes import attribution_patch as attribution_patch
