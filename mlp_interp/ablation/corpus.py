"""Ablations over a corpus: what a sweep sums up, sequence by sequence."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from mlp_interp.ablation.baselines import Baseline, stand_in
from mlp_interp.ablation.effects import group_coords
from mlp_interp.ablation.total import read_sites
from mlp_interp.corpus import SweepOptions, sweep
from mlp_interp.corpus.reducers import Batch, Mean, Reducer, Shape, State
from mlp_interp.metrics.rows import clean_loss, next_tokens
from mlp_interp.models.protocol import Model
from mlp_interp.residual import Stand
from mlp_interp.results import mean_and_error_over, to_numpy, tokens_of
from mlp_interp.runs import Run, Runner
from mlp_interp.sites import Site

__all__ = ["Ablated"]

Members = Mapping[str, tuple[Site, ...]]
Measure = Callable[[Runner, Run, Members, Stand], dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Ablated(Reducer):
    """What sequences lose when groups of components are taken away, each group alone.

    Args:
        measure: From the runner, a clean run, the groups and what stands in for them to numbers
            ``[component, batch]``; a function of a module, so that it can be sent.
        choice: Says which groups.
        groups: The groups.
        baseline: What stands in.
        seed: Which sequences are resampled.
        means: Of the corpus, for the baseline that wants them.
    """

    measure: Measure = field(repr=False)
    choice: str
    groups: Members = field(repr=False, compare=False)
    baseline: Baseline
    seed: int
    means: Mapping[Site, Tensor] | None = field(default=None, repr=False, compare=False)

    @property
    def name(self) -> str:
        """What is measured, and of what."""
        return f"{self.measure.__name__}.{self.choice}"

    def sites(self, shape: Shape) -> tuple[Site, ...]:
        """None: it runs the model itself."""
        if shape.length < 2:
            raise ValueError(f"sequences of {shape.length} token have no next token")
        return ()

    def empty(self, shape: Shape) -> State:
        """Nothing; tensors come with the first batch."""
        return {}

    def finish(self, state: State, batch: Batch) -> None:
        """Run the batch clean, and with each group ablated."""
        runner = Runner(batch.forward)
        clean = runner.run(batch.tokens, sites=read_sites(self.groups))
        seed = self.seed + batch.first
        stand = stand_in(self.baseline, len(batch.tokens), seed=seed, means=self.means)
        found = self.measure(runner, clean, self.groups, stand)
        loss = clean_loss(runner.unembed, clean.final, next_tokens(batch.tokens)).nanmean(-1)
        self.merge(state, {name: x.cpu() for name, x in {**found, "loss": loss}.items()})

    def merge(self, state: State, later: State) -> None:
        """The sequences one after the other."""
        for name, value in later.items():
            state[name] = torch.cat([state[name], value], -1) if name in state else value

    def result(self, state: State, shape: Shape) -> xr.Dataset:
        """What was measured, along ``component`` and ``sequence``, and the clean ``loss``."""
        dims = ("component", "sequence")
        found = {name: (dims[-x.ndim :], to_numpy(x)) for name, x in state.items()}
        return xr.Dataset(found, coords=group_coords(self.groups))

    def over(self, model: Model, corpus: Any, options: SweepOptions) -> xr.Dataset:
        """Its result for a corpus, with the mean clean loss among its attributes.

        Raises:
            ValueError: Unknown baseline, resampling a single sequence, or as `sweep`.
        """
        tokens, _ = tokens_of(corpus)
        stand_in(self.baseline, len(tokens))
        whole = self
        if self.baseline == "mean":
            whole = replace(self, means=_means(model, corpus, read_sites(self.groups), options))
        if self.baseline == "resample":
            size = _not_alone(len(tokens), options.batch_size)
            options = replace(options, batch_size=size, shard=size)
        found = sweep(model, corpus, whole, options=options)[self.name]
        found.attrs.pop("reducer", None)  # what was asked stands in attributes of its own
        loss, error = mean_and_error_over(found["loss"], "sequence")
        return found.assign_attrs(
            baseline=self.baseline,
            seed=self.seed,
            sequences=len(tokens),
            clean_loss=float(loss),
            clean_loss_se=float(error),
            errors="standard error over sequences",
        )


def _means(
    model: Model, corpus: Any, sites: list[Site], options: SweepOptions
) -> dict[Site, Tensor]:
    """Mean of each activation over all sequences and positions of the corpus."""
    reducers = {name: Mean(site=name) for name in {site.name: None for site in sites}}
    found = sweep(model, corpus, reducers, options=options)
    return {s: torch.from_numpy(found[s.name]["mean"].sel(layer=s.layer).values) for s in sites}


def _not_alone(sequences: int, batch_size: int) -> int:
    """A size of batches, at most `batch_size` if there is one, that leaves no sequence alone."""
    smaller, larger = range(min(batch_size, sequences), 1, -1), range(batch_size + 1, sequences + 1)
    return next(size for size in (*smaller, *larger) if sequences % size != 1)
