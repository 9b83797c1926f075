"""`mlp-interp lens` and `mlp-interp tune-lens`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mlp_interp.cli.early import check_corpus
from mlp_interp.cli.options import (
    Backend,
    BackendOption,
    CorpusOption,
    DebugOption,
    DeviceOption,
    LengthOption,
    ModelOption,
    Processing,
    ProcessingOption,
    RevisionOption,
    check_file,
    clear_errors,
    load,
    source_of,
)

LENS_HELP = (
    "'logit' (the model's own readout), 'decoder:N' (its last N blocks before the readout), "
    "'decoder:N:attn', 'decoder:N:mlp' or 'decoder:N:clean', or a file or folder of a trained lens."
)


def lens(
    text: Annotated[str, typer.Argument(help="The text to read.")],
    lens: Annotated[str, typer.Option("--lens", "-l", help=LENS_HELP)] = "logit",
    answer: Annotated[
        str | None,
        typer.Option("--answer", "-a", help="A word to follow. A leading space is added."),
    ] = None,
    color: Annotated[
        str, typer.Option("--color", help="What colours the page's grid: 'kl_output', …")
    ] = "logp_output",
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The page; a .nc file goes beside it.")
    ] = Path("lens.html"),
    model: ModelOption = "nano",
    device: DeviceOption = None,
    revision: RevisionOption = None,
    processing: ProcessingOption = Processing.folded,
    backend: BackendOption = Backend.auto,
    debug: DebugOption = False,
) -> None:
    """Show what the model would say if it stopped at each layer.

    Prints the likeliest token of every layer (up) at every position (across), writes the grid as a
    page that works offline, and all numbers beside it as netCDF.

    \b
    Examples:
      mlp-interp lens "The capital of France is"
      mlp-interp lens "The capital of France is" --answer Paris --lens decoder:1
    """  # noqa: D301 (click reads the \\b)
    with clear_errors(debug):
        if out.suffix != ".html":
            raise ValueError(f"--out must end in .html, got {str(out)!r}")
        check_file("--out", out)
        check_file("--out", out.with_suffix(".nc"))

        from mlp_interp.lens import read
        from mlp_interp.plots import lens as drawn
        from mlp_interp.results import save

        loaded = load(model, revision, device, processing, backend)
        target = None if answer is None else f" {answer.strip()}"
        found = read(loaded, [text], named(lens, loaded), targets=target)
        figure = drawn(found, color)
        save(found, out.with_suffix(".nc"))
        figure.write_html(out, include_plotlyjs=True)
    typer.echo("\n".join(grid(found)))
    typer.echo(f"\n{out} ({out.stat().st_size / 1e6:.1f} MB), with {out.with_suffix('.nc')}")


def named(given: str, model: Any) -> Any:
    """The lens that an option names.

    Raises:
        ValueError: It names none.
    """
    from mlp_interp import lens as lenses

    if given == "logit":
        return lenses.logit(model)
    word, _, rest = given.partition(":")
    if word == "decoder":
        number, _, part = rest.partition(":")
        if not number.isdecimal():
            raise ValueError(f"--lens {given!r}; wanted decoder:N with a number of blocks")
        if part == "clean":
            return lenses.decoder(model, int(number), context="clean")
        wanted: Any = part or "block"
        return lenses.decoder(model, int(number), part=wanted)
    if not Path(given).exists():
        raise ValueError(f"--lens {given!r}; wanted {LENS_HELP}")
    return lenses.load(given, model)


def grid(found: Any) -> list[str]:
    """Lines of a table: layers up, positions across, the target's ranks below if there is one."""
    from mlp_interp.prompts.display import visible

    one = found.isel(prompt=0)
    top = one["top_text"].isel(rank=0).transpose("layer", "pos").values
    rows = [[str(x) for x in row] for row in (*top[::-1], one["token"].values)]
    names = [f"layer {layer}" for layer in one["layer"].values[::-1]] + ["reads"]
    cells = [[_cell(visible(x)) for x in row] for row in rows]
    if "rank_target" in one:
        ranks = one["rank_target"].transpose("layer", "pos").values[::-1, -1]
        last = [f"  #{int(rank) + 1}" for rank in ranks] + ["  rank of the answer"]
    else:
        last = [""] * len(cells)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        f"{name:<9}" + " ".join(x.ljust(n) for x, n in zip(row, widths, strict=True)) + end
        for name, row, end in zip(names, cells, last, strict=True)
    ]


def _cell(token: str) -> str:
    shown = token.replace(" ", "·")
    return shown if len(shown) <= 12 else shown[:11] + "…"


def tune_lens(
    out: Annotated[Path, typer.Option("--out", "-o", help="The lens: a .safetensors file.")],
    corpus: CorpusOption = ["nano"],  # noqa: B006 (typer copies it)
    sequences: Annotated[int, typer.Option("--sequences", "-n", min=1, help="How many.")] = 1024,
    length: LengthOption = None,
    steps: Annotated[int, typer.Option(min=1, help="Batches to train on.")] = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences in each.")] = 16,
    lr: Annotated[float, typer.Option(help="Largest learning rate.")] = 3e-3,
    seed: Annotated[int, typer.Option(help="Draws texts and their order.")] = 0,
    checkpoint: Annotated[
        Path | None, typer.Option(help="A folder, to go on from after an interruption.")
    ] = None,
    model: ModelOption = "nano",
    device: DeviceOption = None,
    revision: RevisionOption = None,
    processing: ProcessingOption = Processing.folded,
    backend: BackendOption = Backend.auto,
    debug: DebugOption = False,
) -> None:
    """Train a tuned lens: for every layer the affine map whose reading is nearest to the final one.

    \b
    Example:
      mlp-interp tune-lens --out tuned.safetensors --steps 128
      mlp-interp lens "The capital of France is" --lens tuned.safetensors
    """  # noqa: D301 (click reads the \\b)
    with clear_errors(debug):
        if out.suffix != ".safetensors":
            raise ValueError(f"--out must end in .safetensors, got {str(out)!r}")
        check_file("--out", out)
        check_corpus(corpus)

        from mlp_interp.corpus import load_corpus
        from mlp_interp.lens import save, tuned

        loaded = load(model, revision, device, processing, backend)
        texts = load_corpus(
            source_of(corpus),
            loaded,
            sequences=sequences,
            length=length,
            seed=seed,
            progress=sys.stderr.isatty(),
        )
        made = tuned(
            loaded,
            texts,
            steps=steps,
            batch_size=batch_size,
            lr=lr,
            seed=seed,
            checkpoint=checkpoint,
            progress=sys.stderr.isatty(),
        )
        save(made, out)
    typer.echo(f"{out}: {steps} steps of {batch_size} sequences, {texts.attrs['data']}")
