"""The command line: `mlp-interp report`, `check` and `attribute`.

Only the standard library and typer are imported here, so that `--help` answers at once; torch and
the models are imported when a command runs.
"""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


class Processing(StrEnum):
    """Weights as TransformerLens folds them, or as trained."""

    folded = "folded"
    raw = "raw"


class Backend(StrEnum):
    """Which TransformerLens class holds the model."""

    auto = "auto"
    hooked = "hooked"
    bridge = "bridge"


class Level(StrEnum):
    """How finely to split the residual stream."""

    component = "component"
    head = "head"
    neuron = "neuron"


# Help texts that several commands share.
_MODEL = "'nano' (comes with the package), a Pythia name such as 'pythia-70m', or a directory."
ModelOption = Annotated[str, typer.Option("--model", "-m", help=_MODEL)]
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


def _print_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"mlp-interp {metadata.version('mlp-interp')}")
        raise typer.Exit
    return wanted


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """What does each sub-update of a Pythia model do, directly and through later layers?

    \b
    Start with the model that comes with the package:
      mlp-interp report                        writes report.html
      mlp-interp report --model pythia-70m --corpus NeelNanda/pile-10k --sequences 200
      mlp-interp check pythia-70m
      mlp-interp attribute "The capital of France is" --answer Paris --foil Rome

    Exit status: 0 success, 1 a check failed, 2 wrong input, 130 interrupted.
    """  # noqa: D301 (click reads the \\b)


@app.command(short_help="Measure every sub-update; write one HTML page.")
def report(
    model: ModelOption = "nano",
    corpus: Annotated[
        str,
        typer.Option(
            "--corpus",
            "-c",
            help="'nano' (held-out text of the nano model), a .txt, .jsonl, .jsonl.zst or .parquet "
            "file, or a Hugging Face data set such as 'NeelNanda/pile-10k'.",
        ),
    ] = "nano",
    sequences: Annotated[
        int | None,
        typer.Option(
            "--sequences", "-n", min=1, help="How many. Default: 64 of nano, else up to 10,000."
        ),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(
            "--length", "-t", min=2, help="Tokens in each. Default: 600 of a data set, else 128."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The page; .nc and .json files go beside it.")
    ] = Path("report.html"),
    prompts: Annotated[int, typer.Option(min=1, help="Prompts per task to attribute.")] = 16,
    seed: Annotated[int, typer.Option(help="Draws sequences and prompts.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences per forward pass.")] = 16,
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
      mlp-interp report --sequences 256 --out big.html
      mlp-interp report -m pythia-160m --revision step1000 -c my.jsonl -n 500 -t 256
    """  # noqa: D301 (click reads the \\b)
    with _clear_errors(debug):
        from mlp_interp.corpus import load_corpus
        from mlp_interp.report import build

        if out.suffix != ".html":
            raise ValueError(f"out must end in .html, got {str(out)!r}")
        loaded = _load(model, revision, device, processing, backend)
        text = load_corpus(corpus, loaded, sequences=sequences, length=length, seed=seed)
        written = build(loaded, text, out=out, prompts=prompts, seed=seed, batch_size=batch_size)
    if written.reused:
        typer.echo(f"taken over from an interrupted run: {', '.join(written.reused)}", err=True)
    typer.echo("\n".join(written.summary.sentences[:3]))
    size = written.page.stat().st_size / 1e6
    typer.echo(f"\n{written.page} ({size:.1f} MB), with {written.data} and {written.numbers}")


@app.command(short_help="Check that a model computes what it should.")
def check(
    model: Annotated[str, typer.Argument(help=_MODEL)],
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
    with _clear_errors(debug):
        from mlp_interp.models import check_model

        found = check_model(_load(model, revision, device, processing, backend))
    for name, variable in found.data_vars.items():
        value, unit = variable.item(), variable.attrs.get("unit", "")
        shown = f"{value:.1e} {unit}" if isinstance(value, float) else str(value).lower()
        typer.echo(f"{name:<22} {shown}")
    for name in ("model", "revision", "processing", "dtype", "device", "backend"):
        typer.echo(f"{name:<22} {found.attrs[name]}")
    if not bool(found["ok"]):
        typer.echo("error: the model does not compute what it should; see above", err=True)
        raise typer.Exit(FAILED)


@app.command(short_help="Show what adds to the logit of an answer.")
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
    debug: DebugOption = False,
) -> None:
    """Show what each component adds directly to the logit of an answer.

    The shares of all components sum to the logit (or to the difference of two logits).

    \b
    Examples:
      mlp-interp attribute "The capital of France is" --answer Paris --foil Rome
      mlp-interp attribute "The capital of France is" -a Paris -f Rome --level neuron --top 30
    """  # noqa: D301 (click reads the \\b)
    with _clear_errors(debug):
        from mlp_interp.report.console import attribution_table

        loaded = _load(model, revision, device, processing, backend)
        lines = attribution_table(
            loaded, prompt, answer, foil, level=level.value, top_k=top, prepend_bos=bos
        )
    typer.echo("\n".join(lines))


def _load(
    model: str,
    revision: str | None,
    device: str | None,
    processing: Processing,
    backend: Backend,
) -> Any:
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
def _clear_errors(debug: bool) -> Iterator[None]:
    """Bad input becomes one line on stderr and exit status 2, unless --debug asks for more."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command goes on with what is finished", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except (ValueError, OSError) as error:
        if debug:
            traceback.print_exc(file=sys.stderr)
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(BAD_INPUT) from None


if __name__ == "__main__":
    app()
