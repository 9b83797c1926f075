"""`mlp-interp patch`."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mlp_interp.cli.early import (
    METRICS,
    TASKS,
    check_known,
    check_model,
    check_sites,
    check_text,
)
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

SITES = "resid_pre,attn_out,mlp_out,z"


class Direction(StrEnum):
    """Which run is patched with activations of the other."""

    denoising = "denoising"
    noising = "noising"


def patch(
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            "-t",
            help=f"A planted task: {', '.join(TASKS)}.",
        ),
    ] = None,
    count: Annotated[int, typer.Option("--n", "-n", min=1, help="How many pairs of a task.")] = 8,
    seed: Annotated[int, typer.Option(help="Draws the pairs of a task.")] = 0,
    clean: Annotated[
        str | None, typer.Option("--clean", help="Or a prompt of your own, which ANSWER follows,")
    ] = None,
    corrupted: Annotated[
        str | None,
        typer.Option("--corrupted", help="one of as many tokens, which FOIL follows,"),
    ] = None,
    answer: Annotated[
        str | None,
        typer.Option("--answer", "-a", help="the word (a leading space is added),"),
    ] = None,
    foil: Annotated[str | None, typer.Option("--foil", "-f", help="and the other word.")] = None,
    metric: Annotated[
        str,
        typer.Option(
            help="logit_difference, logit, log_probability, probability, probability_difference, "
            "kl, or answer_log_probability, for words of several tokens."
        ),
    ] = "logit_difference",
    direction: Annotated[
        Direction,
        typer.Option(
            help="Clean activations into the corrupted run (what suffices?), or the reverse (what "
            "is needed?)."
        ),
    ] = Direction.denoising,
    sites: Annotated[
        list[str],
        typer.Option(
            "--sites",
            "-s",
            help="Where, with commas or given several times: resid_pre, resid_post, attn_out, "
            "mlp_out (by layer and position); z, q, k, v, pattern (by layer and head); pre, post "
            "(by neuron).",
        ),
    ] = [SITES],  # noqa: B006 (typer copies it)
    top: Annotated[
        int, typer.Option("--top", "-k", min=1, help="Strongest cells of each site to print.")
    ] = 3,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The page; a .nc file goes beside it.")
    ] = Path("patch.html"),
    model: ModelOption = "nano",
    device: DeviceOption = None,
    revision: RevisionOption = None,
    processing: ProcessingOption = Processing.folded,
    backend: BackendOption = Backend.auto,
    debug: DebugOption = False,
) -> None:
    """Exchange activations between a clean and a corrupted run, place by place.

    A clean prompt has one answer; a corrupted one, of as many tokens, has another. Where must an
    activation of one run be put into the other to change its answer? Prints the strongest places,
    writes a page with all of them that works offline, and the numbers beside it as netCDF (read
    them with xarray.open_datatree): 0 is the corrupted run's metric, 1 the clean run's.

    \b
    Examples:
      mlp-interp patch --task ioi
      mlp-interp patch --task facts -n 32 --direction noising --sites z,q,k,v,pattern
      mlp-interp patch --clean "The capital of France is" --answer Paris \\
                       --corrupted "The capital of Italy is" --foil Rome
    """  # noqa: D301 (click reads the \\b)
    with clear_errors(debug):
        texts = {"clean": clean, "corrupted": corrupted, "answer": answer, "foil": foil}
        task = None if task is None else task.replace("-", "_")
        names = [name.strip() for given in sites for name in given.split(",") if name.strip()]
        _check(task, texts, out)
        check_known("--metric", metric, METRICS)
        check_sites(names)
        check_model(model)

        from mlp_interp.cli.patching import check_words, contrast_for, grids, table
        from mlp_interp.cli.patching_page import write

        wanted = grids(names)
        loaded = load(model, revision, device, processing, backend)
        contrast = contrast_for(loaded, task, texts, count=count, seed=seed)
        check_words(contrast, metric)
        results = {
            family: one(loaded, contrast, metric, direction.value, progress=sys.stderr.isatty())
            for family, one in wanted.items()
        }
        lines = table(results, top)
        page, data = write(results, contrast, lines, out)
    typer.echo("\n".join(lines))
    typer.echo(f"\n{page} ({page.stat().st_size / 1e6:.1f} MB), with {data}")


def _check(task: str | None, texts: dict[str, str | None], out: Path) -> None:
    """Refuse what cannot work before a model is loaded."""
    given = [f"--{name}" for name, text in texts.items() if text is not None]
    if task is not None and given:
        raise ValueError(f"give --task or prompts of your own, not both: got --task, {given[0]}")
    if task is None and len(given) < len(texts):
        missing = [f"--{name}" for name in texts if f"--{name}" not in given]
        raise ValueError(
            "wanted --task (for example: mlp-interp patch --task ioi), or all of --clean, "
            f"--corrupted, --answer and --foil; missing {', '.join(missing)}"
        )
    if task is not None:
        check_known("--task", task, TASKS)
    for name, text in texts.items():
        if text is not None:
            check_text(f"--{name}", text)
    if out.suffix != ".html":
        raise ValueError(f"--out must end in .html, got {str(out)!r}")
    for path in (out, out.with_suffix(".nc")):
        check_file("--out", path)
