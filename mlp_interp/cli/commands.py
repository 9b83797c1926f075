"""The commands, gathered."""

from importlib import metadata
from typing import Annotated

import typer

from mlp_interp.cli.absorption import absorption
from mlp_interp.cli.attribute import attribute
from mlp_interp.cli.check import check
from mlp_interp.cli.features import features
from mlp_interp.cli.heads import heads, induction
from mlp_interp.cli.latent import latent
from mlp_interp.cli.lens import lens, tune_lens
from mlp_interp.cli.memories import memories
from mlp_interp.cli.neuron import neuron
from mlp_interp.cli.patch import patch
from mlp_interp.cli.probe import probe
from mlp_interp.cli.reach import reach
from mlp_interp.cli.report import report
from mlp_interp.cli.rewrite import rewrite
from mlp_interp.cli.superposition import superposition

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


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
      mlp-interp patch --task ioi              writes patch.html
      mlp-interp neuron L3N506                 writes L3N506.html
      mlp-interp latent --dictionary my-sae
      mlp-interp absorption texts.csv --dictionary my-sae
      mlp-interp memories
      mlp-interp lens "The capital of France is" writes lens.html
      mlp-interp heads L1H3
      mlp-interp induction
      mlp-interp reach "Paris,London,cat"
      mlp-interp probe texts.csv
      mlp-interp rewrite --help
      mlp-interp superposition
      mlp-interp features "Topic: chess."

    Exit status: 0 success, 1 a check failed, 2 wrong input, 130 interrupted.
    """  # noqa: D301 (click reads the \\b)


app.command(short_help="Measure every sub-update; write one HTML page.")(report)
app.command(short_help="Check that a model computes what it should.")(check)
app.command(short_help="Show what adds to the logit of an answer.")(attribute)
app.command(short_help="Exchange activations between two runs; write one HTML page.")(patch)
app.command(short_help="Show all about one neuron; write one HTML page.")(neuron)
app.command(short_help="Show what a dictionary explains, and all about one latent.")(latent)
app.command(short_help="Say in which texts other latents stand for a kind's own.")(absorption)
app.command(short_help="Show whether texts go on as neurons say.")(memories)
app.command(short_help="Show what each layer would say; write one HTML page.")(lens)
app.command("tune-lens", short_help="Train a tuned lens.")(tune_lens)
app.command(short_help="Show what heads do, by their weights.")(heads)
app.command(short_help="Find the induction circuits.")(induction)
app.command(short_help="Say which words can be the likeliest ones.")(reach)
app.command(short_help="Say at which layers a straight line reads labels.")(probe)
app.command(short_help="Write one fact into one MLP; show what changes with it.")(rewrite)
app.command(short_help="Show how many dimensions and how much noise there is.")(superposition)
app.command(short_help="Show which neurons tell a feature.")(features)
