"""Recorded forward passes, with edits or without, and many that differ from one base run.

A `Run` is one recorded forward pass. A *patched run* leaves a base run where the stream at one
block's input changes: below that block, and before that position, both are the same, so nothing
there is computed again.
"""

from mlp_interp.runs.finals import final_streams as final_streams
from mlp_interp.runs.finals import rows_in as rows_in
from mlp_interp.runs.generation import Generation as Generation
from mlp_interp.runs.patched_run import Frozen as Frozen
from mlp_interp.runs.patched_run import PatchedRun as PatchedRun
from mlp_interp.runs.recorded import Run as Run
from mlp_interp.runs.runner import Runner as Runner
from mlp_interp.runs.runner import kept_sites as kept_sites
from mlp_interp.runs.runner import run as run
