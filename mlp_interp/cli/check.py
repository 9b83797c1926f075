"""`mlp-interp check`."""

from typing import Annotated

import typer

from mlp_interp.cli.options import (
    FAILED,
    MODEL_HELP,
    Backend,
    BackendOption,
    DebugOption,
    DeviceOption,
    Processing,
    ProcessingOption,
    RevisionOption,
    clear_errors,
    load,
)


def check(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    device: DeviceOption = None,
    revision: RevisionOption = None,
    processing: ProcessingOption = Processing.folded,
    backend: BackendOption = Backend.auto,
    debug: DebugOption = False,
) -> None:
    """Check that a model, as loaded, computes what its weights and its source say.

    Compares its predictions with the Hugging Face forward, and the sum of its components with its
    residual stream. Exit status 1 if either differs.

    \b
    Examples:
      mlp-interp check nano
      mlp-interp check pythia-70m --processing raw
      mlp-interp check path/to/a/hugging-face/directory
    """  # noqa: D301 (click reads the \\b)
    with clear_errors(debug):
        from mlp_interp.models import check_model

        found = check_model(load(model, revision, device, processing, backend))
    for name, variable in found.data_vars.items():
        value, unit = variable.item(), variable.attrs.get("unit", "")
        shown = f"{value:.1e} {unit}" if isinstance(value, float) else str(value).lower()
        typer.echo(f"{name:<22} {shown}")
    for name in ("model", "revision", "processing", "dtype", "device", "backend"):
        typer.echo(f"{name:<22} {found.attrs[name]}")
    if not bool(found["ok"]):
        typer.echo("error: the model does not compute what it should; see above", err=True)
        raise typer.Exit(FAILED)
