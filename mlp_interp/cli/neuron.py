"""`mlp-interp neuron`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from mlp_interp.cli.early import check_corpus, check_model
from mlp_interp.cli.options import (
    Backend,
    BackendOption,
    CorpusOption,
    DebugOption,
    DeviceOption,
    Errors,
    ErrorsOption,
    FieldOption,
    LengthOption,
    ModelOption,
    Processing,
    ProcessingOption,
    RevisionOption,
    SequencesOption,
    SplitOption,
    SubsetOption,
    check_data,
    check_file,
    check_folder,
    clear_errors,
    load,
    source_of,
)

_GO_ON = "interrupted; the same command goes on with what is finished"


def neuron(
    label: Annotated[
        str, typer.Argument(metavar="NEURON", help="As researchers write it: L3N669.")
    ],
    corpus: CorpusOption = ["nano"],  # noqa: B006 (typer copies it)
    sequences: SequencesOption = None,
    length: LengthOption = None,
    field: FieldOption = "text",
    split: SplitOption = None,
    subset: SubsetOption = None,
    errors: ErrorsOption = Errors.refuse,
    ablate: Annotated[
        int, typer.Option(min=1, help="Sequences on which the neuron is taken away.")
    ] = 32,
    memory: Annotated[
        bool, typer.Option(help="Ask whether its value says what follows its triggers, too.")
    ] = True,
    top: Annotated[
        int, typer.Option("--top", "-k", min=1, help="Tokens, examples and neighbours to show.")
    ] = 10,
    seed: Annotated[int, typer.Option(help="Draws sequences and examples.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences per forward pass.")] = 16,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The page. Default: L3N669.html, say.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="The numbers, .nc or .zarr. Default: beside the page.")
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Folder that keeps what is finished, for this and later runs. Default: one beside "
            "the page, deleted when it is written."
        ),
    ] = None,
    model: ModelOption = "nano",
    device: DeviceOption = None,
    revision: RevisionOption = None,
    processing: ProcessingOption = Processing.folded,
    backend: BackendOption = Backend.auto,
    debug: DebugOption = False,
) -> None:
    """Show all about one neuron: when it fires, on what, and what that does.

    Prints a summary and writes a page that works offline, with the numbers beside it (read them
    with mlp_interp.load): weights, activations and examples over the corpus, the tokens that the
    neuron promotes, whether these come next where it is most active, what is lost without it,
    similar neurons. An interrupted run goes on where it stopped.

    \b
    Examples:
      mlp-interp neuron L3N506
      mlp-interp neuron L3N609 --model pythia-70m --corpus NeelNanda/pile-10k -n 1000
    """  # noqa: D301 (click reads the \\b)
    with clear_errors(debug, interrupted=_GO_ON):
        page, numbers = _check(label, out, data, checkpoint)
        check_model(model)
        check_corpus(corpus)
        text = {"sequences": sequences, "length": length, "seed": seed, "field": field}
        text |= {"split": split, "subset": subset, "errors": errors.value}

        from mlp_interp.cli.neuron_page import build
        from mlp_interp.corpus import SweepOptions

        written = build(
            load(model, revision, device, processing, backend),
            label,
            {"source": source_of(corpus), **text},
            page=page,
            data=numbers,
            sweep=SweepOptions(
                batch_size=batch_size, checkpoint=checkpoint, progress=sys.stderr.isatty()
            ),
            options={"k": top, "ablate": ablate, "seed": seed},
            memory=memory,
        )
    typer.echo("\n".join(written))
    typer.echo(f"\n{page} ({page.stat().st_size / 1e6:.1f} MB), with {numbers}")


def _check(
    label: str, out: Path | None, data: Path | None, checkpoint: Path | None
) -> tuple[Path, Path]:
    """Refuse what cannot work before a model is loaded.

    Returns:
        Where the page and the numbers go.
    """
    from mlp_interp.sites import Site

    try:
        site = Site.parse(label)
    except ValueError:
        site = None
    if site is None or site.neuron is None or site.name != "post":
        raise ValueError(f"neuron={label!r}; wanted a label such as L3N669")
    return check_places(label, out, data, checkpoint)


def check_places(
    label: str, out: Path | None, data: Path | None, checkpoint: Path | None
) -> tuple[Path, Path]:
    """Where a page and its numbers go: named after what they are of, unless told otherwise.

    Raises:
        ValueError: They cannot be written there.
    """
    page = Path(f"{label}.html") if out is None else out
    numbers = page.with_suffix(".nc") if data is None else data
    if page.suffix != ".html":
        raise ValueError(f"--out must end in .html, got {str(out)!r}")
    check_file("--out", page)
    check_data("--data", numbers)
    if checkpoint is not None:
        check_folder("--checkpoint", checkpoint)
    return page, numbers
