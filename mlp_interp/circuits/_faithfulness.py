"""Faithfulness: what a circuit of edges does by itself, everything else being corrupted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor

from mlp_interp.gradients.backward import Lean, Past
from mlp_interp.gradients.span import Span
from mlp_interp.interchange import (
    Engine,
    GivenRuns,
    Graph,
    Question,
    Reading,
    both_runs,
    in_order,
)
from mlp_interp.metrics import MetricLike
from mlp_interp.models import Forward
from mlp_interp.models.options import check_choice
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.prompts import Contrast
from mlp_interp.results import described, to_numpy

__all__ = ["FRACTIONS", "faithfulness"]

FRACTIONS = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""The fractions of the Mechanistic Interpretability Benchmark."""


@own_mode()
@torch.no_grad()
def faithfulness(
    model: Model,
    contrast: Contrast,
    metric: MetricLike = "logit_difference",
    *,
    edges: xr.Dataset | xr.DataArray,
    fractions: Sequence[float | int] = FRACTIONS,
    rank: Literal["absolute", "signed"] = "absolute",
    runs: GivenRuns | None = None,
    engine: Engine = "auto",
    memory: float = 512.0,
) -> xr.Dataset:
    """How much of a metric the best-scored edges keep when all others carry corrupted activations.

    For each fraction the edges with the best scores form a circuit. Its forward pass runs on the
    clean prompts, but every input of every component hears its senders over circuit edges only;
    over the others it hears what they wrote in the corrupted run. This is an intervention, no
    estimate. 1 means that the circuit does what the model does, 0 that it does no more than the
    corrupted model; both can be passed. All fractions run in one batch.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        contrast: Pairs of clean and corrupted prompts, which may differ in length; best not those
            that scored the edges.
        metric: One of `mlp_interp.metrics.METRICS`, a `Metric`, or a function of the last logits
            (`mlp_interp.metrics.of_function`).
        edges: Scores ``[sender, receiver(, prompt)]`` as from `edge_attribution`; prompts are
            averaged.
        fractions: Shares of the edges to keep, from 0 to 1.
        rank: ``"absolute"`` keeps the largest scores of either sign, to behave as the model does;
            ``"signed"`` the most positive, to do best.
        runs: The clean and the corrupted run, if they were made before, as in `attribution_patch`.
        engine: Only ``"auto"`` can: each head's inputs are set apart, on the model's weights.
        memory: About how many MiB to use at most; prompts are divided accordingly.

    Returns:
        A Dataset with ``faithfulness`` ``[fraction]``, ``(m(circuit) - m(corrupted)) / (m(clean) -
        m(corrupted))`` of metrics averaged over prompts; ``metric`` ``[fraction, prompt]`` of each
        circuit, ``clean`` and ``corrupted`` ``[prompt]``, in the metric's unit; ``edges``
        ``[fraction]``, how many were kept; ``cpr``, the area under the curve over fractions from 0
        to 1 (its ends are known), and ``cmd``, the area between the curve and 1.

    Raises:
        ValueError: Fractions outside 0 to 1 or none; scores that belong to another model or are not
            finite; prompts on which clean and corrupted metric are equal on average; a model that
            the lean forward refuses; and as `edge_attribution`.

    References:
        Mueller et al., "MIB: A Mechanistic Interpretability Benchmark", 2025 (CPR, CMD); Hanna et
        al., "Have faith in faithfulness", 2024.

    Example:
        >>> from mlp_interp import load_model, prompts
        >>> from mlp_interp.circuits import edge_attribution
        >>> model = load_model("nano")
        >>> task = prompts.ioi(model, n=4, seed=0)
        >>> edges = edge_attribution(model, task)
        >>> curve = faithfulness(model, task, edges=edges, fractions=[0, 0.1, 1])
        >>> curve.faithfulness.round(3).values[[0, -1]]
        array([0., 1.], dtype=float32)
    """
    fractions = _checked_fractions(fractions)
    check_choice("rank", rank, ("absolute", "signed"))
    question = Question.of(model, contrast, metric, engine=engine, memory=memory, runs=runs)
    if not isinstance(question.forward, Forward):
        raise ValueError(
            f"model={question.weights.model.cfg.model_name!r} by engine={question.forward.engine!r}"
            ": each head's inputs must be set apart, which takes the lean forward; wanted a model "
            "that has one"
        )
    graph, lean = Graph.of(question.weights), Lean(question.forward)
    kept = _circuits(graph, edges, fractions, rank)
    masks = torch.from_numpy(kept).to(question.weights.device, question.weights.dtype)
    items = max(1, int(memory * 2**20 / _bytes(question)))
    together = min(items, len(fractions))
    metrics: list[np.ndarray] = []
    readings: list[Reading] = []
    for part in question.parts(max(1, items // together)):
        circuit = _Circuit.of(lean, graph, part)
        readings.append(circuit.reading)
        metrics.append(_metrics(circuit, masks, together))
    metric_of = in_order([reading.numbers for reading in readings], metrics)
    return _curve(question, fractions, kept, metric_of, readings, rank)


def _bytes(question: Question) -> float:
    """About what one circuit takes of one prompt: a stream for each sender and receiver."""
    weights, length = question.weights, question.length
    per_layer = (weights.n_heads + 1) * weights.d_model + 2 * weights.n_heads * length
    per_block = 8 * weights.n_heads * weights.d_model + 3 * weights.d_mlp
    numbers = (weights.n_layers * per_layer + per_block) * length
    return float(numbers * weights.W_U.element_size())


@dataclass(frozen=True, eq=False)
class _Circuit:
    """The corrupted run, and what it takes to run parts of the clean one inside it."""

    lean: Lean
    graph: Graph
    span: Span
    reading: Reading
    embedded: Tensor  # clean less corrupted, at the rows of the span
    corrupted: dict[tuple[str, int], Tensor]
    final: Tensor
    past: Past

    @classmethod
    def of(cls, lean: Lean, graph: Graph, question: Question) -> "_Circuit":
        """Run both sides of a question."""
        read = question.read
        # Before the first position that is read nothing may differ: then that is the first.
        differs = question.contrast.differs.any(0).tolist()
        first = min(differs.index(True), *read)
        span = Span(first, question.length, tuple(range(first, question.length)))
        clean, corrupted = question.embedded()
        past = lean.past(corrupted[:, :first])
        seen: dict[tuple[str, int], Tensor] = {}

        def note(name: str, layer: int, x: Tensor) -> None:
            if name in ("resid_pre", "attn_out", "z", "mlp_out"):
                seen[name, layer] = x

        final = lean.run(corrupted[:, first:], span, past, observe=note).final
        clean_final = lean.run(clean[:, first:], span, past).final
        rows = [p - first for p in read]
        reading = question.reading_at(clean_final[:, rows], final[:, rows])
        change = (clean - corrupted)[:, first:]
        return cls(lean, graph, span, reading, change, seen, final, past)

    def run(
        self, masks: Float[Tensor, "circuit sender receiver"]
    ) -> Float[Tensor, "circuit prompt read d_model"]:
        """Final streams of the circuits at the positions read."""
        lean, graph, parallel = self.lean, self.graph, self.lean.weights.parallel
        shape = (len(masks), len(graph.senders), *self.embedded.shape)
        changes = self.embedded.new_zeros(shape)  # what each sender writes, less when corrupted
        changes[:, 0] = self.embedded
        for layer in range(graph.n_layers):
            stream = self.corrupted["resid_pre", layer]
            writing, before = graph.writing(layer), graph.written_before(layer)
            z = self._attend(
                layer,
                [
                    stream + _read(changes[:, :before], masks[:, :before, graph.heads(layer, name)])
                    for name in ("q", "k", "v")
                ],
            )
            z = z - self.corrupted["z", layer].transpose(1, 2)
            written = z @ lean.weights.parameter(layer, "W_O")
            changes[:, writing][:, :-1] = written.transpose(1, 2)
            if not parallel:
                stream = stream + self.corrupted["attn_out", layer]
            before, mlp = graph.written_before(layer, "mlp_out"), graph.mlp(layer)
            read = stream + _read(changes[:, :before], masks[:, :before, mlp : mlp + 1])
            mlp_out = lean.forward.mlp(layer, read[:, 0])
            changes[:, writing][:, -1] = mlp_out - self.corrupted["mlp_out", layer]
        rows = [p - self.span.first for p in self.reading.read]
        final = _read(changes[..., rows, :], masks[..., -1:])
        return self.final[:, rows] + final[:, 0]

    def _attend(self, layer: int, inputs: list[Tensor]) -> Tensor:
        """Each head's `z`, ``[circuit, prompt, head, row, d_head]``, from inputs of its own."""
        lean, forward = self.lean, self.lean.forward
        q, k, v = (
            (forward.normalize(x) @ matrix.mT[:, None] + bias[:, None, None]).movedim(1, 3)
            for x, (matrix, bias) in zip(inputs, forward.readers(layer), strict=True)
        )
        rotary, future = lean.places(self.span)
        q, k = (forward.turned(layer, n, x, rotary) for n, x in (("q", q), ("k", k)))
        q, k, v = (x.transpose(2, 3) for x in (q, k, v))
        if self.span.first:
            past = (x.expand(len(q), *x.shape) for x in self.past[layer])
            k, v = (torch.cat(pair, dim=3) for pair in zip(past, (k, v), strict=True))
        return lean.pattern(q, k, future) @ forward.shared(v, -3)


def _read(
    changes: Float[Tensor, "circuit sender prompt row d_model"],
    masks: Float[Tensor, "circuit sender receiver"],
) -> Float[Tensor, "circuit receiver prompt row d_model"]:
    """The sum of what each receiver reads."""
    total = masks.transpose(1, 2) @ changes.flatten(2)
    return total.view(*total.shape[:2], *changes.shape[2:])


def _metrics(
    circuit: _Circuit, masks: Tensor, together: int
) -> Float[np.ndarray, "circuit prompt"]:
    values: list[Tensor] = []
    prompts = torch.arange(len(circuit.embedded), device=masks.device)
    for some in masks.split(together):
        streams = circuit.run(some).flatten(0, 1)
        values.append(circuit.reading(streams, prompts.repeat(len(some))).view(len(some), -1))
    return to_numpy(torch.cat(values))


def _circuits(
    graph: Graph, edges: xr.Dataset | xr.DataArray, fractions: list[float], rank: str
) -> Bool[np.ndarray, "circuit sender receiver"]:
    """Which edges each circuit keeps; of equal scores the earlier edge."""
    scores = edges.estimate if isinstance(edges, xr.Dataset) else edges
    if "prompt" in scores.dims:
        scores = scores.mean("prompt")
    labels = [list(scores[d].values) if d in scores.coords else [] for d in ("sender", "receiver")]
    if labels != [graph.senders, graph.receivers]:
        raise ValueError(
            f"edges={dict(scores.sizes)} do not belong to this model; wanted "
            f"{len(graph.senders)} senders and {len(graph.receivers)} receivers as from "
            "edge_attribution"
        )
    there = graph.edges
    values = scores.transpose("sender", "receiver").values[there]
    if not np.isfinite(values).all():
        raise ValueError(
            f"edges hold {int((~np.isfinite(values)).sum())} scores that are NaN or infinite; "
            "wanted a number for every edge of the model"
        )
    order = np.argsort(-(np.abs(values) if rank == "absolute" else values), kind="stable")
    kept = np.zeros((len(fractions), *there.shape), dtype=bool)
    senders, receivers = (x[order] for x in np.nonzero(there))
    for row, fraction in enumerate(fractions):
        count = round(fraction * len(order))
        kept[row, senders[:count], receivers[:count]] = True
    return kept


def _curve(
    question: Question,
    fractions: list[float],
    kept: np.ndarray,
    metric: Float[np.ndarray, "fraction prompt"],
    readings: Sequence[Reading],
    rank: str,
) -> xr.Dataset:
    runs = both_runs(readings)
    clean, corrupted = (runs[name][1].mean() for name in ("clean", "corrupted"))
    if clean == corrupted:
        raise ValueError(
            f"metric {question.metric.name!r} is {clean} on average after clean and after "
            "corrupted prompts; wanted a difference to recover"
        )
    faithful = (metric.mean(-1) - corrupted) / (clean - corrupted)
    # No edges give the corrupted run and all of them the clean one, whether measured or not.
    curve = {0.0: 0.0, 1.0: 1.0, **dict(zip(fractions, faithful.tolist(), strict=True))}
    at = np.array(sorted(curve))
    height = np.array([curve[x] for x in at])
    share = {"unit": "share of clean - corrupted"}
    result = xr.Dataset(
        {
            "faithfulness": ("fraction", faithful, share),
            "metric": (("fraction", "prompt"), metric, {"unit": question.metric.unit}),
            **runs,
            "edges": ("fraction", kept.sum((1, 2)), {"unit": "edges"}),
            "cpr": ((), _area(at, height), share),
            "cmd": ((), _area(at, 1 - height, absolute=True), share),
        },
        coords={"fraction": fractions, **question.coords()},
        attrs={
            **question.attrs(directed=False),
            "analysis": "faithfulness",
            "rank": rank,
            "method": "edges outside the circuit are corrupted",
        },
    )
    return described(result, _ABOUT)


_ABOUT = {
    "faithfulness": "what the circuit brings back of the metric",
    "metric": "metric of the circuit",
    "edges": "edges kept",
    "cpr": "area under faithfulness",
    "cmd": "area between faithfulness and 1",
}


def _area(at: np.ndarray, height: np.ndarray, *, absolute: bool = False) -> float:
    """Under straight lines between points, or under their absolute value: they may cross zero."""
    left, right = height[:-1], height[1:]
    areas = (left + right) / 2
    if absolute:
        size = np.abs(left) + np.abs(right)
        crosses = left * right < 0
        # Two triangles, which meet where the line crosses.
        triangles = (left**2 + right**2) / (2 * np.where(crosses, size, 1.0))
        areas = np.where(crosses, triangles, size / 2)
    return float((areas * np.diff(at)).sum())


def _checked_fractions(fractions: Sequence[float | int]) -> list[float]:
    shares = sorted({float(fraction) for fraction in fractions})
    if not shares or not all(0 <= fraction <= 1 for fraction in shares):
        raise ValueError(f"fractions={list(fractions)}; wanted some from 0 to 1")
    return shares
