"""`mlp-interp features`."""

import sys
from typing import Annotated, Any

import typer

from mlp_interp.cli.early import check_corpus, check_model, check_text
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
    OutOption,
    Processing,
    ProcessingOption,
    RevisionOption,
    SequencesOption,
    SplitOption,
    SubsetOption,
    check_data,
    clear_errors,
    load,
    source_of,
)


def features(
    prefixes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PREFIXES]",
            help="Features, each by a prefix: 'Topic: chess.'. Those texts have it that it makes "
            "likeliest.",
        ),
    ] = None,
    words: Annotated[
        list[str] | None,
        typer.Option(
            "--words",
            "-w",
            help="A feature by words, with commas between: 'rook,pawn'. Those texts have it that "
            "hold any of them. Also given several times.",
        ),
    ] = None,
    neuron: Annotated[
        str | None, typer.Option(help="Ask for this neuron's features: L3N506.")
    ] = None,
    other: Annotated[
        str | None,
        typer.Option(help="Ask instead which neurons this other model has, too: 'nano-1'."),
    ] = None,
    share: Annotated[
        float, typer.Option(help="Share of the texts that have a prefix's feature.")
    ] = 0.25,
    corpus: CorpusOption = ["nano"],  # noqa: B006 (typer copies it)
    sequences: SequencesOption = None,
    length: LengthOption = None,
    field: FieldOption = "text",
    split: SplitOption = None,
    subset: SubsetOption = None,
    errors: ErrorsOption = Errors.refuse,
    top: Annotated[int, typer.Option("--top", "-k", min=1, help="Neurons to show.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Draws sequences and controls.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts per forward pass.")] = 16,
    out: OutOption = None,
    model: ModelOption = "nano",
    device: DeviceOption = None,
    revision: RevisionOption = None,
    processing: ProcessingOption = Processing.folded,
    backend: BackendOption = Backend.auto,
    debug: DebugOption = False,
) -> None:
    """Show which neurons tell texts with a feature from others, or which another model has, too.

    The corpus is cut where documents begin. Of a feature it prints the neurons whose mean
    activation tells its texts best, beside what chance makes of the best of so many neurons; with
    --neuron the features that it tells best; with --other how much more alike neurons of two models
    are than their directions.

    \b
    Examples:
      mlp-interp features "Topic: chess." "Topic: tennis."
      mlp-interp features -w rook,pawn,king -w goalie,puck --neuron L3N506
      mlp-interp features --other nano-1
    """  # noqa: D301 (click reads the \\b)
    with clear_errors(debug):
        given, listed = prefixes or [], words or []
        if (other is None) != bool(given or listed):
            raise ValueError(
                "wanted either features, as in 'Topic: chess.' or --words rook,pawn, or --other"
            )
        if other is not None and neuron is not None:
            raise ValueError("--neuron is for features; --other asks about all neurons")
        for text in given:
            check_text("prefix", text)
        for text in listed:
            check_text("--words", text.replace(",", " "))
        if out is not None:
            check_data("--out", out)
        for name in (model, *([] if other is None else [other])):
            check_model(name)
        check_corpus(corpus)

        from mlp_interp.cli.features_data import asked, documents
        from mlp_interp.corpus import SweepOptions, load_corpus
        from mlp_interp.features import index, universal
        from mlp_interp.results import save
        from mlp_interp.sites import neuron_of

        if neuron is not None:
            neuron_of(neuron)
        loaded = load(model, revision, device, processing, backend)
        _check_neuron(loaded, neuron)
        tokens = load_corpus(
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
        if other is not None:
            kin = load(other, None, device, processing, backend)
            found = universal(loaded, kin, tokens, seed=seed, batch_size=batch_size)
        else:
            rows = documents(loaded, tokens)
            sweep = SweepOptions(batch_size=batch_size, progress=sys.stderr.isatty())
            labels = asked(loaded, rows, given, listed)
            found = index(loaded, rows, labels, share=share, seed=seed, sweep=sweep)
            found.attrs["data"] = f"{len(rows)} documents of {tokens.attrs['data']}"
        if out is not None:
            save(found, out)
        lines = _lines(found, top, neuron, other)
    typer.echo("\n".join(lines))


def _check_neuron(model: Any, neuron: str | None) -> None:
    from mlp_interp.models import Weights

    if neuron is not None:
        Weights.of(model).place(neuron, kind="neuron", argument="--neuron")


def _lines(found: Any, top: int, neuron: str | None, other: str | None) -> list[str]:
    from mlp_interp.cli.features_text import about_lines, best_lines, universal_lines

    if other is not None:
        return universal_lines(found, top)
    return best_lines(found, top) if neuron is None else about_lines(found, neuron)
