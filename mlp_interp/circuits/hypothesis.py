"""How much of a behaviour a proposed circuit leaves unexplained."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from mlp_interp.circuits.node_circuits import Circuits, node_of, random_nodes
from mlp_interp.circuits.path_circuits import (
    Path,
    measure_paths,
    path_of,
    random_paths,
    sites_of,
)
from mlp_interp.interchange import Engine, GivenRuns, Question, Reading, order_of
from mlp_interp.interchange.graph import LOGITS, writers
from mlp_interp.metrics import Metric, MetricLike, metric_for
from mlp_interp.models import Weights
from mlp_interp.models.indices import count, each
from mlp_interp.models.options import checked_seed
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.paths.direct_paths import items_in
from mlp_interp.paths.labels import Label, texts_of
from mlp_interp.prompts import Contrast
from mlp_interp.results import described, mean_and_error, to_numpy
from mlp_interp.sites import Site

__all__ = ["evaluate_hypothesis"]


@own_mode()
@torch.no_grad()
def evaluate_hypothesis(
    model: Model,
    contrasts: Contrast | Sequence[Contrast],
    metric: MetricLike = "logit_difference",
    *,
    nodes: Label | Sequence[Label | Sequence[Label]],
    draws: int = 10,
    seed: int = 0,
    runs: GivenRuns | None = None,
    engine: Engine = "auto",
    memory: float = 512.0,
    progress: bool = False,
) -> xr.Dataset:
    """Test the claim that a behaviour goes through these nodes and no others.

    If it does, all other nodes may see another prompt without harm. So the model runs on the clean
    prompt, while every node outside the circuit writes what it wrote on the corrupted one; nodes of
    the circuit compute from what then reaches them. What the metric loses is the effect left
    unexplained. Its size averaged over pairs is the average unexplained effect (AUE), to be
    compared with the average total effect (ATE) of corrupting everything. Signs do not cancel: a
    circuit that does too much for one pair and too little for the next explains neither.

    A small AUE says that the circuit suffices; it does not say that each node is needed (the whole
    model leaves nothing unexplained), nor that no other circuit does as well. Circuits of as many
    nodes of the same kinds drawn at random say how much is owed to their number alone.

    Args:
        model: The model.
        contrasts: Pairs of prompts, which may differ in length, or several contrasts. To have each
            pair both ways round, give ``[contrast, contrast.swap()]``.
        metric: One of `mlp_interp.metrics.METRICS`, a function of the last logits
            (`mlp_interp.metrics.of_function`), or, for a single contrast, a `Metric`.
        nodes: The circuit: ``L3H5`` (a head), ``L3H5.q`` (or ``.k``, ``.v``: the head, but only
            its queries hear the circuit; keys and values are the corrupted run's), ``3.attn``,
            ``3.mlp``, ``L3N669`` (a neuron). Embedding and logits belong to every circuit. Or a
            list of paths, each a list of components from first to last: ``["embed", "L1H3",
            "L3H5.q", "logits"]``. Then only what runs along them is clean, the embedding too, and
            a component on several paths hears on each only what that path tells it. A path may
            begin at a component, which then writes what it wrote on the clean prompt.
        draws: How many random circuits: of nodes, other nodes of the same kinds; of paths, the same
            paths through other heads and neurons of the same layers.
        seed: Of the random circuits.
        runs: The clean and the corrupted run of a single contrast, if they were made before, as in
            `path_patch`.
        engine: ``"auto"`` runs the model's lean forward where there is one, ``"hooks"`` the model
            itself.
        memory: MiB that may be used on top of the two runs themselves.
        progress: Show a progress bar.

    Returns:
        A Dataset. For each prompt, in the metric's unit: ``clean``, ``corrupted`` and ``circuit``,
        the metric of the two runs and of the circuit, and ``random`` ``[draw, prompt]``; ``total``
        and ``unexplained``, clean less corrupted and clean less circuit. Over prompts: ``ate`` and
        ``aue``, means of their absolute values, and ``explained``, ``1 - aue / ate`` (1 if nothing
        is left; below 0 if the circuit does more harm than corruption; NaN without any effect),
        each with its standard error over pairs as ``..._se``; ``random_aue`` and
        ``random_explained`` ``[draw]``; and ``as_good``, the share of random circuits that leave no
        more unexplained. ``check_everything`` and ``check_nothing`` are the largest errors of two
        self-checks: with all nodes the circuit is the clean run; with none, the embedding corrupted
        too, the corrupted one.

    Raises:
        ValueError: Nodes that are unknown or that the model lacks, or none; no contrasts; a
            `Metric` for several of them, for other prompts, or not finite on the two runs.

    References:
        Goldowsky-Dill et al., "Localizing Model Behavior with Path Patching", 2023.

    Example:
        >>> from mlp_interp import load_model, prompts
        >>> model = load_model("nano")
        >>> contrast = prompts.ioi(model, n=4, seed=0)
        >>> result = evaluate_hypothesis(model, contrast, nodes=["L1H0", "L2H1", "3.attn"], draws=2)
        >>> result.unexplained.dims, result.random_aue.sizes["draw"]
        (('prompt',), 2)
        >>> all_of_it = [f"{layer}.{kind}" for layer in range(4) for kind in ("attn", "mlp")]
        >>> bool(evaluate_hypothesis(model, contrast, nodes=all_of_it).explained > 0.999)
        True
    """
    weights = Weights.of(model)
    several = [contrasts] if isinstance(contrasts, Contrast) else list(contrasts)
    metrics = _metrics(metric, several)
    claim = _Claim.of(weights, nodes)
    draws, seed = count("draws", draws, least=0), checked_seed(seed)
    if runs is not None and len(several) > 1:
        raise ValueError(f"runs beside {len(several)} contrasts; wanted those of a single one")
    questions = [
        Question.of(model, contrast, one, engine=engine, memory=memory, runs=runs)
        for contrast, one in zip(several, metrics, strict=True)
    ]
    asked = [question.by_length() for question in questions]
    size = items_in(weights, max(question.length for question in questions), memory)
    measurer = claim.measurer(weights, draws, np.random.default_rng(seed))
    parts: list[_Values] = []
    for groups in tqdm(asked, desc="circuits", disable=not progress):
        found = [measurer.values(group, size) for group in groups]
        order = order_of([group.numbers for group in groups])
        parts.append(_Values.joined(found).of_prompts(order))
    attrs = {
        **questions[0].attrs(directed=False),
        "data": "; ".join(dict.fromkeys(contrast.attrs["data"] for contrast in several)),
        "nodes": claim.labels,
        "draw_seed": seed,
    }
    return _dataset(_Values.joined(parts), questions, attrs)


def _metrics(metric: MetricLike, contrasts: Sequence[Contrast]) -> list[Metric]:
    if not contrasts:
        raise ValueError("contrasts=[] is empty; wanted a Contrast, or some of them")
    if len(contrasts) > 1 and isinstance(metric, Metric):
        raise ValueError(
            f"metric={metric.name!r} is a Metric for {len(contrasts)} contrasts; wanted its name, "
            "for it names the tokens of one"
        )
    return [metric_for(metric, contrast) for contrast in contrasts]


@dataclass(frozen=True)
class _Claim:
    """A circuit of nodes, or of paths."""

    nodes: list[Site]
    paths: list[Path]

    @classmethod
    def of(cls, weights: Weights, nodes: Label | Sequence[Label | Sequence[Label]]) -> "_Claim":
        listed = each(nodes)
        given = [
            texts_of(one)[0] if isinstance(one, str | Site) else tuple(texts_of(one))
            for one in listed
        ]
        if len(set(given)) < len(given):
            raise ValueError(f"nodes={given}; wanted each once")
        labels = [one for one in given if isinstance(one, str)]
        if labels and len(labels) < len(given):
            raise ValueError(
                f"nodes={given} mixes nodes and paths; wanted labels, or lists of them"
            )
        paths = [] if labels else [path_of(weights, path) for path in given]
        claimed = [node for label in labels if (node := node_of(weights, label)) is not None]
        if not claimed and not paths:
            raise ValueError(
                f"nodes={given} is no circuit; wanted labels such as L3H5, L3H5.q, 3.mlp or "
                "L3N669, or paths of them"
            )
        return cls(claimed, paths)

    @property
    def labels(self) -> list[str]:
        """As a result shows it."""
        if self.nodes:
            return [node.label for node in self.nodes]
        return [" > ".join([*(site.label for site in path), LOGITS]) for path in self.paths]

    def measurer(self, weights: Weights, draws: int, rng: np.random.Generator) -> "_Measurer":
        """Of this circuit, all of the model, nothing, and random ones."""
        mlps = weights.has_mlps
        whole = writers(weights.n_layers, weights.n_heads, "component", mlps=mlps)
        if self.nodes:
            drawn = [random_nodes(weights, self.nodes, rng) for _ in range(draws)]
            circuits = Circuits.of(weights, [self.nodes, whole[1:], [], *drawn])
            return _Measurer(circuits.sites, circuits.measure)
        paths = [random_paths(weights, self.paths, rng) for _ in range(draws)]
        every = [self.paths, [(site,) for site in whole], [], *paths]
        return _Measurer(sites_of(every, weights), partial(measure_paths, circuits=every))


@dataclass(frozen=True)
class _Measurer:
    """What the runs must keep, and the function from them to the metric of all circuits."""

    sites: list[Site]
    measure: Callable[..., Tensor]

    def values(self, question: Question, size: int) -> "_Values":
        """Of prompts of one length."""
        pair = question.pair(self.sites)
        return _Values.of(pair.reading, self.measure(pair, size))


@dataclass(frozen=True)
class _Values:
    """The metric of all runs, ``[prompt]`` (of random circuits ``[draw, prompt]``)."""

    clean: Float[Tensor, " prompt"]
    corrupted: Float[Tensor, " prompt"]
    circuit: Float[Tensor, " prompt"]
    everything: Float[Tensor, " prompt"]
    nothing: Float[Tensor, " prompt"]
    random: Float[Tensor, "draw prompt"]

    @classmethod
    def of(cls, reading: Reading, circuits: Float[Tensor, "circuit prompt"]) -> "_Values":
        """From the circuits in the order in which they are measured."""
        circuit, everything, nothing = circuits[:3]
        return cls(reading.clean, reading.corrupted, circuit, everything, nothing, circuits[3:])

    @classmethod
    def joined(cls, parts: Sequence["_Values"]) -> "_Values":
        """Those of several contrasts, one after the other."""
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return cls(*(torch.cat(column, dim=-1) for column in columns))

    def of_prompts(self, order: list[int]) -> "_Values":
        """Those of some prompts, in this order."""
        return _Values(*(values[..., order] for values in vars(self).values()))


def _dataset(values: _Values, questions: Sequence[Question], attrs: dict[str, Any]) -> xr.Dataset:
    contrasts = [question.contrast for question in questions]
    metric = questions[0].metric
    total, left = values.clean - values.corrupted, values.clean - values.circuit
    ate, ate_se = mean_and_error(total.abs())
    aue, aue_se = mean_and_error(left.abs())
    scale = torch.where(ate == 0, torch.nan, ate)
    # A ratio of means: its error to first order is that of the mean of these.
    ratio_se = mean_and_error((left.abs() - aue / scale * total.abs()) / scale)[1]
    random_aue = (values.clean - values.random).abs().mean(-1)
    checks = {
        "check_everything": (values.everything - values.clean).abs().max(),
        "check_nothing": (values.nothing - values.corrupted).abs().max(),
    }
    # The same circuit, run in another batch, differs by rounding: at most as the checks do.
    ties = torch.stack([1e-6 * ate, *checks.values()]).max()
    as_good = (random_aue <= aue + ties).to(aue.dtype).mean() if len(random_aue) else torch.nan
    unit = {"unit": metric.unit}
    share = {"unit": "share of the average total effect"}
    scalars = {
        "ate": ate,
        "ate_se": ate_se,
        "aue": aue,
        "aue_se": aue_se,
        **checks,
    }
    per_prompt = {
        "clean": values.clean,
        "corrupted": values.corrupted,
        "circuit": values.circuit,
        "total": total,
        "unexplained": left,
    }
    result = xr.Dataset(
        {
            **{name: ("prompt", to_numpy(x), unit) for name, x in per_prompt.items()},
            **{name: ((), float(x), unit) for name, x in scalars.items()},
            "explained": ((), float(1 - aue / scale), share),
            "explained_se": ((), float(ratio_se), share),
            "random": (("draw", "prompt"), to_numpy(values.random), unit),
            "random_aue": ("draw", to_numpy(random_aue), unit),
            "random_explained": ("draw", to_numpy(1 - random_aue / scale), share),
            "as_good": ((), float(as_good), {"unit": "share of random circuits"}),
        },
        coords={
            "prompt": np.arange(len(total)),
            "contrast": (
                "prompt",
                np.repeat(np.arange(len(contrasts)), [len(one) for one in contrasts]),
            ),
            "answer": ("prompt", [text for one in contrasts for text in one.answer_text]),
            "foil": ("prompt", [text for one in contrasts for text in one.foil_text]),
            "draw": np.arange(len(random_aue)),
        },
        attrs={
            **attrs,
            "analysis": "average unexplained effect",
            "long_name": f"{metric.name} left unexplained",
        },
    )
    return described(result, _ABOUT)


_ABOUT = {
    "clean": "metric of the clean run",
    "corrupted": "metric of the corrupted run",
    "circuit": "metric of the circuit",
    "random": "metric of random circuits",
    "total": "clean less corrupted metric",
    "unexplained": "clean less the circuit's metric",
    "ate": "average size of the total effect",
    "aue": "average size of what is left unexplained",
    "explained": "share of the average total effect that is not left unexplained",
    "random_aue": "average size of what a random circuit leaves unexplained",
    "random_explained": "share of the average total effect that a random circuit explains",
    "as_good": "share of random circuits that leave no more unexplained",
    "check_everything": "largest error of the circuit of all nodes",
    "check_nothing": "largest error of the circuit of none",
}
