"""What the commands share: options, loading, errors as one line."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
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


class Errors(StrEnum):
    """What becomes of a corpus with documents that are damaged."""

    refuse = "raise"
    skip = "skip"


# Help texts that several commands share.
MODEL_HELP = (
    "'nano' (comes with the package), 'smollm2' (comes by pip), a Pythia name such as "
    "'pythia-70m', or a directory."
)
ModelOption = Annotated[str, typer.Option("--model", "-m", help=MODEL_HELP)]
RevisionOption = Annotated[
    str | None, typer.Option(help="Training checkpoint of a Pythia model, such as 'step143000'.")
]
DeviceOption = Annotated[
    str | None, typer.Option(help="'cpu', 'cuda' or 'cuda:1'. Default: CUDA if there is any.")
]
DictionaryOption = Annotated[
    str,
    typer.Option(
        "--dictionary", "-d", help="Its folder, or its repository on the hub.", metavar="FOLDER"
    ),
]
FolderOption = Annotated[
    str | None, typer.Option(help="Its own folder in a repository: layers.3.mlp, say.")
]
PlaceOption = Annotated[
    str | None, typer.Option(help="What it is of, where its files do not say: 3.mlp, say.")
]
ProcessingOption = Annotated[
    Processing,
    typer.Option(help="Fold LayerNorm into the weights (as TransformerLens does), or leave them."),
]
BackendOption = Annotated[Backend, typer.Option(help="TransformerLens class to load with.")]
CorpusOption = Annotated[
    list[str],
    typer.Option(
        "--corpus",
        "-c",
        help="'nano' (held-out text of the nano model), a .txt, .jsonl, .jsonl.zst or .parquet "
        "file, a folder or a quoted glob of such files (also given several times), or a Hugging "
        "Face data set such as 'NeelNanda/pile-10k'.",
    ),
]
FieldOption = Annotated[
    str, typer.Option(help="The field of .jsonl, .parquet and data sets that holds the text.")
]
SplitOption = Annotated[
    str | None, typer.Option(help="Split of a data set. Default: 'train'; of nano, 'heldout'.")
]
SubsetOption = Annotated[str | None, typer.Option(help="Configuration of a Hugging Face data set.")]
ErrorsOption = Annotated[
    Errors, typer.Option(help="Documents that are damaged: refuse the corpus, or skip and count.")
]
SequencesOption = Annotated[
    int | None,
    typer.Option(
        "--sequences", "-n", min=1, help="How many. Default: 64 of nano, else up to 10,000."
    ),
]
LengthOption = Annotated[
    int | None,
    typer.Option(
        "--length", "-t", min=2, help="Tokens in each. Default: 600 of a data set, else 128."
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Write all numbers to a .nc or .zarr file, too."),
]
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


def source_of(names: list[str]) -> str | list[str]:
    """What `load_corpus` takes: one name as it is, several as a list of files."""
    return names[0] if len(names) == 1 else names


def numbers_of(option: str, given: str) -> list[int]:
    """Whole numbers with commas between.

    Raises:
        ValueError: They are not.
    """
    parts = [part.strip() for part in given.split(",")]
    for part in parts:
        if not part.isdecimal():
            raise ValueError(f"{option} has {part!r}; wanted whole numbers with commas between")
    return list(map(int, parts))


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
        line = " ".join(str(error).split())
        if not line.isprintable():  # loads torch, for which there need be no reason yet
            from mlp_interp.prompts.display import visible

            line = visible(line)
        typer.echo(f"error: {line}", err=True)
        raise typer.Exit(BAD_INPUT) from None


def check_file(option: str, path: Path) -> None:
    """Refuse, before anything is computed, what no file can be written to.

    Args:
        option: The option that named it, as ``--out``.
        path: The file.

    Raises:
        ValueError: It is a folder, or the folder it lies in is missing or cannot be written to.
    """
    if path.is_dir():
        raise ValueError(f"{option} wanted a file, got the folder {str(path)!r}")
    _check_inside(option, path)


def check_folder(option: str, path: Path) -> None:
    """Refuse, before anything is computed, what no folder with files can be made of.

    Raises:
        ValueError: It is a file, or cannot be made or written to.
    """
    _check_inside(option, path / "a file", make=True)


def check_data(option: str, path: Path) -> None:
    """Refuse, before anything is computed, numbers that cannot be written or would replace others.

    Raises:
        ValueError: The name does not end in ``.nc`` or ``.zarr``; or as `check_file`; of folders a
            zarr store may be replaced by another.
    """
    if path.suffix not in (".nc", ".zarr"):
        raise ValueError(f"{option} must end in .nc or .zarr, got {str(path)!r}")
    if path.is_dir() and path.suffix == ".zarr":
        from mlp_interp.results import is_store  # loads torch

        if path.is_symlink() or not is_store(path):
            raise ValueError(
                f"{option} wanted a zarr store or nothing yet, got a folder of other things: "
                f"{str(path)!r}"
            )
        _check_inside(option, path)
    else:
        check_file(option, path)


def _check_inside(option: str, path: Path, *, make: bool = False) -> None:
    folder = path.absolute().parent
    found = next(place for place in (folder, *folder.parents) if place.exists())
    if not found.is_dir():
        raise ValueError(f"{option} wanted a folder, got the file {str(found)!r}")
    if found != folder and not make:
        raise ValueError(f"{option} must lie in a folder that exists, got {str(path)!r}")
    if not os.access(found, os.W_OK | os.X_OK):
        raise ValueError(f"{option} wanted a folder to write to, got {str(found)!r}")
