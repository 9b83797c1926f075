"""Edge attribution patching: every edge between what writes to the stream and what reads it."""

from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mlp_interp.gradients.parts import GradientPart, parts
from mlp_interp.gradients.runs import GradientPlan, Runs
from mlp_interp.interchange import (
    Direction,
    Engine,
    GivenRuns,
    Graph,
    Question,
    Reading,
    both_runs,
    in_order,
)
from mlp_interp.metrics import MetricLike
from mlp_interp.models import Weights
from mlp_interp.models.indices import count
from mlp_interp.models.own_mode import in_own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.models.remember import has_hooks
from mlp_interp.prompts import Contrast
from mlp_interp.results import to_numpy

__all__ = ["edge_attribution"]

_GRADIENTS = ("q_in", "k_in", "v_in", "mlp_in", "mlp_out")


@in_own_mode
@torch.no_grad()
def edge_attribution(
    model: Model,
    contrast: Contrast,
    metric: MetricLike = "logit_difference",
    *,
    direction: Direction = "denoising",
    steps: int = 1,
    per_prompt: bool = True,
    runs: GivenRuns | None = None,
    engine: Engine = "auto",
    memory: float = 512.0,
) -> xr.Dataset:
    """Estimate the effect of every edge of a model (EAP; with more steps, EAP-IG).

    An edge carries what one component wrote to one input of a later one. Its score is the sender's
    change, clean less corrupted, times the gradient of the metric with respect to that input alone,
    through the input's LayerNorm, summed over positions: an estimate of what patching this edge and
    no other would do. Positive points toward clean. Scores of all senders into a receiver sum to
    the estimate for patching its whole input; scores along a path do not multiply or add up to
    anything. `faithfulness` tests a circuit that is chosen by them.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        contrast: Pairs of clean and corrupted prompts, which may differ in length.
        metric: One of `mlp_interp.metrics.METRICS`, a `Metric`, or a function of the last logits
            (`mlp_interp.metrics.of_function`).
        direction: ``"denoising"`` takes gradients at the corrupted run, as EAP does; ``"noising"``
            at the clean run.
        steps: 1 for EAP; more for EAP-IG, which averages gradients over so many Gauss-Legendre
            points between the embeddings of the two runs. (The original implementation takes
            equally spaced points; both approach the same integral, this one sooner.)
        per_prompt: Keep prompts apart; else average over them while they are computed.
        runs: The clean and the corrupted run, if they were made before, as in `attribution_patch`.
        engine: ``"auto"`` computes on the model's weights where it can, ``"hooks"`` by autograd
            through the model itself.
        memory: About how many MiB to use at most; prompts and steps are divided accordingly.

    Returns:
        A Dataset with ``estimate`` ``[sender, receiver(, prompt)]`` in the metric's unit, NaN where
        there is no such edge, and the metric of both runs, ``clean`` and ``corrupted``
        ``[prompt]``. Senders are ``embed``, heads (``L0H1``) and MLPs (``0.mlp``); receivers the
        inputs of each head's queries, keys and values (``L0H1.q``), of MLPs, and of the ``logits``.

    Raises:
        ValueError: An unknown metric or option; steps below 1; a metric made for another number of
            prompts or that is NaN; a model that normalises what attention and MLP write, of which
            a head's part is no vector of its own; or one that was made inside
            `torch.inference_mode`. (Called there, or under autocast, it computes as it does
            outside.)

    References:
        Syed et al., "Attribution patching outperforms automated circuit discovery", 2023 (EAP);
        Hanna et al., "Have faith in faithfulness", 2024 (EAP-IG).

    Example:
        >>> from mlp_interp import load_model, prompts
        >>> model = load_model("nano")
        >>> edges = edge_attribution(model, prompts.ioi(model, n=2, seed=0))
        >>> (
        ...     edges.estimate.dims,
        ...     bool(edges.estimate.sel(sender="3.mlp", receiver="0.mlp").isnull().all()),
        ... )
        (('sender', 'receiver', 'prompt'), True)
    """
    steps = count("steps", steps)
    question = Question.of(
        model, contrast, metric, direction=direction, engine=engine, memory=memory, runs=runs
    )
    question.weights.check_no_post_norms("edge_attribution")
    graph = Graph.of(question.weights)
    plan = GradientPlan(names=("resid_pre", "z", "mlp_out"), gradients=_GRADIENTS, steps=steps)
    estimates: list[np.ndarray] = []
    readings: list[Reading] = []
    for part in parts(question, plan):
        scores = _scores(graph, part)
        estimates.append(to_numpy(scores.movedim(0, -1) if per_prompt else scores.sum(0)))
        readings.append(part.reading)
    if per_prompt:
        estimate = in_order([reading.numbers for reading in readings], estimates)
    else:
        estimate = np.sum(estimates, axis=0) / len(contrast)
    estimate[~graph.edges] = np.nan
    long_name = "estimated effect of the edge, positive toward clean"
    dims = ("sender", "receiver", "prompt") if per_prompt else ("sender", "receiver")
    return xr.Dataset(
        {
            "estimate": (dims, estimate, {"unit": question.metric.unit, "long_name": long_name}),
            **both_runs(readings),
        },
        coords={**graph.coords(), **question.coords()},
        attrs={
            **question.attrs(),
            "analysis": "edge attribution patching",
            "exact": 0,
            "approximation": "first order: the change times the gradient",
            "steps": steps,
            "method": "EAP" if steps == 1 else "EAP-IG",
            "parallel": int(graph.parallel),
            "n_layers": graph.n_layers,
            "n_heads": graph.n_heads,
        },
    )


