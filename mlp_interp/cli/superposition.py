"""`mlp-interp superposition`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mlp_interp.cli.early import check_corpus, check_known, check_model
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

SITES = ("post", "mlp_out", "attn_out", "resid_pre", "resid_post")
KINDS = ("isotropic", "values", "shuffled")


def superposition(
    site: Annotated[
        str, typer.Option("--site", "-s", help=f"Where: {', '.join(map(repr, SITES))}.")
    ] = "post",
    noise: Annotated[
        str,
        typer.Option(
            help="'isotropic', 'values' (in the span of value vectors), or 'shuffled' (what "
            "other tokens' activations deviate by, which is what interference looks like)."
        ),
    ] = "isotropic",
    level: Annotated[
        float, typer.Option(help="The KL, in nats, that is no longer tolerated.")
    ] = 0.01,
    corpus: CorpusOption = ["nano"],  # noqa: B006 (typer copies it)
    sequences: SequencesOption = None,
    length: LengthOption = None,
    field: FieldOption = "text",
    split: SplitOption = None,
    subset: SubsetOption = None,
    errors: ErrorsOption = Errors.refuse,
    seed: Annotated[int, typer.Option(min=0, help="Draws sequences and noise.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences per forward pass.")] = 16,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write all numbers to a .nc file of two groups, too."),
    ] = None,
    model: ModelOption = "nano",
    device: DeviceOption = None,
    revision: RevisionOption = None,
    processing: ProcessingOption = Processing.folded,
    backend: BackendOption = Backend.auto,
    debug: DebugOption = False,
) -> None:
    """Show how many dimensions activations use, and how much noise predictions tolerate there.

    Prints, layer by layer, the participation ratio of the covariance with its error, the same
    without bias, and how many tokens were enough to say so; then the size of noise, as a share of
    the activations' own spread, at which the prediction changes by so many nats.

    \b
    Examples:
      mlp-interp superposition
      mlp-interp superposition --site mlp_out --noise shuffled -n 32
      mlp-interp superposition --model pythia-70m --corpus NeelNanda/pile-10k -n 500 -o super.nc
    """  # noqa: D301 (click reads the \\b)
    with clear_errors(debug):
        check_known("--site", site, SITES)
        check_known("--noise", noise, KINDS)
        if noise == "values" and site == "post":
            raise ValueError("--noise values wanted a site of the stream's width, got --site post")
        if out is not None:
            if out.suffix != ".nc":
                raise ValueError(f"--out must end in .nc, got {str(out)!r}")
            check_file("--out", out)
        check_model(model)
        check_corpus(corpus)

        from mlp_interp.cli.superposition_text import lines_of
        from mlp_interp.corpus import SweepOptions, load_corpus
        from mlp_interp.results import save_groups
        from mlp_interp.superposition import noise_tolerance, spectrum

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
        kind: Any = noise
        sweep = SweepOptions(batch_size=batch_size, progress=sys.stderr.isatty())
        found = {
            # The one that may refuse more comes first.
            "noise": noise_tolerance(
                loaded, text, sites=site, kind=kind, level=level, seed=seed, sweep=sweep
            ),
            "spectrum": spectrum(loaded, text, site=site, seed=seed, sweep=sweep),
        }
        if out is not None:
            save_groups(found, out)
        lines = lines_of(found["spectrum"], found["noise"])
    typer.echo("\n".join(lines))
