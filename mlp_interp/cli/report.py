"""`mlp-interp report`."""

import shlex
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
    check_file,
    clear_errors,
    load,
    source_of,
)

_GO_ON = "interrupted; the same command goes on with what is finished"


def report(
    model: ModelOption = "nano",
    corpus: CorpusOption = ["nano"],  # noqa: B006 (typer copies it)
    sequences: SequencesOption = None,
    length: LengthOption = None,
    field: FieldOption = "text",
    split: SplitOption = None,
    subset: SubsetOption = None,
    errors: ErrorsOption = Errors.refuse,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The page; .nc and .json files go beside it.")
    ] = Path("report.html"),
    prompts: Annotated[int, typer.Option(min=1, help="Prompts per task to attribute.")] = 16,
    seed: Annotated[int, typer.Option(help="Draws sequences and prompts.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences per forward pass.")] = 16,
    only: Annotated[
        str | None, typer.Option(help="Sections, as 'importance,norms': no others.")
    ] = None,
    skip: Annotated[str | None, typer.Option(help="Sections to leave out, as 'ranges'.")] = None,
    device: DeviceOption = None,
    revision: RevisionOption = None,
    processing: ProcessingOption = Processing.folded,
    backend: BackendOption = Backend.auto,
    debug: DebugOption = False,
) -> None:
    """Measure every sub-update and write one self-contained HTML page.

    The page works offline. Beside it go all results as netCDF (read them with
    xarray.open_datatree) and the summary as JSON. An interrupted run keeps the analyses it has
    finished; the same command takes them up again.

    \b
    Examples:
      mlp-interp report
      mlp-interp report --sequences 256 --skip ranges,neurons --out big.html
      mlp-interp report -m pythia-160m --revision step1000 -c my.jsonl -n 500 -t 256
    """  # noqa: D301 (click reads the \\b)
    with clear_errors(debug, interrupted=_GO_ON):
        if out.suffix != ".html":
            raise ValueError(f"--out must end in .html, got {str(out)!r}")
        for suffix in (".html", ".nc", ".json"):
            check_file("--out", out.with_suffix(suffix))
        check_model(model)
        check_corpus(corpus)

        from mlp_interp.corpus import load_corpus
        from mlp_interp.report import build
        from mlp_interp.report.sections import chosen

        sections = chosen(_listed(only), _listed(skip) or [])
        loaded = load(model, revision, device, processing, backend)
        text = load_corpus(
            source_of(corpus),
            loaded,
            sequences=sequences,
            length=length,
            seed=seed,
            field=field,
            split=split,
            subset=subset,
            errors=errors.value,
            progress=sys.stderr.isatty(),
        )
        written = build(
            loaded,
            text,
            out=out,
            prompts=prompts,
            seed=seed,
            batch_size=batch_size,
            only=sections,
            command=shlex.join(["mlp-interp", *sys.argv[1:]]),
        )
    if written.reused:
        typer.echo(f"taken over from an interrupted run: {', '.join(written.reused)}", err=True)
    typer.echo("\n".join(written.summary.sentences[:3]))
    size = written.page.stat().st_size / 1e6
    typer.echo(f"\n{written.page} ({size:.1f} MB), with {written.data} and {written.numbers}")


def _listed(names: str | None) -> list[str] | None:
    """Names between commas."""
    return None if names is None else [name.strip() for name in names.split(",") if name.strip()]
