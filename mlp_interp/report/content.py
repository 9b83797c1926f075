"""Everything the report shows, computed: results only, no HTML."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import xarray as xr
from tqdm.auto import tqdm

from mlp_interp.ablation import ablate_ranges, subupdate_importance
from mlp_interp.corpus import SweepOptions
from mlp_interp.models import check_model
from mlp_interp.models.protocol import Model
from mlp_interp.report.examples import Excerpt, ShownExample, excerpt, from_corpus, from_tasks
from mlp_interp.report.neurons import Neurons, measure
from mlp_interp.report.store import Part, Store
from mlp_interp.residual import norms

Kind = Literal["mlp", "attn", "both"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Content:
    """What a report shows.

    Attributes:
        check: What `check_model` found.
        corpus: The provenance of the corpus.
        norms: Size of every sub-update.
        importance: Direct and total effect of removing each sub-update.
        ranges: For "mlp", "attn" and "both", the effect of removing ranges of layers.
        excerpt: A piece of the corpus, with the effect of the strongest sub-updates on each token.
        examples: Logit attributions of prompts.
        neurons: How often neurons fire, which are unlike the others, and how many make an update.
        notes: What could not be shown, and why, in plain sentences.
    """

    check: xr.Dataset
    corpus: dict[str, Any]
    norms: xr.Dataset
    importance: xr.Dataset
    ranges: dict[str, xr.Dataset]
    excerpt: Excerpt
    examples: list[ShownExample]
    neurons: Neurons
    notes: list[str] = field(default_factory=list)

    def parts(self) -> Iterator[tuple[str, Part]]:
        """Every result with the name of its group in the netCDF file."""
        yield "check", self.check
        yield "norms", self.norms
        yield "importance", self.importance
        for kind, result in self.ranges.items():
            yield f"ranges/{kind}", result
        yield "excerpt", self.excerpt.effects
        for example in self.examples:
            for level, shares in example.shares.items():
                yield f"attribution/{example.name}/{level}", shares
            yield f"attribution/{example.name}/sources", example.sources
            yield f"attribution/{example.name}/patterns", example.patterns
        yield from self.neurons.parts()


def compute(
    model: Model,
    corpus: Any,
    *,
    store: Store,
    prompts: int = 16,
    seed: int = 0,
    batch_size: int = 16,
    progress: bool = True,
) -> Content:
    """Run every analysis of the report.

    Args:
        model: The model.
        corpus: The `Corpus` to measure on.
        store: Keeps each finished analysis, and hands back those of an interrupted run.
        prompts: How many prompts of each task to attribute.
        seed: Draws the prompts.
        batch_size: Sequences per forward pass.
        progress: Show progress bars on stderr.

    Returns:
        The results. A task whose words the model's tokenizer does not know is left out with a note.

    Raises:
        ValueError: What the analyses raise for bad input.
    """
    sweep = {"batch_size": batch_size, "progress": progress}
    resumable = SweepOptions(shard=batch_size, checkpoint=store.batches, **sweep)
    long: dict[str, Callable[[], Part]] = {
        "norms": lambda: norms(model, corpus, **sweep),
        "importance": lambda: subupdate_importance(model, corpus, sweep=resumable),
        **{
            f"ranges/{kind}": lambda kind=kind: ablate_ranges(
                model, corpus, kind=kind, sweep=resumable
            )
            for kind in KINDS
        },
    }
    done: dict[str, Any] = {}
    with tqdm(total=len(long) + 3, desc="report", disable=not progress) as bar:
        check = check_model(model)
        for name, run in long.items():
            bar.set_postfix_str(name)
            done[name] = store.get(name, run)
            bar.update()
        bar.set_postfix_str("neurons")
        neurons = measure(model, corpus, store, **sweep)
        bar.update()
        bar.set_postfix_str("prompts")
        examples, notes = from_tasks(model, prompts, seed)
        if not examples:
            examples = [from_corpus(model, corpus, prompts)]
        bar.update()
        bar.set_postfix_str("excerpt")
        shown = excerpt(model, corpus, done["importance"])
        bar.update()
    ranges = {kind: done[f"ranges/{kind}"] for kind in KINDS}
    return Content(
        check=check,
        corpus=dict(corpus.attrs),
        norms=done["norms"],
        importance=done["importance"],
        ranges=ranges,
        excerpt=shown,
        examples=examples,
        neurons=neurons,
        notes=notes,
    )
