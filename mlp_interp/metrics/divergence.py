"""KL divergence from the change of the logits: never from two log-softmaxes.

Ablating one neuron changes a distribution by a KL of 1e-9 nats or less; the difference of two
float32 log-softmaxes is then rounding noise, often negative. With clean probabilities ``p`` and
logit change ``delta``, let ``t = delta - E_p[delta]``. Then

    KL(clean || changed) = log1p(E_p[expm1(t) - t])        (never negative)
    change of loss at token y = KL - t_y

because ``log E_p[exp(delta)] = E_p[delta] + KL``.
"""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["CANCELS", "ENOUGH", "SMALL", "excess", "excess_by_row", "kl_from_change"]

SMALL = 0.03
"""Below this largest ``|t|`` a series replaces ``expm1(t) - t``, whose terms would cancel: those
left out are below 1e-7 of it."""

ENOUGH = 3e-4
"""Above this expectation ``exp(t) - 1 - t`` will do in single precision, where it is off by 1e-7 in
all: by 4e-4 of it at most, and by less than a tenth of that where the errors of a few entries do
not decide."""

_FEW = 1 / 16  # share of rows which it pays to take out of the others

CANCELS = 1e-8
"""Below this expectation of ``expm1(t) - t`` that formula is off by more than about 1e-3."""


def kl_from_change(
    p: Float[Tensor, "*#rows d_vocab"],
    t: Float[Tensor, "*rows d_vocab"],
    *,
    logits: Float[Tensor, "*#rows d_vocab"] | None = None,
) -> Float[Tensor, "*rows"]:
    """KL(clean || changed) in nats from clean probabilities and centred logit changes.

    Args:
        p: Clean probabilities.
        t: Change of the logits less its expectation under `p`.
        logits: The clean logits, if they are known: only they tell how unlikely a token was whose
            probability is 0 in float32, which matters where `t` exceeds float32's range too.

    Returns:
        KL divergence per row, accurate to 1e-3 of itself in float32 down to 1e-9 nats and below,
        and never negative.

    Example:
        >>> p = torch.tensor([0.5, 0.25, 0.25])
        >>> delta = torch.tensor([1e-4, 0.0, 0.0])
        >>> f"{kl_from_change(p, delta - (p * delta).sum()).item():.3e}"
        '1.250e-09'
    """
    kl = torch.log1p((excess(t) * p).sum(-1))
    overflown = ~torch.isfinite(kl)
    if overflown.any():  # exp(t) left float32's range: these rows want the log domain
        log_p = p.log() if logits is None else logits.log_softmax(-1)
        kl[overflown] = torch.logsumexp((log_p.expand_as(t) + t)[overflown], dim=-1)
    return kl.clamp_min(0)


def excess(t: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """``expm1(t) - t`` to full relative precision, large and small entries mixed."""
    return torch.where(t.abs() < SMALL, _excess_series(t), torch.expm1(t) - t)


def excess_by_row(t: Tensor, largest: Tensor, found: Tensor | None = None) -> Tensor:
    """`excess` with one decision a row: where no entry can be large, the series.

    Elsewhere ``expm1(t) - t`` loses about ``1e-7 / t`` of itself: too little to matter for entries
    within a factor of some hundred of a bound that is not small.

    Args:
        t: The entries.
        largest: A bound on the size of those of a row.
        found: The expectation over other entries of the same rows, a lower bound on that of all, as
            no term is negative. Where it is `ENOUGH` in nearly all rows, these take ``exp(t) - 1 -
            t``, at a third of the price.
    """
    small = largest < SMALL
    if small.all():
        return _excess_series(t)
    much = torch.zeros_like(small)
    if found is not None and t.dtype in (torch.float32, torch.float64):
        much = (found > ENOUGH) & ~small
    if int((~much).sum()) <= _FEW * much.numel():
        result, rest = torch.exp(t).sub_(1).sub_(t), ~much
    else:
        result, rest = torch.expm1(t).sub_(t), small
    if rest.any():
        result[rest] = excess_by_row(t[rest], largest[rest])
    return result


def _excess_series(t: Tensor) -> Tensor:
    return t.mul(1 / 24).add_(1 / 6).mul_(t).add_(0.5).mul_(t).mul_(t)
