"""`mlp-interp latent`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from mlp_interp.cli.early import check_corpus, check_model
from mlp_interp.cli.neuron import check_places
from mlp_interp.cli.options import (
    Backend,
    BackendOption,
    CorpusOption,
    DebugOption,
    DeviceOption,
    DictionaryOption,
    Errors,
    ErrorsOption,
    FieldOption,
    FolderOption,
    LengthOption,
    ModelOption,
    PlaceOption,
    Processing,
    ProcessingOption,
    RevisionOption,
    SequencesOption,
    SplitOption,
    SubsetOption,
    clear_errors,
    load,
    source_of,
)

_GO_ON = "interrupted; the same command goes on with what is finished"


def latent(
    label: Annotated[
        str | None,
        typer.Argument(metavar="LATENT", help="L2F17, say; without one, the dictionary alone."),
    ] = None,
    dictionary: DictionaryOption = "",
    folder: FolderOption = None,
    place: PlaceOption = None,
    corpus: CorpusOption = ["nano"],  # noqa: B006 (typer copies it)
    sequences: SequencesOption = None,
    length: LengthOption = None,
    field: FieldOption = "text",
    split: SplitOption = None,
    subset: SubsetOption = None,
    errors: ErrorsOption = Errors.refuse,
    ablate: Annotated[
        int, typer.Option(min=1, help="Sequences on which the latent is taken away.")
    ] = 32,
    top: Annotated[
        int, typer.Option("--top", "-k", min=1, help="Tokens, examples and neighbours to show.")
    ] = 10,
    seed: Annotated[int, typer.Option(help="Draws sequences and examples.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences per forward pass.")] = 16,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The page. Default: L2F17.html, say.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="The numbers, .nc or .zarr. Default: beside the page.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Folder that keeps what is finished, as of neuron.")
    ] = None,
    model: ModelOption = "nano",
    device: DeviceOption = None,
    revision: RevisionOption = None,
    processing: ProcessingOption = Processing.folded,
    backend: BackendOption = Backend.auto,
    debug: DebugOption = False,
) -> None:
    """Show what a dictionary explains, and all about one of its latents.

    A dictionary is an SAE or transcoder of SAELens, sparsify or dictionary_learning. Prints what it
    leaves over and what the model loses with it in its place; with a latent, a summary, too, and
    writes a page that works offline, as of neuron, with the numbers beside it. Most published
    dictionaries are for --processing raw.

    \b
    Examples:
      mlp-interp latent --dictionary my-sae
      mlp-interp latent L2F17 --dictionary my-sae
      mlp-interp latent L3F5 -d EleutherAI/sae-pythia-70m-32k --folder layers.3.mlp \\
        --model pythia-70m --processing raw --corpus NeelNanda/pile-10k -n 200
    """  # noqa: D301 (click reads the \\b)
    with clear_errors(debug, interrupted=_GO_ON):
        if not dictionary:
            raise ValueError("--dictionary is missing; wanted a folder or a repository on the hub")
        _check_label(label)
        page, numbers = check_places(label or "dictionary", out, data, checkpoint)
        check_model(model)
        check_corpus(corpus)
        text = {"sequences": sequences, "length": length, "seed": seed, "field": field}
        text |= {"split": split, "subset": subset, "errors": errors.value}

        from mlp_interp import dictionaries
        from mlp_interp.cli.latent_page import build
        from mlp_interp.corpus import SweepOptions

        read = dictionaries.load(dictionary, folder=folder, place=place)
        written = build(
            load(model, revision, device, processing, backend),
            read,
            label,
            {"source": source_of(corpus), **text},
            page=page,
            data=numbers,
            sweep=SweepOptions(
                batch_size=batch_size, checkpoint=checkpoint, progress=sys.stderr.isatty()
            ),
            options={"k": top, "ablate": ablate, "seed": seed},
        )
    typer.echo("\n".join(written))
    if label is not None:
        typer.echo(f"\n{page} ({page.stat().st_size / 1e6:.1f} MB), with {numbers}")


def _check_label(label: str | None) -> None:
    """Refuse what is no label of a latent, before anything is loaded.

    Raises:
        ValueError: It is none.
    """
    from mlp_interp.sites import Site

    if label is None:
        return
    try:
        site = Site.parse(label)
    except ValueError:
        site = None
    if site is None or site.name != "latents" or site.neuron is None:
        raise ValueError(f"latent={label!r}; wanted a label such as L2F17")
