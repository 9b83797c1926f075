"""`mlp-interp absorption`."""

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
    DictionaryOption,
    FolderOption,
    ModelOption,
    OutOption,
    PlaceOption,
    Processing,
    ProcessingOption,
    RevisionOption,
    check_data,
    clear_errors,
    load,
)


def absorption(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="A .csv file with a line of names, or .jsonl: one text a row."
        ),
    ],
    dictionary: DictionaryOption,
    folder: FolderOption = None,
    place: PlaceOption = None,
    label: Annotated[
        str, typer.Option("--label", "-y", help="The column that says of which kind a text is.")
    ] = "label",
    text: Annotated[str, typer.Option(help="The column of texts.")] = "text",
    k: Annotated[
        int, typer.Option("--main", "-k", min=1, help="Main latents that a kind may have.")
    ] = 1,
    share: Annotated[
        float, typer.Option(help="What another latent must write of a text to take it over.")
    ] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Draws halves and the null.")] = 0,
    out: OutOption = None,
    model: ModelOption = "nano",
    device: DeviceOption = None,
    revision: RevisionOption = None,
    processing: ProcessingOption = Processing.folded,
    backend: BackendOption = Backend.auto,
    debug: DebugOption = False,
) -> None:
    """Say in which texts of a kind other latents stand for the kind's own.

    Texts are read at their last token. Half of them choose each kind's direction and its main
    latents; of the others it is said how many the main latents miss, and in how many another
    latent writes the direction instead, beside the same with decoder rows exchanged.

    \b
    Examples:
      mlp-interp absorption texts.csv --dictionary my-sae
      mlp-interp absorption words.jsonl -d my-sae -y letter --text word -k 2
    """  # noqa: D301 (click reads the \\b)
    with clear_errors(debug):
        if out is not None:
            check_data("--out", out)
        check_table(file)
        check_model(model)
        rows = rows_of(file)
        labels = labels_of(rows, [label], classes=True)[label]
        if text not in rows[0]:
            raise ValueError(f"--text {text!r} is no column; wanted one of {', '.join(rows[0])}")
        kinds: dict[str, list[str]] = {}
        for row, kind in zip(rows, labels, strict=True):
            kinds.setdefault(kind, []).append(str(row[text]))

        from mlp_interp import dictionaries, latents
        from mlp_interp.cli.absorption_text import lines_of
        from mlp_interp.results import save

        read = dictionaries.load(dictionary, folder=folder, place=place)
        loaded = load(model, revision, device, processing, backend)
        found = latents.absorption(loaded, read, kinds, k=k, share=share, seed=seed)
        if out is not None:
            save(found, out)
        lines = lines_of(found)
    typer.echo("\n".join(lines))
