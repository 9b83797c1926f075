"""Recorded forward passes, with edits or without, and many that differ from one base run.

A `Run` is one recorded forward pass. A *patched run* leaves a base run where the stream at one
block's input changes: below that block, and before that position, both are the same, so nothing
there is computed again.
"""

from mlp_interp.runs.generate import Generation as Generation
from mlp_interp.runs.patched import Branch as Branch
from mlp_interp.runs.patched import Pin as Pin
from mlp_interp.runs.run_patched import grow as grow
from mlp_interp.runs.run_patched import rows_in as rows_in
from mlp_interp.runs.runner import Run as Run
from mlp_interp.runs.runner import Runner as Runner
from mlp_interp.runs.trunk import Trunk as Trunk
