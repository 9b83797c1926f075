"""`mlp-interp rewrite`."""

import sys
import warnings
from typing import Annotated

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

# Sequences in which it is looked at where the rewrite is felt, at most a quarter of the text. The
# keys are not of them: a rewrite is made small on its keys' text.
_FELT = 16


def rewrite(
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="The text that the target is to follow.")
    ],
    subject: Annotated[str, typer.Option("--subject", "-s", help="The phrase it is about.")],
    target: Annotated[str, typer.Option("--target", help="What is to follow.")],
    same_subject: Annotated[
        list[str],
        typer.Option(
            help="Another prompt about the subject, to see what becomes of it; or several."
        ),
    ],
    layer: Annotated[
        int,
        typer.Option(
            "--layer", "-l", help="The layer whose MLP is changed; -1 counts from the last."
        ),
    ] = 0,
    paraphrase: Annotated[
        list[str], typer.Option(help="Another way to ask for the new fact; or several.")
    ] = [],  # noqa: B006 (typer copies it)
    neighbour: Annotated[
        list[str], typer.Option(help="The same question about another subject; or several.")
    ] = [],  # noqa: B006
    preserve: Annotated[
        list[str], typer.Option(help="A prompt about the subject that is to stay; or several.")
    ] = [],  # noqa: B006
    corpus: CorpusOption = ["nano"],  # noqa: B006
    sequences: SequencesOption = None,
    length: LengthOption = None,
    field: FieldOption = "text",
    split: SplitOption = None,
    subset: SubsetOption = None,
    errors: ErrorsOption = Errors.refuse,
    seed: Annotated[int, typer.Option(min=0, help="Draws sequences and prefixes.")] = 0,
    out: OutOption = None,
    model: ModelOption = "nano",
    device: DeviceOption = None,
    revision: RevisionOption = None,
    processing: ProcessingOption = Processing.folded,
    backend: BackendOption = Backend.auto,
    debug: DebugOption = False,
) -> None:
    """Write one fact into one MLP, and say what else has changed with it.

    Prints how often the answer that is wanted is likelier than its rival, and how often it is the
    likeliest of all, before and after; what each prompt says; and where other text feels it, which
    is the first 16 sequences, or a quarter of fewer than 64, that the rewrite has not seen. What
    --out keeps is the rewrite: `Rewrite.load` reads it, and `rewritten` puts it into the model.

    \b
    Examples:
      mlp-interp rewrite "The capital of Sweden is" -s Sweden --target Berlin
          --same-subject "The language of Sweden is" --neighbour "The capital of Norway is"
    """  # noqa: D301 (click reads the \\b)
    with clear_errors(debug):
        if out is not None:
            check_data("--out", out)
        for option, text in (("PROMPT", prompt), ("--subject", subject), ("--target", target)):
            check_text(option, text)
        given = {"--same-subject": same_subject, "--paraphrase": paraphrase, "--preserve": preserve}
        for option, text in ((option, text) for option, texts in given.items() for text in texts):
            if subject.strip() not in text:
                raise ValueError(f"{option} {text!r} does not name --subject {subject.strip()!r}")
        check_model(model)
        check_corpus(corpus)

        from mlp_interp.cli.rewrite_text import felt_lines, prompt_lines, score_lines
        from mlp_interp.corpus import SweepOptions, load_corpus
        from mlp_interp.models.indices import index
        from mlp_interp.rewrites import associations, footprint, score_rewrite
        from mlp_interp.rewrites import rewrite as written
        from mlp_interp.rewrites.facts import placed
        from mlp_interp.rewrites.keys import checked_model
        from mlp_interp.rewrites.making import check_fact
        from mlp_interp.runs import Runner

        loaded = load(model, revision, device, processing, backend)
        fact = subject.strip(), prompt, f" {target.strip()}"
        layer = index("--layer", layer, checked_model(loaded, "rewrite").n_layers)
        check_fact(Runner.of(loaded), placed(loaded, fact), layer)  # before the sweep
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
        apart = min(_FELT, len(text) // 4)
        if not apart:
            raise ValueError(f"--sequences={len(text)}; wanted 4 or more, of which one is held out")
        options = SweepOptions(progress=sys.stderr.isatty())
        keys = associations(loaded, text[apart:], layers=[layer], seed=seed, options=options)
        with warnings.catch_warnings():  # the scores say it
            warnings.filterwarnings("ignore", ".*is not what the model says")
            found = written(loaded, *fact, layer=layer, keys=keys, preserve=preserve, seed=seed)
        scores = score_rewrite(
            loaded,
            found,
            same_subject=same_subject,
            paraphrases=paraphrase,
            neighbours=neighbour,
        )
        felt = footprint(loaded, found, text.tokens[:apart])
        if out is not None:
            found.save(out)
        lines = [*score_lines(scores, keys), "", *prompt_lines(scores), "", *felt_lines(felt)]
    typer.echo("\n".join(lines))
