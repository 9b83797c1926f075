"""Ablations over a corpus: batch by batch, per sequence, and resumable."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from mlp_interp.ablation.baselines import Baseline, stand_in
from mlp_interp.ablation.total import read_sites
from mlp_interp.checkpoint import TENSORS, Checkpoint, Tensors
from mlp_interp.metrics.rows import clean_loss, next_tokens
from mlp_interp.models import fingerprint
from mlp_interp.models.protocol import Model
from mlp_interp.residual import Stand
from mlp_interp.runs import Run, Runner
from mlp_interp.sites import Site
from mlp_interp.unembed import Unembed

__all__ = ["CleanBatch", "Sweep"]


@dataclass(frozen=True)
class CleanBatch:
    """A few sequences, run clean, and what stands in for what is taken away."""

    clean: Run
    stand: Stand

    @property
    def targets(self) -> Int[Tensor, "batch pos"]:
        """The next token of each position; -1 after the last."""
        return next_tokens(self.clean.tokens)

    def loss(self, unembed: Unembed) -> Float[Tensor, " batch"]:
        """Clean loss per sequence, nats per token."""
        return clean_loss(unembed, self.clean.final, self.targets).nanmean(-1)


@dataclass(frozen=True)
class Sweep:
    """What is run over which tokens; `run` does it.

    Raises:
        ValueError: Unknown baseline, a batch size below one, or resampling a single sequence.
    """

    runner: Runner
    tokens: Int[Tensor, "sequence pos"]
    groups: Mapping[str, tuple[Site, ...]]
    baseline: Baseline
    batch_size: int
    seed: int
    model: Model

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size}; wanted at least 1")
        if self.tokens.shape[1] < 2:
            raise ValueError(f"sequences of {self.tokens.shape[1]} token have no next token")
        stand_in(self.baseline, len(self._batches()[0]))

    def run(
        self,
        measure: Callable[[CleanBatch], dict[str, Tensor]],
        name: str,
        *,
        progress: bool,
        checkpoint: str | Path | None,
    ) -> dict[str, Float[Tensor, "*rest sequence"]]:
        """Measure every batch and join the results along their last axis, the sequences.

        Args:
            measure: From a batch to named tensors whose last axis is the batch.
            name: What is measured; keeps the checkpoints of different measurements apart.
            progress: Show a progress bar.
            checkpoint: Directory for finished batches, or None.
        """
        sites, batches = read_sites(self.groups), self._batches()

        def compute(missing: list[int]) -> Iterator[Tensors]:
            means = self._means(sites) if self.baseline == "mean" else None
            for number in missing:
                clean = self.runner.run(batches[number], sites=sites)
                seed = self.seed + number
                stand = stand_in(self.baseline, len(clean.tokens), seed=seed, means=means)
                yield {key: value.cpu() for key, value in measure(CleanBatch(clean, stand)).items()}

        folder = None if checkpoint is None else Path(checkpoint) / f"{name}-{self._name()}"
        numbers = range(len(batches))
        with tqdm(total=len(batches), desc=name, disable=not progress) as bar:
            kept = Checkpoint(folder, TENSORS, done=bar.update)
            pieces = kept.fill([f"{number:06d}" for number in numbers], numbers, compute)
        return {key: torch.cat([piece[key] for piece in pieces], dim=-1) for key in pieces[0]}

    def _name(self) -> str:
        options = {
            "baseline": self.baseline,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "groups": list(self.groups),
        }
        return fingerprint(self.model, self.tokens, options)

    def _batches(self) -> tuple[Tensor, ...]:
        """Batches of about equal size; none of one sequence where sequences are resampled."""
        count = -(-len(self.tokens) // self.batch_size)
        if self.baseline == "resample":
            count = max(1, min(count, len(self.tokens) // 2))
        return self.tokens.tensor_split(count)

    def _means(self, sites: list[Site]) -> dict[Site, Tensor]:
        """Mean of each activation over all sequences and positions of the corpus."""
        sums: dict[Site, Tensor] = {}
        for tokens in self._batches():
            run = self.runner.run(tokens, sites=sites)
            for site, value in ((site, run.at(site)) for site in sites):
                total = value.double().sum((0, 1), keepdim=True)
                sums[site] = sums[site] + total if site in sums else total
        return {site: total / self.tokens.numel() for site, total in sums.items()}
