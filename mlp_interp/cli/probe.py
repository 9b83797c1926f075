"""`mlp-interp probe`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mlp_interp.cli.early import check_model
from mlp_interp.cli.labelled import check_table, labels_of, rows_of
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
    numbers_of,
)


class Position(StrEnum):
    """Where a prompt is read."""

    entity = "entity"
    last = "last"
    mean = "mean"


class Apart(StrEnum):
    """What stays together when prompts are kept to be tested on."""

    entity = "entity"
    template = "template"
    prompt = "prompt"


def probe(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="A .csv file with a line of names, or .jsonl: one prompt a row."
        ),
    ],
    label: Annotated[
        list[str], typer.Option("--label", "-y", help="Its column of labels; several of numbers.")
    ] = ["label"],  # noqa: B006 (typer copies it)
    template: Annotated[
        list[str], typer.Option("--template", help="Prompts, with columns in braces; or several.")
    ] = ["{text}"],  # noqa: B006
    entity: Annotated[
        str | None,
        typer.Option(help="The column that says what a prompt is about: its rows stay together."),
    ] = None,
    position: Annotated[
        Position | None,
        typer.Option(help="Where to read. Default: the entity where templates hold it, else last."),
    ] = None,
    classes: Annotated[
        bool, typer.Option("--classes", help="Labels are classes, even where they are numbers.")
    ] = False,
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers",
            "-l",
            help="With commas between: 0,2,5. Default: all. The embedding is always there.",
        ),
    ] = None,
    site: Annotated[
        str | None,
        typer.Option(help="What is read. Default: resid_post; with --sparse post, the neurons."),
    ] = None,
    sparse: Annotated[
        str | None,
        typer.Option(help="Read two classes in so few units instead, with commas between: 1,2,8."),
    ] = None,
    folds: Annotated[int, typer.Option(min=2, help="Parts that are tested on in turn.")] = 5,
    split: Annotated[Apart, typer.Option(help="What stays together.")] = Apart.entity,
    controls: Annotated[int, typer.Option(min=0, help="How often to do it without a signal.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Draws parts and controls.")] = 0,
    out: OutOption = None,
    model: ModelOption = "nano",
    device: DeviceOption = None,
    revision: RevisionOption = None,
    processing: ProcessingOption = Processing.folded,
    backend: BackendOption = Backend.auto,
    debug: DebugOption = False,
) -> None:
    """Say at which layers a straight line reads the labels of prompts.

    Lines are tested on entities that they were not fitted on, and held against the same with labels
    exchanged among entities and against what the token says by itself. With --sparse the best few
    neurons are held against as many random directions, searched alike.

    \b
    Examples:
      mlp-interp probe texts.csv
      mlp-interp probe years.csv -y year --template "The war of {year}" --entity year
      mlp-interp probe texts.jsonl --sparse 1,4,16 --position mean --layers 2,3
    """  # noqa: D301 (click reads the \\b)
    with clear_errors(debug):
        if out is not None:
            check_data("--out", out)
        check_table(file)
        check_model(model)
        few = None if sparse is None else numbers_of("--sparse", sparse)
        chosen = None if layers is None else numbers_of("--layers", layers)
        rows = rows_of(file)
        labels = labels_of(rows, label, classes=classes or few is not None)

        from mlp_interp.cli.probe_text import lines_of, sparse_lines
        from mlp_interp.probes import Labelled, sparse_probe
        from mlp_interp.probes import probe as fitted
        from mlp_interp.results import save

        loaded = load(model, revision, device, processing, backend)
        data = Labelled.of(
            loaded,
            rows,
            text=template,
            y=labels,
            entity=entity,
            position=None if position is None else position.value,
        )
        options = {
            "layers": chosen,
            "folds": folds,
            "split": split.value,
            "controls": controls,
            "seed": seed,
        }
        if few is None:
            found = fitted(loaded, data, site=site or "resid_post", **options)
        else:
            found = sparse_probe(loaded, data, k=few, site=site or "post", **options)
        if out is not None:
            save(found, out)
        lines = lines_of(found) if few is None else sparse_lines(found)
    typer.echo("\n".join(lines))
