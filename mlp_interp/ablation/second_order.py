"""The KL of a small change without its logits: half its variance, and a bound on the error."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mlp_interp.metrics import Effects, LogitChange, excess
from mlp_interp.models.options import check_choice, checked_number
from mlp_interp.models.protocol import Model
from mlp_interp.models.weights import Weights

__all__ = ["TOGETHER", "SecondOrder", "check_method", "estimated", "exactness"]

TOGETHER = 256
"""Neurons whose logits are held at a time."""

_LIKELIEST, _FURTHEST = 512, 256
"""How many tokens are treated exactly. The likeliest carry most of a trained model's probability,
so that the approximation has only the tail to be wrong about; those whose directions are longest
would loosen the bound for all others."""


@dataclass(frozen=True)
class SecondOrder:
    """Estimates effects at one position from one ``d_model x d_model`` covariance.

    ``KL = log1p(E_p[expm1(t) - t])``: exact on the head of the vocabulary, ``t^2 / 2`` on the tail.
    For a token whose centred logit change is at most ``m < 4`` in size, ``t^2 / 2`` stands for
    ``expm1(t) - t`` with a relative error of at most ``m / 3 / (1 - m / 4)``: the series of
    ``exp``, each of whose further terms is at most ``m / 4`` of the one before. By Cauchy-Schwarz m
    is at most the change's norm times the largest distance of a tail token's direction from the
    mean direction. The tail's share of the whole times that error bounds the relative error of the
    KL, whatever the weights. The error itself is far smaller than its bound, because a change lies
    along the directions of few tokens and raises some while it lowers others.

    Attributes:
        clean: The clean distribution, one row.
        head: The likeliest tokens and those with the longest directions.
        directions: ``W'`` of the head.
        covariance: ``sum_v p_v (W'_v - e)(W'_v - e)^T`` over the tail, ``e = E_p[W']``.
        largest: Largest distance of a tail token's direction from ``e``.
        highest: Largest logit in the tail.
    """

    clean: LogitChange
    head: Int[Tensor, " head"]
    directions: Float[Tensor, "d_model head"]
    covariance: Float[Tensor, "d_model d_model"]
    largest: Float[Tensor, ""]
    highest: Float[Tensor, ""]

    @classmethod
    def of(cls, clean: LogitChange) -> "SecondOrder":
        """The moments of one row's distribution."""
        p, e, weight = clean.p[0], clean.expected[0], clean.unembed.weight
        squares = clean.unembed.squares - 2 * (e @ weight) + e.square().sum()
        likeliest = p.topk(min(_LIKELIEST, len(p))).indices
        furthest = squares.topk(min(_FURTHEST, len(p))).indices
        head = torch.cat([likeliest, furthest]).unique()
        tail, logits = p.clone(), clean.logits[0].clone()
        tail[head] = 0
        squares[head] = logits[head] = -torch.inf
        first = weight @ tail
        covariance = _gram(weight, tail)
        covariance -= torch.outer(first, e) + torch.outer(e, first)
        covariance += tail.sum() * torch.outer(e, e)
        largest = squares.max().clamp_min(0).sqrt()
        return cls(clean, head, weight[:, head], covariance, largest, logits.max())

    def __call__(
        self, change: Float[Tensor, "neuron d_model"], tolerance: float
    ) -> tuple[Effects, Bool[Tensor, " neuron"]]:
        """Effects of changes of the normalised stream, and where they are within `tolerance`."""
        clean, head = self.clean, self.head
        weight, p = clean.unembed.weight, clean.p[0]
        mean = change @ clean.expected[0]
        t_head = change @ self.directions - mean[:, None]
        tail = ((change @ self.covariance) * change).sum(-1).clamp_min(0) / 2
        whole = excess(t_head) @ p[head] + tail
        bound = change.norm(dim=-1) * self.largest
        share = tail / whole.clamp_min(torch.finfo(whole.dtype).tiny)
        holds = share * bound <= tolerance * 3 * (1 - bound / 4)

        kl = torch.log1p(whole)
        target = clean.targets[0]
        t_target = change @ weight[:, target.clamp_min(0)] - mean
        loss = kl - t_target if target >= 0 else torch.full_like(kl, torch.nan)
        best = (clean.logits[0, head] + t_head).amax(-1)
        top = clean.logits[0, clean.top[0]] + change @ weight[:, clean.top[0]] - mean
        # One logit out of two products: as in `Tally.effects`, allow for their rounding.
        slack = 8 * torch.finfo(top.dtype).eps * top.abs()
        top1_changed = (best > top + slack).to(kl.dtype)
        # A token of the tail may win only if it can rise above the head's best.
        decided = self.highest + bound < best
        return Effects(kl, loss, top1_changed), holds & decided


def check_method(model: Model, method: str, tolerance: float, *, single_neurons: bool) -> None:
    """Refuse a way of computing effects that does not fit the model or what is ablated.

    Raises:
        ValueError: Another word, a negative tolerance, or the second order of something else than
            single neurons or of a model with a cap on its logits.
    """
    check_choice("method", method, ("exact", "second_order"))
    checked_number("tolerance", tolerance, lambda x: x >= 0, "0 or more")
    if method == "exact":
        return
    if not single_neurons:
        raise ValueError("method='second_order' wants groups of single neurons, e.g. 'neuron'")
    if (cap := Weights.of(model).cap) is not None:
        raise ValueError(
            f"method='second_order' with model={model.cfg.model_name!r}, whose logits are capped "
            f"at {cap:g}; wanted 'exact'"
        )


def exactness(method: str, tolerance: float) -> dict[str, Any]:
    """What results say of it."""
    if method == "exact":
        return {"exact": 1}
    return {"exact": 0, "approximation": f"second order, to {tolerance:g} of the KL"}


def estimated(
    clean: LogitChange,
    sets: Sequence[Callable[[int], Float[Tensor, "neuron d_model"]]],
    tolerance: float,
) -> list[Effects]:
    """Effects ``[neuron, row]`` of sets of changes, exact only where the estimate does not hold.

    Few neurons are left open, and others at each row: rows share nothing here.

    Args:
        clean: The clean distributions.
        sets: Each gives its changes of the normalised stream at a row.
        tolerance: Largest relative error of the KL.
    """
    columns: list[list[Effects]] = [[] for _ in sets]
    for row in range(len(clean.top)):
        one = clean.row(row)
        estimate = SecondOrder.of(one)
        for changes, found in zip(sets, columns, strict=True):
            found.append(_at_row(one, estimate, changes(row), tolerance))
    return [Effects(*(torch.stack(x, dim=1) for x in zip(*c, strict=True))) for c in columns]


def _at_row(
    clean: LogitChange,
    estimate: SecondOrder,
    changes: Float[Tensor, "neuron d_model"],
    tolerance: float,
) -> Effects:
    effects, holds = estimate(changes, tolerance)
    left = (~holds).nonzero()[:, 0]
    left = left[changes[left].norm(dim=-1).argsort()]
    for some in left.split(TOGETHER):
        for values, exact in zip(effects, clean.effects(changes[some, None]), strict=True):
            values[some] = exact[:, 0]
    return effects


def _gram(
    weight: Float[Tensor, "d_model d_vocab"], p: Float[Tensor, " d_vocab"]
) -> Float[Tensor, "d_model d_model"]:
    """``sum_v p_v W'_v W'_v^T``: the upper triangle in blocks, mirrored."""
    d_model = len(weight)
    upper = weight.new_empty(d_model, d_model)
    for rows in torch.arange(d_model).split(128):
        first, last = int(rows[0]), int(rows[-1]) + 1
        upper[first:last, first:] = (weight[first:last] * p) @ weight[first:].T
    return upper.triu() + upper.triu(1).T
