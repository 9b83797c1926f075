"""`mlp-interp attribute`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mlp_interp.cli.early import check_model, check_text
from mlp_interp.cli.options import (
    Backend,
    BackendOption,
    DebugOption,
    DeviceOption,
    ModelOption,
    Processing,
    ProcessingOption,
    RevisionOption,
    check_file,
    clear_errors,
    load,
)


class Level(StrEnum):
    """How finely to split the residual stream."""

    component = "component"
    head = "head"
    neuron = "neuron"


def attribute(
    prompt: Annotated[str, typer.Argument(help="The text up to the word that is asked for.")],
    answer: Annotated[
        str,
        typer.Option("--answer", "-a", help="The word, one token. A leading space is added."),
    ],
    foil: Annotated[
        str | None,
        typer.Option("--foil", "-f", help="A word to compare with: attributes the difference."),
    ] = None,
    level: Annotated[
        Level, typer.Option("--level", "-l", help="Layers' outputs, heads, or single neurons.")
    ] = Level.component,
    top: Annotated[int, typer.Option("--top", "-k", min=1, help="How many to show.")] = 15,
    bos: Annotated[bool, typer.Option(help="Begin with <|endoftext|>, as in training.")] = True,
    model: ModelOption = "nano",
    device: DeviceOption = None,
    revision: RevisionOption = None,
    processing: ProcessingOption = Processing.folded,
    backend: BackendOption = Backend.auto,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with all digits.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write every share to a .nc file (xarray, netCDF), too."),
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Show what each component adds directly to the logit of an answer.

    The shares of all components sum to the logit (or to the difference of two logits).

    \b
    Examples:
      mlp-interp attribute "The capital of France is" --answer Paris --foil Rome
      mlp-interp attribute "The capital of France is" -a Paris -f Rome --level neuron --top 30
    """  # noqa: D301 (click reads the \\b)
    with clear_errors(debug):
        if out is not None:
            if out.suffix != ".nc":
                raise ValueError(f"--out must end in .nc, got {str(out)!r}")
            check_file("--out", out)
        texts = {"the prompt": prompt, "--answer": answer, "--foil": foil}
        for name, text in texts.items():
            if text is not None:
                check_text(name, text)
        check_model(model)

        from mlp_interp.report.console import attributed
        from mlp_interp.results import save

        loaded = load(model, revision, device, processing, backend)
        found = attributed(loaded, prompt, answer, foil, level=level.value, prepend_bos=bos)
        if out is not None:
            save(found.shares, out)
    typer.echo(found.json(top) if as_json else "\n".join(found.lines(top)))
