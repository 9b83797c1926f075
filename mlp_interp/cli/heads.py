"""`mlp-interp heads` and `mlp-interp induction`."""

from typing import Annotated

import typer

from mlp_interp.cli.options import (
    Backend,
    BackendOption,
    DebugOption,
    DeviceOption,
    ModelOption,
    OutOption,
    Processing,
    ProcessingOption,
    RevisionOption,
    check_data,
    clear_errors,
    load,
)


def heads(
    label: Annotated[
        str | None, typer.Argument(metavar="[HEAD]", help="As researchers write it: L1H3.")
    ] = None,
    top: Annotated[int, typer.Option("--top", "-k", min=1, help="Pairs of heads to show.")] = 5,
    out: OutOption = None,
    model: ModelOption = "nano",
    device: DeviceOption = None,
    revision: RevisionOption = None,
    processing: ProcessingOption = Processing.folded,
    backend: BackendOption = Backend.auto,
    debug: DebugOption = False,
) -> None:
    """Show what every head does, as far as its weights say; or all about one.

    Prints one row a head: attention to the previous token by position alone, whether it copies what
    it attends to, whether it looks for its own token, and ranks. Of one head, also whom it reads
    and who reads it, beyond chance, and where it looks on random tokens that come twice.

    \b
    Examples:
      mlp-interp heads
      mlp-interp heads L1H3
      mlp-interp heads --model pythia-70m -o heads.nc
    """  # noqa: D301 (click reads the \b)
    with clear_errors(debug):
        if out is not None:
            check_data("--out", out)

        from mlp_interp.cli.heads_text import one_head, role_lines
        from mlp_interp.heads import roles
        from mlp_interp.models import Weights
        from mlp_interp.results import save

        loaded = load(model, revision, device, processing, backend)
        site = None
        if label is not None:
            site = Weights.of(loaded).place(label, kind="head", argument="head")
        found = roles(loaded)
        if out is not None:
            save(found, out)
        lines = role_lines(found) if site is None else one_head(loaded, found, site, top)
    typer.echo("\n".join(lines))


def induction(
    texts: Annotated[
        int, typer.Option("--texts", "-n", min=1, help="Texts of random tokens that come twice.")
    ] = 64,
    period: Annotated[int, typer.Option(min=2, help="Different tokens in each.")] = 24,
    seed: Annotated[int, typer.Option(help="Draws the texts.")] = 0,
    out: OutOption = None,
    model: ModelOption = "nano",
    device: DeviceOption = None,
    revision: RevisionOption = None,
    processing: ProcessingOption = Processing.folded,
    backend: BackendOption = Backend.auto,
    debug: DebugOption = False,
) -> None:
    """Find the induction circuits, from weights, and ask texts whether they work.

    \b
    Examples:
      mlp-interp induction
      mlp-interp induction --model pythia-70m -o induction.nc
    """  # noqa: D301 (click reads the \b)
    with clear_errors(debug):
        if out is not None:
            check_data("--out", out)

        from mlp_interp.cli.heads_text import circuit_lines
        from mlp_interp.heads import induction as measured
        from mlp_interp.results import save

        loaded = load(model, revision, device, processing, backend)
        found = measured(loaded, n=texts, period=period, seed=seed)
        if out is not None:
            save(found, out)
        lines = circuit_lines(found)
    typer.echo("\n".join(lines))