@dataclass(frozen=True)
class _Senders:
    """What every sender changed: all blocks but the last, and the last, which has fewer rows."""

    early: Float[Tensor, "prompt sender row d_model"]
    last: Float[Tensor, "prompt late row_read d_model"]
    first: int
    early_rows: int

    @classmethod
    def of(cls, weights: Weights, graph: Graph, runs: Runs) -> "_Senders":
        changes, last = runs.differences, graph.n_layers - 1
        embedded = changes["resid_pre", 0]
        prompts, rows, width = embedded.shape
        early = embedded.new_empty(prompts, graph.written_before(last), rows, width)
        early[:, 0] = embedded
        final = early
        for layer in range(graph.n_layers):
            z, mlp = changes["z", layer], changes["mlp_out", layer]
            if layer < last:
                here = early[:, graph.writing(layer)]
            else:
                here = final = z.new_empty(prompts, graph.n_heads + 1, z.shape[1], width)
            here[:, :-1] = z.transpose(1, 2) @ weights.parameter(layer, "W_O")
            here[:, -1] = mlp
        return cls(early, final, runs.positions("resid_pre", 0)[0], rows)

    def scores(
        self, grad: Float[Tensor, "prompt receiver row d_model"], positions: list[int], count: int
    ) -> Float[Tensor, "prompt sender receiver"]:
        """Of the first `count` senders into some receivers, summed over positions."""
        early = self.early[:, :count]
        if len(positions) < self.early_rows:
            early = early[:, :, [p - self.first for p in positions]]
        grad = grad.flatten(2).transpose(1, 2)
        scores = early.flatten(2) @ grad
        if count > self.early.shape[1]:
            late = self.last[:, : count - self.early.shape[1]].flatten(2) @ grad
            scores = torch.cat([scores, late], dim=1)
        return scores


def _check_unedited(graph: Graph, part: GradientPart, senders: _Senders) -> None:
    """Refuse two runs whose streams differ by more than what senders write, where hooks write too.

    Raises:
        ValueError: They do, after some block.
    """
    changes, last = part.runs.differences, graph.n_layers - 1
    for layer in range(graph.n_layers):
        here = senders.last if layer == last else senders.early[:, graph.writing(layer)]
        expected = changes["resid_pre", layer] + here.sum(1)
        if layer == last:
            expected, found = expected[:, part.question.read], part.runs.clean - part.runs.corrupted
        else:
            found = changes["resid_pre", layer + 1]
        size = found.norm(dim=-1) + expected.norm(dim=-1)
        # Differences of streams, which may be much smaller than these.
        if bool(((found - expected).norm(dim=-1) > 1e-3 * size + 1e-6).any()):
            raise ValueError(
                f"edge_attribution: hooks on the model, as steer holds them, change what block "
                f"{layer} adds to the stream otherwise in the clean run than in the corrupted one, "
                "and are no node of its graph; wanted a model without them, or with edits that add "
                "the same to both: path_patch takes 'edit:…' as a sender"
            )


def _scores(graph: Graph, part: GradientPart) -> Float[Tensor, "prompt sender receiver"]:
    senders = _Senders.of(part.question.weights, graph, part.runs)
    if has_hooks(part.question.weights.model):
        _check_unedited(graph, part, senders)
    shape = (len(senders.early), len(graph.senders), len(graph.receivers))
    scores = senders.early.new_zeros(shape)
    for layer, grads in part.gradients():
        before = graph.written_before(layer)
        queries, keys = (part.runs.positions(f"{name}_in", layer) for name in "qk")
        # Readers at the same positions in one product.
        for names, rows in (("qkv", keys),) if queries == keys else (("q", queries), ("kv", keys)):
            grad = torch.cat([grads[f"{name}_in"].transpose(1, 2) for name in names], dim=1)
            first, last = graph.heads(layer, names[0]), graph.heads(layer, names[-1])
            where = slice(first.start, last.stop)
            scores[:, :before, where] += senders.scores(grad, rows, before)
        before = graph.written_before(layer, "mlp_out")
        rows = part.runs.positions("mlp_out", layer)
        into_mlp = senders.scores(grads["mlp_in"][:, None], rows, before)
        scores[:, :before, graph.mlp(layer)] += into_mlp[..., 0]
        if layer == graph.n_layers - 1:
            # The gradient at the last MLP's output is that at the final stream.
            into_logits = senders.scores(grads["mlp_out"][:, None], rows, len(graph.senders))
            scores[..., -1] += into_logits[..., 0]
    return scores
