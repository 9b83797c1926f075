"""A sweep over layers and coefficients: its cells, and what is computed of each."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, SupportsFloat

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Int
from torch import Tensor

from mlp_interp.checkpoint import Checkpoint, Tensors
from mlp_interp.edits import Edit
from mlp_interp.edits.edit import Indices
from mlp_interp.metrics import Metric
from mlp_interp.metrics.rows import clean_loss, next_tokens
from mlp_interp.models.indices import integers
from mlp_interp.models.options import check_choice
from mlp_interp.models.padding import Padded
from mlp_interp.prompts.texts import Texts
from mlp_interp.runs import Runner
from mlp_interp.runs.effects import edit_effects
from mlp_interp.steering.edits import LayerVectors, add, labelled, project_out
from mlp_interp.steering.generation import Continuing

__all__ = ["CLEAN", "Action", "DoseCell", "DoseGrid", "costs", "readings", "texts_in"]

Action = Literal["add", "project_out"]


@dataclass(frozen=True)
class DoseCell:
    """One layer and one coefficient.

    Attributes:
        name: Tells it from the others.
        edits: What is done to prompts.
        everywhere: The same at all positions, for a corpus.
    """

    name: str
    edits: tuple[Edit, ...] = ()
    everywhere: tuple[Edit, ...] = ()


CLEAN = DoseCell("clean")


@dataclass(frozen=True)
class DoseGrid:
    """Layers and coefficients, 0 among them, and the edits of each cell.

    Raises:
        ValueError: The direction is none or lacks a layer, or the coefficients are none for this.
    """

    direction: xr.DataArray
    layers: tuple[int, ...]
    coefficients: tuple[float, ...]
    positions: tuple[int, ...] | None
    action: Action

    @classmethod
    def of(
        cls,
        direction: Any,
        layers: int | Sequence[int] | None,
        coefficients: Iterable[SupportsFloat],
        positions: Indices,
        action: Any,
    ) -> "DoseGrid":
        """Check what was given."""
        check_choice("action", action, ("add", "project_out"))
        values = [float(c) + 0.0 for c in coefficients]  # -0.0 becomes 0.0
        if len({*values}) < len(values) or not np.isfinite(values).all():
            raise ValueError(f"coefficients={values}; wanted different finite numbers")
        if action == "project_out" and not {*values} <= {0.0, 1.0}:
            raise ValueError(
                f"coefficients={values} with action='project_out'; wanted 1 (projected out) and 0"
            )
        if not {*values} - {0.0}:
            raise ValueError(f"coefficients={values}; wanted at least one besides 0")
        direction = labelled(direction, layers)
        vectors = LayerVectors.of(direction)
        listed = tuple(
            n for n, _ in vectors.at(list(vectors.by_layer) if layers is None else layers)
        )
        at = integers("positions", positions)
        return cls(direction, listed, tuple(sorted({0.0, *values})), at, action)

    def cells(self) -> list[DoseCell]:
        """All but those of coefficient 0, layer by layer."""
        return [self._cell(n, c) for n in self.layers for c in self.coefficients if c]

    def laid_out(self, clean: Any, steered: Iterable[Any]) -> np.ndarray:
        """Values of the clean cell and of `cells`, as ``[layer, coef, ...]``."""
        values = iter(steered)
        rows = [[next(values) if c else clean for c in self.coefficients] for _ in self.layers]
        return np.array(rows)

    def digest(self) -> str:
        """Changes with the direction, wherever it is used."""
        facts = {
            name: [int(n) for n in np.atleast_1d(self.direction[name].values)]
            for name in ("layer", "head")
            if name in self.direction.coords
        }
        said = f"{self.direction.attrs['site']} {self.direction.dims} {facts}"
        digest = hashlib.sha256(said.encode())
        digest.update(np.ascontiguousarray(self.direction.values, dtype="<f8").tobytes())
        return digest.hexdigest()

    def _cell(self, layer: int, coefficient: float) -> DoseCell:
        def edits(positions: Indices) -> tuple[Edit, ...]:
            if self.action == "project_out":
                return tuple(project_out(self.direction, layers=layer, positions=positions))
            return tuple(add(self.direction, coefficient, layers=layer, positions=positions))

        everywhere = edits(None)
        given = everywhere if self.positions is None else edits(self.positions)
        return DoseCell(f"L{layer}-c{coefficient!r}", given, everywhere)


@torch.no_grad()
def readings(
    runner: Runner,
    texts: Texts,
    metrics: Sequence[Metric],
    cells: Sequence[DoseCell],
    *,
    checkpoint: Checkpoint[Tensors],
    batch_size: int,
) -> list[Tensor]:
    """Final streams ``[prompt, read, d_model]`` of each cell where the metrics read, in a row."""
    order: list[int] = []
    streams: list[list[Tensor]] = [[] for _ in cells]
    for number, (part, rows, _) in enumerate(texts.batches(batch_size)):
        read = [p for metric in metrics for p in metric.read(rows.shape[1])]

        def compute(missing: list[DoseCell], rows: Tensor = rows, read: list[int] = read) -> Any:
            clean = runner.run(rows.to(runner.weights.device))
            for cell in missing:
                yield {"final": runner.edited(clean, cell.edits)[:, read].cpu()}

        names = [f"read-{number:05d}-{cell.name}" for cell in cells]
        for parts, piece in zip(streams, checkpoint.fill(names, cells, compute), strict=True):
            parts.append(piece["final"])
        order += part
    back = torch.tensor(order).argsort()
    return [torch.cat(parts)[back] for parts in streams]


def texts_in(
    runner: Runner,
    texts: Texts,
    how: Continuing,
    cell: DoseCell,
    *,
    checkpoint: Checkpoint[Tensors],
) -> np.ndarray:
    """New tokens ``[prompt, sample, new]`` of one cell."""
    seeds, batches = how.seeds(texts), how.batches(texts)

    def compute(missing: list[list[tuple[int, int]]]) -> Iterator[Tensors]:
        for pairs in missing:
            yield {"tokens": how.run(runner, texts, pairs, seeds, cell.edits)}

    names = [f"text-{number:05d}-{cell.name}" for number in range(len(batches))]
    pieces = checkpoint.fill(names, batches, compute)
    return how.gathered(texts, [piece["tokens"] for piece in pieces]).tokens


@torch.no_grad()
def costs(
    runner: Runner,
    texts: Padded,
    cells: Sequence[DoseCell],
    *,
    checkpoint: Checkpoint[Tensors],
    batch_size: int,
) -> dict[str, Tensor]:
    """What the prediction of a corpus loses in each cell.

    Returns:
        `loss` of the clean run, ``[sequence]``, `kl` and `delta_loss`, ``[cell, sequence]``; means
        over tokens, in nats.
    """
    every = (CLEAN, *cells)
    pieces: list[list[Tensors]] = []
    for number, start in enumerate(range(0, len(texts.tokens), batch_size)):
        part = slice(start, start + batch_size)
        rows = texts.tokens[part].to(runner.weights.device, torch.int64)
        real = None if texts.real is None else texts.real[part].to(rows.device)
        compute = partial(_cost, runner, rows, real)

        names = [f"cost-{number:05d}-{cell.name}" for cell in every]
        pieces.append(checkpoint.fill(names, every, compute))
    loss = torch.cat([batch[0]["loss"] for batch in pieces])
    return {"loss": loss} | {
        name: torch.stack([torch.cat([b[n][name] for b in pieces]) for n in range(1, len(every))])
        for name in ("kl", "delta_loss")
    }


def _cost(
    runner: Runner,
    rows: Int[Tensor, "sequence pos"],
    real: Bool[Tensor, "sequence pos"] | None,
    cells: list[DoseCell],
) -> Iterator[Tensors]:
    """Cost pieces of one batch, several cells at a time: its clean predictions are made once."""
    clean = runner.run(rows)
    if cells[0] is CLEAN:
        loss = clean_loss(runner.unembed, clean.final, next_tokens(rows, real))
        yield {"loss": loss.nanmean(-1).cpu()}
        cells = cells[1:]
    for effects in edit_effects(runner, clean, (cell.everywhere for cell in cells), real=real):
        for kl, loss in zip(effects.kl, effects.delta_loss, strict=True):
            yield {"kl": kl.nanmean(-1).cpu(), "delta_loss": loss.nanmean(-1).cpu()}
