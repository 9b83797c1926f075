"""Decomposition of a residual stream into the components that wrote it."""

from mlp_interp.residual._decompose import cache_for as cache_for
from mlp_interp.residual._decompose import check_site as check_site
from mlp_interp.residual._decompose import components as components
from mlp_interp.residual._decompose import decompose as decompose
from mlp_interp.residual._decompose import needed as needed
from mlp_interp.residual._norms import norms as norms
from mlp_interp.residual.edited import told_by as told_by
from mlp_interp.residual.layout import Layout as Layout
from mlp_interp.residual.parts import Part as Part
from mlp_interp.residual.parts import Stand as Stand
from mlp_interp.residual.stream import LEVELS as LEVELS
from mlp_interp.residual.stream import Level as Level
from mlp_interp.residual.stream import Residual as Residual
