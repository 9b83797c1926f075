"""Which sets of tokens, and in which orders, can the stream put on top of the ranking?"""

from mlp_interp.reach._argmaxable import argmaxable as argmaxable
from mlp_interp.reach._certificate import with_certificate as with_certificate
from mlp_interp.reach._law import needed_dimension as needed_dimension
from mlp_interp.reach._nearest import nearest_streams as nearest_streams
from mlp_interp.reach._reachable import reachable as reachable
from mlp_interp.reach._share import reachable_share as reachable_share

__all__ = [
    "argmaxable",
    "nearest_streams",
    "needed_dimension",
    "reachable",
    "reachable_share",
    "with_certificate",
]
__dir__ = __all__.copy
