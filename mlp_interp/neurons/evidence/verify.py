"""Does a neuron mean what it seems to: does something specific fail without it, and only that?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mlp_interp.metrics.rows import next_tokens
from mlp_interp.models import Weights, describe
from mlp_interp.models.options import check_counts, checked_count, checked_seed
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.neurons.evidence.controls import CRITERIA, ablation, discrimination
from mlp_interp.neurons.evidence.effects import ABOUT, Losses, held_changes, losses
from mlp_interp.neurons.weights.statistics import promoted_tokens
from mlp_interp.prompts.texts import Texts, texts_of
from mlp_interp.results import to_numpy, variable
from mlp_interp.runs import Runner
from mlp_interp.sites import Site, SiteLike, component_coords

__all__ = ["verify_neuron"]

Baseline = Literal["zero", "mean"] | float | int

SIDES = ("positive", "negative")
SUMMARIES = ("max", "mean")


@own_mode()
@torch.no_grad()
def verify_neuron(
    model: Model,
    neuron: SiteLike,
    positive: Any,
    negative: Any,
    *,
    baseline: Baseline = "mean",
    controls: int = 16,
    k: int = 20,
    seed: int = 0,
    batch_size: int = 8,
) -> xr.Dataset:
    """Is a neuron about what it seems to be? Its activation and its ablation on two sets of texts.

    Three questions are asked of the neuron and, with the same texts, of random others of its layer:
    does its activation tell the texts apart; what does the prediction lose when the neuron is held
    at its mean; and do the tokens that its value vector promotes become less likely? A neuron for a
    feature separates the texts, its loss hurts on texts with the feature and not on others, and
    random neurons do neither. That it does is no proof that it is the only one, nor that its loss
    is small that it is not about the feature: others may know it, too.

    Texts are neither padded nor cut. BOS at the beginning of a text is left out everywhere: its
    activations are not looked at, it is not ablated, and what is predicted there does not count.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        neuron: A label (``"L3N669"``), a `Site`, or the pair ``(layer, neuron)``.
        positive: What has the feature: texts, which begin with BOS, or a `Corpus`, lists of token
            ids, or tokens ``[prompt, pos]``, of which padding is left out (by the rule of
            `mlp_interp.models.padding`).
        negative: What has not.
        baseline: What the activation is held at: ``"mean"``, the neuron's own mean over all tokens
            of both sets, ``"zero"``, or a number, the same for controls.
        controls: How many random other neurons of the layer.
        k: How many of the tokens that the neuron promotes to look at: the first of
            `promoted_tokens`. Controls are asked about the same tokens.
        seed: Of the choice of controls.
        batch_size: Texts of equal length that are run at once.

    Returns:
        A Dataset. Along ``component`` lies the neuron and then its controls, along ``prompt`` the
        positive texts and then the negative ones (coordinate ``side``).

        - ``activation`` (summary, component, prompt): the ``max`` and the ``mean`` over a text's
          tokens; ``auroc`` (summary, component): the chance that of a positive and a negative text
          the positive one has more; ``held_at`` (component): the baseline.
        - ``threshold``, ``precision``, ``recall``, ``f1``, ``balanced_accuracy`` (summary, step):
          what each threshold on the neuron's activation finds, NaN after the last;
          ``best_threshold`` and ``best`` (summary, criterion): where ``f1`` and
          ``balanced_accuracy`` are highest, and how high. In-sample: with few texts some threshold
          always looks good.
        - ``loss`` (measure, component, prompt): what a text loses without the neuron, mean over its
          tokens. Measures are ``delta_loss``, ``kl`` and ``promoted``: the rise of the loss on the
          text (nats per token), KL(clean || ablated), and the fall of the mean log-probability of
          the promoted tokens (nats). ``effect`` and ``effect_se`` (measure, where, component): its
          mean over ``positive`` and over ``negative`` texts with the standard error, and the
          ``difference`` of the two: how specific the loss is.
        - Against the controls, for every measure and where: ``control_mean``, ``control_std``,
          ``z``, ``rank`` (1 is the largest), ``percentile`` (controls with less, per cent) and
          ``p_value`` = (1 + controls with at least as much) / (1 + controls). The same of
          ``auroc`` with ``auroc_`` before the name. The smallest possible p is 1 / (1 + controls).
          Where the neuron's own number is NaN (``delta_loss`` on a single token), so are ``z``,
          ``rank``, ``percentile`` and ``p_value``; controls that are NaN are not counted.

    Raises:
        ValueError: The model has no such neuron, a set is empty or holds what the model cannot
            read, or an option is out of range.

    References:
        Gurnee et al., "Finding Neurons in a Haystack: Case Studies with Sparse Probing", 2023, on
        thresholds and on ablating single neurons that detect a feature.

    Example:
        >>> from mlp_interp import load_model
        >>> found = verify_neuron(
        ...     load_model("nano"), "L2N5", ["Il aime le pain."], ["The cat sat."], controls=4
        ... )
        >>> found["effect"].dims, found.sizes["component"]
        (('measure', 'where', 'component'), 5)
    """
    weights = Weights.of(model)
    site = weights.place(neuron, kind="neuron", argument="neuron")
    layer = site.layer or 0
    _check(weights, baseline, controls, batch_size)
    checked_count(k, weights.d_vocab, "tokens")
    checked_seed(seed)
    for what, given in zip(SIDES, (positive, negative), strict=True):
        if not hasattr(getattr(given, "tokens", given), "__iter__"):
            raise ValueError(f"{what}={given!r}; wanted texts, a Corpus or tokens [prompt, pos]")
    sides = [
        texts_of(model, given, what=what)
        for what, given in zip(SIDES, (positive, negative), strict=True)
    ]
    both = Texts(sides[0].rows + sides[1].rows, sides[0].bos)
    neurons = [site.unit, *_controls(weights.d_mlp, site.unit, controls, seed)]
    tokens = promoted_tokens(model, site, k=k)
    trial = _Trial(Runner.of(model), layer, neurons, both, batch_size)
    activation, means = trial.activations()
    held = _held_at(baseline, means)
    lost = trial.lost(held, torch.from_numpy(tokens["promoted"].values))
    split = len(sides[0])
    variables = {
        **discrimination(activation, split),
        **ablation(lost, split),
        "held_at": variable("component", held, unit="activation", long_name="the baseline"),
        "promoted": tokens["promoted"].variable,
        "promoted_text": tokens["promoted_text"].variable,
    }
    return xr.Dataset(
        variables,
        coords={
            **component_coords([Site("post", layer, neuron=n) for n in neurons]),
            "control": ("component", np.arange(len(neurons)) > 0),
            "side": ("prompt", np.repeat(SIDES, [split, len(both) - split])),
            "summary": list(SUMMARIES),
            "criterion": list(CRITERIA),
            "measure": list(ABOUT),
            "measure_unit": ("measure", [unit for unit, _ in ABOUT.values()]),
            "where": [*SIDES, "difference"],
        },
        attrs={
            **describe(model),
            "analysis": "evidence for a neuron",
            "exact": 1,
            "long_name": f"activation and ablation of {site.label}",
            "unit": "see each variable",
            "data": "; ".join(
                f"{side}: {getattr(given, 'attrs', {}).get('data', texts.about)}"
                for side, given, texts in zip(SIDES, (positive, negative), sides, strict=True)
            ),
            "errors": "standard error over texts; NaN with a single one",
            "baseline": baseline,
            "seed": seed,
            "engine": trial.runner.forward.engine,
        },
    )


@dataclass(frozen=True)
class _Trial:
    """Some neurons of a layer and some texts."""

    runner: Runner
    layer: int
    neurons: list[int]
    texts: Texts
    batch_size: int

    def activations(self) -> tuple[Float[np.ndarray, "summary neuron text"], list[float]]:
        """Maximum and mean of each text, and the mean over all tokens of all texts."""
        found = np.full((len(SUMMARIES), len(self.neurons), len(self.texts)), np.nan)
        total, count = torch.zeros(len(self.neurons), dtype=torch.float64), 0
        for part, tokens, first in self.texts.batches(self.batch_size):
            x = self._post(tokens)[:, first:].cpu().double()
            found[0][:, part] = to_numpy(x.amax(1).T)
            found[1][:, part] = to_numpy(x.mean(1).T)
            total += x.sum((0, 1))
            count += x.shape[0] * x.shape[1]
        return found, (total / count).tolist()

    def _post(self, tokens: Tensor) -> Float[Tensor, "batch pos neuron"]:
        seen: list[Tensor] = []

        def observe(name: str, layer: int, x: Tensor) -> Tensor:
            if (name, layer) == ("post", self.layer):
                seen.append(x[..., self.neurons])
            return x

        forward = self.runner.forward
        embedded = forward.embed(tokens.to(forward.weights.device))
        forward.run(embedded, stop=self.layer + 1, observe=observe)
        return seen[0]

    def lost(self, held: Sequence[float], tokens: Tensor) -> Float[Tensor, "measure neuron text"]:
        """What each text loses when each neuron alone is held at its value."""
        result = torch.full((len(ABOUT), len(held), len(self.texts)), torch.nan).double()
        unembed = self.runner.unembed
        values = list(zip(self.neurons, held, strict=True))
        tokens = tokens.to(unembed.weight.device)
        for part, batch, first in self.texts.batches(self.batch_size):
            clean = self.runner.run(batch)
            stream = clean.final[:, first:]
            targets = next_tokens(clean.tokens)[:, first:]
            normalized = unembed.normalize(stream).flatten(0, 1)
            done = 0
            for changes in held_changes(self.runner, clean, self.layer, values, first=first):
                rows = losses(unembed, normalized, targets.flatten(), changes.flatten(1, 2), tokens)
                result[:, done : done + len(changes), part] = _by_text(rows, stream.shape[:2])
                done += len(changes)
        return result


def _by_text(rows: Losses, shape: Sequence[int]) -> Float[Tensor, "measure neuron text"]:
    return torch.stack([x.cpu().double().unflatten(-1, tuple(shape)).nanmean(-1) for x in rows])


def _controls(d_mlp: int, neuron: int, count: int, seed: int) -> list[int]:
    order = torch.randperm(d_mlp - 1, generator=torch.Generator().manual_seed(seed))[:count]
    return (order + (order >= neuron)).tolist()


def _held_at(baseline: Baseline, means: list[float]) -> list[float]:
    if baseline == "mean":
        return means
    return [0.0 if baseline == "zero" else float(baseline)] * len(means)


def _check(weights: Weights, baseline: Any, controls: Any, batch_size: Any) -> None:
    number = type(baseline) in (int, float) and np.isfinite(baseline)
    if baseline not in ("mean", "zero") and not number:
        raise ValueError(f"baseline={baseline!r}; wanted 'mean', 'zero' or a finite number")
    check_counts(batch_size=batch_size)
    others = "other neurons in the layer"
    checked_count(controls, weights.d_mlp - 1, others, name="controls")
