"""Direct ablation of every neuron by itself: thousands of small changes along known directions.

Taking out neuron n changes the logits by ``kappa * (w_n W') + lambda * (r W')`` with two numbers
per position: ``w_n W'`` is computed once for all positions, and no neuron is unembedded twice.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.ablation.streams import joined, stream_scale
from mlp_interp.metrics import Effects, LogitChange, excess, rows_for
from mlp_interp.residual import Residual
from mlp_interp.residual.parts import Scaled
from mlp_interp.unembed import Unembed

__all__ = ["neuron_effects"]

_HEAD = 256
"""How many of the likeliest tokens the second-order form treats exactly."""


def neuron_effects(
    unembed: Unembed,
    removed: Residual,
    targets: Int[Tensor, "batch pos"],
    *,
    norm: str,
    tolerance: float | None = None,
) -> Effects:
    """Effects of taking out each neuron alone, ``[neuron, batch, pos]`` in the parts' order.

    Args:
        unembed: The readout.
        removed: What is taken away (only neurons), centred; `total` is the centred stream.
        targets: The next token of each position, -1 where unknown.
        norm: ``"recompute"`` or ``"freeze"``.
        tolerance: None computes everything exactly; a number allows the second-order form where
            its relative error is at most that.
    """
    shape = (len(removed), *targets.shape)
    total, flat_targets = removed.total.flatten(0, 1), targets.flatten()
    scale = stream_scale(unembed, total)
    layers = [part for part in removed.parts if isinstance(part, Scaled)]
    columns: list[Effects] = []
    for rows in torch.arange(len(total)).split(max(1, min(len(total), rows_for(unembed) // 2))):
        clean = LogitChange.of(unembed, total[rows] / scale[rows], flat_targets[rows])
        pieces = [
            _layer(unembed, clean, total[rows], part, rows, norm=norm, tolerance=tolerance)
            for part in layers
        ]
        columns.append(joined(pieces))
    return Effects(*(values.view(shape) for values in joined(columns, dim=1)))


def _layer(
    unembed: Unembed,
    clean: LogitChange,
    total: Float[Tensor, "row d_model"],
    part: Scaled,
    rows: Int[Tensor, " row"],
    *,
    norm: str,
    tolerance: float | None,
) -> Effects:
    """One layer's neurons at some rows, ``[neuron, row]``."""
    coefficients = part.coefficients.flatten(0, 1)[rows].T  # [neuron, row]
    along, back = _coordinates(unembed, total, coefficients, part.basis, norm=norm)
    exact = torch.ones_like(along, dtype=torch.bool)
    result = Effects(*(torch.full_like(along, torch.nan) for _ in range(3)))
    if tolerance is not None:
        for row in range(len(total)):
            change = along[:, row, None] * part.basis + back[:, row, None] * total[row]
            estimate, holds = _second_order(unembed, clean.rows(row), change, tolerance)
            exact[:, row] = ~holds
            for values, estimated in zip(result, estimate, strict=True):
                values[:, row] = estimated
    stream_logits = clean.logits - unembed.bias  # r W' / sigma
    per_sigma = stream_scale(unembed, total)
    for chunk in torch.arange(len(part.sites)).split(max(1, rows_for(unembed) // 4)):
        if not exact[chunk].any():
            continue
        value_logits = part.basis[chunk] @ unembed.weight
        for row in exact[chunk].any(0).nonzero().flatten().tolist():
            wanted = exact[chunk, row]
            neurons = chunk[wanted.cpu()]
            here = value_logits if len(neurons) == len(chunk) else value_logits[wanted]
            delta = here * along[neurons, row, None]
            if norm == "recompute":
                back_logits = stream_logits[row] * per_sigma[row]
                delta.addcmul_(back[neurons, row, None], back_logits.expand_as(delta))
            one = clean.rows(row)
            for values, found in zip(result, one.effects_of_logits(delta), strict=True):
                values[neurons, row] = found
    return result


def _coordinates(
    unembed: Unembed,
    total: Float[Tensor, "row d_model"],
    coefficients: Float[Tensor, "neuron row"],
    basis: Float[Tensor, "neuron d_model"],
    *,
    norm: str,
) -> tuple[Float[Tensor, "neuron row"], Float[Tensor, "neuron row"]]:
    """`stream_change` of one neuron as ``along * value vector + back * stream``."""
    scale = stream_scale(unembed, total)[:, 0]
    if norm == "freeze":
        return -coefficients / scale, torch.zeros_like(coefficients)
    d_model = total.shape[-1]
    dots, squares = basis @ total.T, basis.square().sum(-1, keepdim=True)
    fall = coefficients * (2 * dots - coefficients * squares) / d_model
    new_scale = (scale.square() - fall).clamp_min(unembed.eps).sqrt()
    return -coefficients / new_scale, fall / (scale * new_scale * (scale + new_scale))


def _second_order(
    unembed: Unembed,
    clean: LogitChange,
    change: Float[Tensor, "neuron d_model"],
    tolerance: float,
) -> tuple[Sequence[Tensor], Tensor]:
    """Exact on the likeliest tokens, half the variance on the rest; and where that holds.

    For a token whose centred logit change is at most m in size, ``t^2 / 2`` stands for
    ``expm1(t) - t`` with a relative error of at most ``exp(m) * m / 3``. By Cauchy-Schwarz ``m`` is
    at most the change's norm times the largest distance of a tail token's direction from the mean
    direction. The tail's share of the whole times that error bounds the relative error of the KL.
    """
    p, expected = clean.p[0], clean.expected[0]
    head = p.topk(min(_HEAD, len(p))).indices
    tail = p.clone()
    tail[head] = 0
    covariance, largest = _tail_moments(unembed, tail, head, expected)

    mean = change @ expected
    t_head = change @ unembed.weight[:, head] - mean[:, None]
    tail_half_variance = ((change @ covariance) * change).sum(-1) / 2
    tail_half_variance = tail_half_variance.clamp_min(0)
    whole = excess(t_head) @ p[head] + tail_half_variance
    bound = change.norm(dim=-1) * largest
    error = bound.exp() * bound / 3 * tail_half_variance / whole.clamp_min(1e-30)

    kl = torch.log1p(whole)
    target = clean.targets[0]
    t_target = change @ unembed.weight[:, target.clamp_min(0)] - mean
    loss = kl - t_target if target >= 0 else torch.full_like(kl, torch.nan)
    changed_head = clean.logits[0, head] + t_head
    best, winner = changed_head.max(-1)
    top1_changed = (head[winner] != clean.top[0]).to(kl.dtype)
    rest = clean.logits[0].clone()
    rest[head] = -torch.inf
    undecided = rest.max() + bound >= best
    return (kl, loss, top1_changed), (error <= tolerance) & ~undecided


def _tail_moments(
    unembed: Unembed, tail: Tensor, head: Tensor, expected: Tensor
) -> tuple[Float[Tensor, "d_model d_model"], Tensor]:
    """Second moment of the tail tokens' directions about the mean one, and their largest distance.

    The moment is ``sum_v p_v (W'_v - e)(W'_v - e)^T`` over the tail, one ``d x d`` matrix.
    """
    weighted = unembed.weight * tail.sqrt()
    first = unembed.weight @ tail
    moment = weighted @ weighted.T
    moment -= torch.outer(first, expected) + torch.outer(expected, first)
    moment += tail.sum() * torch.outer(expected, expected)
    squares = unembed.weight.square().sum(0) - 2 * (expected @ unembed.weight)
    squares[head] = -torch.inf
    largest = (squares.max() + expected.square().sum()).clamp_min(0).sqrt()
    return moment, largest
