"""`mlp-interp memories`."""

import sys
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


def memories(
    corpus: CorpusOption = ["nano"],  # noqa: B006 (typer copies it)
    sequences: SequencesOption = None,
    length: LengthOption = None,
    field: FieldOption = "text",
    split: SplitOption = None,
    subset: SubsetOption = None,
    errors: ErrorsOption = Errors.refuse,
    triggers: Annotated[int, typer.Option(min=1, help="Places to look at of each neuron.")] = 10,
    top: Annotated[int, typer.Option("--top", "-k", min=1, help="Neurons to show.")] = 10,
    seed: Annotated[int, typer.Option(help="Draws sequences and controls.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences per forward pass.")] = 16,
    out: OutOption = None,
    model: ModelOption = "nano",
    device: DeviceOption = None,
    revision: RevisionOption = None,
    processing: ProcessingOption = Processing.folded,
    backend: BackendOption = Backend.auto,
    debug: DebugOption = False,
) -> None:
    """Show whether texts go on as neurons say where these are most active.

    Prints, layer by layer, how often the token that a neuron promotes most comes next at the places
    where it is most active, beside what the layer's other neurons get there; and how MLPs change
    the prediction. Then the neurons that are most often right, with a place of each.

    \b
    Examples:
      mlp-interp memories
      mlp-interp memories --model pythia-70m --corpus NeelNanda/pile-10k -n 1000 -o memories.nc
    """  # noqa: D301 (click reads the \\b)
    with clear_errors(debug):
        if out is not None:
            check_data("--out", out)
        check_model(model)
        check_corpus(corpus)

        from mlp_interp.cli.memories_text import best_lines, layer_lines
        from mlp_interp.corpus import SweepOptions, load_corpus
        from mlp_interp.neurons import memories as measured
        from mlp_interp.neurons import update_events
        from mlp_interp.results import save

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
        sweep = SweepOptions(batch_size=batch_size, progress=sys.stderr.isatty())
        found = measured(loaded, text, k=triggers, seed=seed, sweep=sweep)
        events = update_events(loaded, text, sample=4, sweep=sweep)
        if out is not None:
            save(found, out)
        lines = [*layer_lines(found, events), "", *best_lines(loaded, found, top)]
    typer.echo("\n".join(lines))
