"""What a change of the logits means: KL divergence, loss, and whether the top token changes.

Everything is computed from the *change* of the logits, never from the difference of two
log-softmaxes. Ablating one neuron changes a distribution by a KL of 1e-9 nats or less; the
difference of two float32 log-softmaxes is then rounding noise, often negative. With clean
probabilities ``p`` and logit change ``delta``, let ``t = delta - E_p[delta]``. Then

    KL(clean || changed) = log1p(E_p[expm1(t) - t])        (never negative)
    change of loss at token y = KL - t_y

because ``log E_p[exp(delta)] = E_p[delta] + KL``.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mlp_interp.unembed import Unembed

__all__ = ["Effects", "LogitChange", "kl_from_change"]

_SMALL = 0.03
"""Below this largest |t| a series replaces ``expm1(t) - t``, whose terms would cancel: the terms
left out are below 1e-7 of it."""


class Effects(NamedTuple):
    """What changes of the logits do, one number a row; NaN loss where no next token is known."""

    kl: Float[Tensor, "*rows"]
    """KL(clean || changed), nats."""
    delta_loss: Float[Tensor, "*rows"]
    """Loss on the next token, changed minus clean, nats."""
    top1_changed: Float[Tensor, "*rows"]
    """1 where another token is the likeliest, else 0."""


def kl_from_change(
    p: Float[Tensor, "*#rows d_vocab"], t: Float[Tensor, "*rows d_vocab"]
) -> Float[Tensor, "*rows"]:
    """KL(clean || changed) in nats from clean probabilities and centred logit changes.

    Args:
        p: Clean probabilities.
        t: Change of the logits less its expectation under `p`. Overwritten.

    Returns:
        KL divergence per row, accurate to 1e-3 of itself in float32 down to 1e-9 nats and below,
        and never negative.

    Example:
        >>> p = torch.tensor([0.5, 0.25, 0.25])
        >>> delta = torch.tensor([1e-4, 0.0, 0.0])
        >>> f"{kl_from_change(p, delta - (p * delta).sum()).item():.3e}"
        '1.250e-09'
    """
    if not t.numel() or t.abs().max() < _SMALL:
        excess = t.mul(1 / 12).add_(1 / 6).mul_(t).add_(0.5).mul_(t).mul_(t)
    else:
        excess = torch.expm1(t).sub_(t)
    expected = torch.einsum("...v,...v->...", p.expand_as(excess), excess)
    kl = torch.log1p(expected)
    overflown = ~torch.isfinite(kl)
    if overflown.any():  # exp(t) left float32's range: these rows want the log domain
        log_p = p.clamp_min(torch.finfo(p.dtype).tiny).log().expand_as(t)
        kl[overflown] = torch.logsumexp(log_p[overflown] + t[overflown], dim=-1)
    return kl.clamp_min(0)


@dataclass(frozen=True)
class LogitChange:
    """Clean distributions at some positions, ready to be compared with changed ones.

    Holds ``rows * d_vocab`` numbers twice over (logits and probabilities), so give it as many rows
    as memory allows and no more; `rows_for` says how many.

    Attributes:
        unembed: The readout.
        logits: Clean logits.
        p: Clean probabilities.
        expected: ``E_p[W']``, the direction along which logits change on average.
        top: The likeliest token.
        targets: The token that follows, -1 where unknown.
    """

    unembed: Unembed
    logits: Float[Tensor, "row d_vocab"]
    p: Float[Tensor, "row d_vocab"]
    expected: Float[Tensor, "row d_model"]
    top: Int[Tensor, " row"]
    targets: Int[Tensor, " row"]

    @classmethod
    def of(
        cls,
        unembed: Unembed,
        normalized: Float[Tensor, "row d_model"],
        targets: Int[Tensor, " row"],
    ) -> "LogitChange":
        """Clean distributions of normalised streams (`Unembed.normalize`)."""
        logits = torch.addmm(unembed.bias, normalized, unembed.weight)
        p = logits.softmax(-1)
        return cls(unembed, logits, p, p @ unembed.weight.T, logits.argmax(-1), targets)

    def loss(self) -> Float[Tensor, " row"]:
        """Clean loss on the next token, nats; NaN where it is unknown."""
        known = self.targets >= 0
        index = self.targets.clamp_min(0)[:, None]
        chosen = self.logits.log_softmax(-1).gather(-1, index)[:, 0]
        return torch.where(known, -chosen, torch.nan)

    def effects(self, change: Float[Tensor, "*more row d_model"]) -> Effects:
        """Effects of changes of the normalised stream.

        Args:
            change: Changed minus clean normalised stream, any number of changes per row.
        """
        return self.effects_of_logits(change @ self.unembed.weight, self._mean(change))

    def effects_of_logits(
        self, delta: Float[Tensor, "*more row d_vocab"], mean: Float[Tensor, "*more row"]
    ) -> Effects:
        """Effects of logit changes and their expectations under `p`. Overwrites `delta`."""
        t = delta.sub_(mean.unsqueeze(-1))
        rest = t.shape[:-1]
        target = self.targets.clamp_min(0).expand(rest).unsqueeze(-1)
        t_target = t.gather(-1, target).squeeze(-1)
        t_top = t.gather(-1, self.top.expand(rest).unsqueeze(-1)).squeeze(-1)
        best_of_clean = self.logits.gather(-1, self.top[:, None])[:, 0] + t_top
        top1_changed = (t + self.logits).amax(-1) > best_of_clean
        kl = kl_from_change(self.p, t)
        loss = torch.where(self.targets >= 0, kl - t_target, torch.nan)
        return Effects(kl, loss, top1_changed.to(kl.dtype))

    def _mean(self, change: Tensor) -> Tensor:
        return (change * self.expected).sum(-1)


def rows_for(unembed: Unembed, budget: int = 2**24) -> int:
    """How many rows of logits hold at most `budget` numbers (default 64 MiB in float32)."""
    return max(1, budget // unembed.d_vocab)


def top1_may_change(
    logits: Float[Tensor, "row d_vocab"], largest: Float[Tensor, "*more row"]
) -> Bool[Tensor, "*more row"]:
    """Whether a change of at most `largest` in every logit could make another token likeliest."""
    best, second = logits.topk(2, dim=-1).values.unbind(-1)
    return best - second <= 2 * largest
