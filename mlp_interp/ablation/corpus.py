"""Ablations over a corpus: what a sweep sums up, sequence by sequence."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
import xarray as xr
from torch import Tensor

from mlp_interp.ablation.baselines import Baseline, StandIn, stand_in
from mlp_interp.ablation.effects import group_coords
from mlp_interp.ablation.total import read_sites, sites_to_keep
from mlp_interp.corpus import SweepOptions, sweep
from mlp_interp.corpus.reducers import Batch, Mean, Reducer, Shape, State
from mlp_interp.models.padding import Padded, which_count
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.texts import padded_texts
from mlp_interp.residual import told_by
from mlp_interp.results import mean_and_error_over, to_numpy
from mlp_interp.runs import Run, Runner
from mlp_interp.sites import Site

__all__ = ["Ablated"]

Members = Mapping[str, tuple[Site, ...]]
Measure = Callable[[Runner, Run, Members, StandIn, Batch], dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Ablated(Reducer):
    """What sequences lose when groups of components are taken away, each group alone.

    Args:
        measure: From the runner, a clean run, the groups, what stands in for them and the batch to
            numbers ``[component, batch]`` and the clean ``loss`` ``[batch]``; a function of a
            module, so that it can be sent.
        choice: Says which groups.
        groups: The groups.
        first: Position from which on tokens count, as in `ablate_total`.
        baseline: What stands in.
        seed: Which sequences are resampled.
        means: Of the corpus, for the baseline that wants them.
    """

    measure: Measure = field(repr=False)
    choice: str
    groups: Members = field(repr=False, compare=False)
    first: int
    baseline: Baseline
    seed: int
    means: Mapping[Site, Tensor] | None = field(default=None, repr=False, compare=False)
    takes_padding: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """What is measured, and of what."""
        return f"{self.measure.__name__}.{self.choice}"

    def sites(self, shape: Shape) -> tuple[Site, ...]:
        """None: it runs the model itself."""
        shape.check_next_token()
        return ()

    def empty(self, shape: Shape) -> State:
        """Nothing; tensors come with the first batch."""
        return {}

    def finish(self, state: State, batch: Batch) -> None:
        """Run the batch clean, and with each group ablated."""
        runner = Runner(batch.forward)
        runner.unembed = batch.readout()  # folded once a shard
        sites = sites_to_keep(runner.weights, self.groups)
        clean = runner.run(batch.tokens, sites=[*sites, *told_by(runner.weights, sites)])
        seed = self.seed + batch.first
        counts = batch.counts(self.first)
        stand = stand_in(self.baseline, counts, seed=seed, means=self.means)
        found = self.measure(runner, clean, self.groups, stand, batch)
        self.merge(state, {name: x.cpu() for name, x in found.items()})

    def merge(self, state: State, later: State) -> None:
        """The sequences one after the other."""
        for name, value in later.items():
            state[name] = torch.cat([state[name], value], -1) if name in state else value

    def result(self, state: State, shape: Shape) -> xr.Dataset:
        """What was measured, along ``component`` and ``sequence``, and the clean ``loss``."""
        dims = ("component", "sequence")
        found = {name: (dims[-x.ndim :], to_numpy(x)) for name, x in state.items()}
        return xr.Dataset(found, coords=group_coords(self.groups))

    def over(
        self, model: Model, corpus: Any, options: SweepOptions, attention_mask: Any = None
    ) -> xr.Dataset:
        """Its result for a corpus, with the mean clean loss among its attributes.

        Raises:
            ValueError: Unknown baseline, resampling a single sequence or texts of unequal length,
                or as `sweep`.
        """
        texts = padded_texts(model, corpus, attention_mask)
        sequences = len(texts.tokens)
        counts = which_count(model, texts.tokens, texts.real, self.first)
        stand_in(self.baseline, counts, real=texts.real)
        whole = self
        if self.baseline == "mean":
            whole = replace(
                self, means=_means(model, texts, read_sites(self.groups), self.first, options)
            )
        if self.baseline == "resample":
            size = _not_alone(sequences, options.batch_size)
            options = replace(options, batch_size=size, shard=size)
        found = sweep(model, texts, whole, options=options)[self.name]
        found.attrs.pop("reducer", None)  # what was asked stands in attributes of its own
        loss, error = mean_and_error_over(found["loss"], "sequence")
        return found.assign_attrs(
            baseline=self.baseline,
            first=self.first,
            seed=self.seed,
            sequences=sequences,
            clean_loss=float(loss),
            clean_loss_se=float(error),
            errors="standard error over sequences",
        )


def _means(
    model: Model, texts: Padded, sites: list[Site], first: int, options: SweepOptions
) -> dict[Site, Tensor]:
    """Mean of each activation over all tokens of the corpus that count."""
    reducers = {name: Mean(site=name, first=first) for name in {site.name: None for site in sites}}
    found = sweep(model, texts, reducers, options=options)
    return {s: torch.from_numpy(found[s.name]["mean"].sel(layer=s.layer).values) for s in sites}


def _not_alone(sequences: int, batch_size: int) -> int:
    """A size of batches, at most `batch_size` if there is one, that leaves no sequence alone."""
    smaller, larger = range(min(batch_size, sequences), 1, -1), range(batch_size + 1, sequences + 1)
    return next(size for size in (*smaller, *larger) if sequences % size != 1)
