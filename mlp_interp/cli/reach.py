"""`mlp-interp reach`."""

import sys
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
    numbers_of,
)


def reach(
    tokens: Annotated[
        str | None,
        typer.Argument(
            metavar="[TOKENS]", help="Words of one token each, with commas between: 'Paris,cat'."
        ),
    ] = None,
    share: Annotated[
        str | None,
        typer.Option(help="Ask random sets of these sizes instead, with commas between: 1,5,10."),
    ] = None,
    ordered: Annotated[
        bool, typer.Option("--ordered", help="The words must come in this order.")
    ] = False,
    sets: Annotated[int, typer.Option("--sets", "-n", min=1, help="Random sets a size.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Draws the random sets.")] = 0,
    out: OutOption = None,
    model: ModelOption = "nano",
    device: DeviceOption = None,
    revision: RevisionOption = None,
    processing: ProcessingOption = Processing.folded,
    backend: BackendOption = Backend.auto,
    debug: DebugOption = False,
) -> None:
    """Say whether words can be the likeliest ones, and by how much they can lead all others.

    That is what the readout allows, and not what any text leads to. Of a set it prints the lead and
    the tokens that keep it from leading by more; of sizes the share of random sets that can be had,
    beside the share that Gaussian directions would have.

    \b
    Examples:
      mlp-interp reach "Paris,London,cat"
      mlp-interp reach --share 1,5,10,20 --model pythia-70m
    """  # noqa: D301 (click reads the \b)
    with clear_errors(debug):
        if out is not None:
            check_data("--out", out)
        if (tokens is None) == (share is None):
            raise ValueError(
                "wanted either words, as in 'Paris,cat', or sizes of sets: --share 1,5"
            )
        if ordered and tokens is None:
            raise ValueError("--ordered is for words; random sets have no order")
        words = [] if tokens is None else [word.strip() for word in tokens.split(",")]
        sizes = [] if share is None else numbers_of("--share", share)

        from mlp_interp.cli.reach_text import set_lines, share_lines
        from mlp_interp.reach import reachable, reachable_share
        from mlp_interp.results import save

        loaded = load(model, revision, device, processing, backend)
        if words:
            found = reachable(loaded, [f" {word}" for word in words], ordered=ordered)
        else:
            bar = sys.stderr.isatty()
            found = reachable_share(loaded, sizes, n=sets, seed=seed, progress=bar)
        if out is not None:
            save(found, out)
        lines = set_lines(found) if words else share_lines(found)
    typer.echo("\n".join(lines))
