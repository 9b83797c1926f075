"""Runs that differ from one base run only from some layer and position on, many at a time.

A *trunk* is a forward pass with what later passes can take from it. A *branch* leaves it where the
stream at one block's input changes: below that block, and before that position, both are the same,
so nothing there is computed again.
"""

from mlp_interp.branches.branch import Branch as Branch
from mlp_interp.branches.branch import Pin as Pin
from mlp_interp.branches.grow import grow as grow
from mlp_interp.branches.grow import rows_in as rows_in
from mlp_interp.branches.trunk import Trunk as Trunk
