"""What the commands share: options, loading, errors as one line."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated, Any

import typer

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130


class Processing(StrEnum):
    """Weights as TransformerLens folds them, or as trained."""

    folded = "folded"
    raw = "raw"


class Backend(StrEnum):
    """Which TransformerLens class holds the model."""

    auto = "auto"
    hooked = "hooked"
    bridge = "bridge"


# Help texts that several commands share.
MODEL_HELP = "'nano' (comes with the package), a Pythia name such as 'pythia-70m', or a directory."
ModelOption = Annotated[str, typer.Option("--model", "-m", help=MODEL_HELP)]
RevisionOption = Annotated[
    str | None, typer.Option(help="Training checkpoint of a Pythia model, such as 'step143000'.")
]
DeviceOption = Annotated[
    str | None, typer.Option(help="'cpu', 'cuda' or 'cuda:1'. Default: CUDA if there is any.")
]
ProcessingOption = Annotated[
    Processing,
    typer.Option(help="Fold LayerNorm into the weights (as TransformerLens does), or leave them."),
]
BackendOption = Annotated[Backend, typer.Option(help="TransformerLens class to load with.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")]


def load(
    model: str,
    revision: str | None,
    device: str | None,
    processing: Processing,
    backend: Backend,
) -> Any:
    """The model that the options name."""
    from transformers.utils import logging

    from mlp_interp.models import load_model

    logging.disable_progress_bar()  # weights are read in a moment; errors stay alone on stderr
    return load_model(
        model,
        revision=revision,
        device=device,
        processing=processing.value,
        backend=backend.value,
    )


@contextmanager
def clear_errors(debug: bool, *, interrupted: str = "interrupted") -> Iterator[None]:
    """Bad input becomes one line on stderr and exit status 2, unless --debug asks for more."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(interrupted, err=True)
        raise typer.Exit(INTERRUPTED) from None
    except (ValueError, OSError) as error:
        if debug:
            traceback.print_exc(file=sys.stderr)
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(BAD_INPUT) from None
