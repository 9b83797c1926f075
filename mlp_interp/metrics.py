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

__all__ = ["Effects", "LogitChange", "excess", "kl_from_change", "rows_for"]

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
    p: Float[Tensor, "*#rows d_vocab"],
    t: Float[Tensor, "*rows d_vocab"],
    *,
    largest: Float[Tensor, "*rows"] | None = None,
    logits: Float[Tensor, "*#rows d_vocab"] | None = None,
) -> Float[Tensor, "*rows"]:
    """KL(clean || changed) in nats from clean probabilities and centred logit changes.

    Args:
        p: Clean probabilities.
        t: Change of the logits less its expectation under `p`.
        largest: The largest absolute value of `t` in each row, if it is known.
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
    largest = torch.linalg.vector_norm(t, ord=torch.inf, dim=-1) if largest is None else largest
    small = bool((largest < _SMALL).all())
    expected = _expectation(p, _excess_series(t) if small else torch.expm1(t).sub_(t))
    kl = torch.log1p(expected)
    overflown = ~torch.isfinite(kl)
    if overflown.any():  # exp(t) left float32's range: these rows want the log domain
        log_p = p.log() if logits is None else logits.log_softmax(-1)
        kl[overflown] = torch.logsumexp((log_p.expand_as(t) + t)[overflown], dim=-1)
    return kl.clamp_min(0)


def excess(t: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """``expm1(t) - t`` to full relative precision, large and small entries mixed."""
    return torch.where(t.abs() < _SMALL, _excess_series(t), torch.expm1(t) - t)


def _excess_series(t: Tensor) -> Tensor:
    return t.mul(1 / 24).add_(1 / 6).mul_(t).add_(0.5).mul_(t).mul_(t)


def _expectation(p: Tensor, x: Tensor) -> Tensor:
    if p.numel() == p.shape[-1]:  # one distribution for all rows: a matrix-vector product
        return x @ p.flatten()
    return (p * x).sum(-1)


@dataclass(frozen=True)
class LogitChange:
    """Clean distributions at some positions, ready to be compared with changed ones.

    Holds ``rows * d_vocab`` numbers twice over (logits and probabilities): give it `rows_for` rows.

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

    def rows(self, row: int) -> "LogitChange":
        """Just one row."""
        one = slice(row, row + 1)
        return LogitChange(
            self.unembed,
            self.logits[one],
            self.p[one],
            self.expected[one],
            self.top[one],
            self.targets[one],
        )

    def effects(self, change: Float[Tensor, "*more row d_model"]) -> Effects:
        """Effects of changes of the normalised stream.

        Args:
            change: Changed minus clean normalised stream, any number of changes per row.
        """
        mean = (change * self.expected).sum(-1)
        return self._effects((change @ self.unembed.weight).sub_(mean.unsqueeze(-1)))

    def effects_of_logits(self, delta: Float[Tensor, "more d_vocab"]) -> Effects:
        """Effects of logit changes of the only row. Overwrites `delta`.

        Raises:
            ValueError: There are several rows.
        """
        if len(self.top) != 1:
            raise ValueError(f"effects_of_logits on {len(self.top)} rows; wanted one")
        found = self._effects(delta.sub_((delta @ self.p[0]).unsqueeze(-1)).unsqueeze(1))
        return Effects(*(values[:, 0] for values in found))

    def _effects(self, t: Float[Tensor, "*more row d_vocab"]) -> Effects:
        """Effects of centred logit changes. Overwrites `t`."""
        rows = t.shape[:-1]

        def at(token: Int[Tensor, " row"]) -> Float[Tensor, "*more row"]:
            return t.gather(-1, token.expand(rows).unsqueeze(-1)).squeeze(-1)

        t_target, t_top = at(self.targets.clamp_min(0)), at(self.top)
        largest = torch.linalg.vector_norm(t, ord=torch.inf, dim=-1)
        top1_changed = self._top1_changed(t, t_top, largest)
        kl = kl_from_change(self.p, t, largest=largest, logits=self.logits)
        loss = torch.where(self.targets >= 0, kl - t_target, torch.nan)
        return Effects(kl, loss, top1_changed.to(kl.dtype))

    def _top1_changed(self, t: Tensor, t_top: Tensor, largest: Tensor) -> Bool[Tensor, "*rows"]:
        best, second = self.logits.topk(2, dim=-1).values.unbind(-1)
        changed = torch.zeros_like(t_top, dtype=torch.bool)
        # Only where the change can close the gap to the second token is it worth looking.
        open_ = best - second <= 2 * largest
        if open_.any():
            logits = self.logits.expand_as(t)[open_] + t[open_]
            changed[open_] = logits.amax(-1) > (best + t_top)[open_]
        return changed


def rows_for(unembed: Unembed, budget: int = 2**24) -> int:
    """How many rows of logits hold at most `budget` numbers (default 64 MiB in float32)."""
    return max(1, budget // unembed.d_vocab)
