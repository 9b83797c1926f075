"""The command line: `mlp-interp report`, `check`, `attribute`, `patch`, `neuron`.

Only the standard library and typer are imported here, so that `--help` answers at once; torch and
the models are imported when a command runs.
"""

from mlp_interp.cli.commands import app as app
