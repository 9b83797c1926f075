"""What a change of the logits means: KL divergence, loss, and whether the top token changes.

Everything is computed from the *change* of the logits, never from the difference of two
log-softmaxes. Ablating one neuron changes a distribution by a KL of 1e-9 nats or less; the
difference of two float32 log-softmaxes is then rounding noise, often negative. With clean
probabilities ``p`` and logit change ``delta``, let ``t = delta - E_p[delta]``. Then

    KL(clean || changed) = log1p(E_p[expm1(t) - t])        (never negative)
    change of loss at token y = KL - t_y

because ``log E_p[exp(delta)] = E_p[delta] + KL``.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mlp_interp.models.unembed import Unembed

__all__ = ["Effects", "LogitChange", "Tally", "blocks", "excess", "kl_from_change", "rows_for"]

_SMALL = 0.03
"""Below this largest |t| a series replaces ``expm1(t) - t``, whose terms would cancel: the terms
left out are below 1e-7 of it."""

_CANCELS = 1e-8
"""Below this expectation of ``expm1(t) - t`` that formula is off by more than about 1e-3."""


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
    return torch.where(t.abs() < _SMALL, _excess_series(t), torch.expm1(t) - t)


def _excess_by_row(t: Tensor, largest: Tensor) -> Tensor:
    """`excess` with one decision a row: where no entry can be large, the series.

    Elsewhere ``expm1(t) - t`` loses about ``1e-7 / t`` of itself: too little to matter for entries
    within a factor of some hundred of a bound that is not small.
    """
    small = largest < _SMALL
    if small.all():
        return _excess_series(t)
    result = torch.expm1(t).sub_(t)
    if small.any():
        result[small] = _excess_series(t[small])
    return result


def _excess_series(t: Tensor) -> Tensor:
    return t.mul(1 / 24).add_(1 / 6).mul_(t).add_(0.5).mul_(t).mul_(t)


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

    def row(self, row: int) -> "LogitChange":
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
        tally = Tally.of(self, mean, change.norm(dim=-1))
        flat, minus_mean = change.flatten(0, -2), -mean.flatten()[:, None]
        for block in blocks(self.unembed, len(flat)):
            t = torch.addmm(minus_mean, flat, self.unembed.weight[:, block])
            tally.add(t.view(*mean.shape, -1), block)

        def whole(rows: Bool[Tensor, "*more row"]) -> Float[Tensor, "some d_vocab"]:
            return change[rows] @ self.unembed.weight - mean[rows][:, None]

        t_target = self.change_at(change, self.targets.clamp_min(0)) - mean
        return tally.effects(t_target, self.change_at(change, self.top) - mean, whole)

    def change_at(
        self, change: Float[Tensor, "*more row d_model"], token: Int[Tensor, " row"]
    ) -> Float[Tensor, "*more row"]:
        """Change of one token's logit in each row."""
        return (change * self.unembed.weight.T[token]).sum(-1)


@dataclass
class Tally:
    """Collects the effects of logit changes while the vocabulary goes by in blocks.

    A block of logits is small enough to stay in the processor's cache, and is read many times there
    while it is; whole rows of a real vocabulary would travel to memory and back each time.

    Attributes:
        clean: The clean distributions.
        largest: A bound on the size of any logit's centred change (Cauchy-Schwarz).
        excess: So far, ``sum_v p_v (expm1(t_v) - t_v)``.
        best: So far, the largest changed logit, less its mean change.
        watch_top: Whether any change is large enough to make another token the likeliest.
    """

    clean: LogitChange
    largest: Float[Tensor, "*more row"]
    excess: Float[Tensor, "*more row"]
    best: Float[Tensor, "*more row"]
    watch_top: bool

    @classmethod
    def of(
        cls,
        clean: LogitChange,
        mean: Float[Tensor, "*more row"],
        size: Float[Tensor, "*more row"],
    ) -> "Tally":
        """An empty tally for changes with expectation `mean` and L2 norm `size`."""
        best, second = clean.logits.topk(2, dim=-1).values.unbind(-1)
        furthest = clean.unembed.largest + clean.expected.norm(dim=-1)
        largest = size * furthest
        watch_top = bool((best - second <= 2 * largest).any())
        best = torch.full_like(mean, -torch.inf)
        return cls(clean, largest, torch.zeros_like(mean), best, watch_top)

    def add(self, t: Float[Tensor, "..."], block: slice, row: int | None = None) -> None:
        """Take in a block of centred logit changes.

        Args:
            t: ``[*more, row, block]``, or ``[more, block]`` for a single row. Overwritten.
            block: Which tokens.
            row: Which row, if it is a single one.
        """
        rows: Any = slice(None) if row is None else row
        p, logits = self.clean.p[rows, block], self.clean.logits[rows, block]
        changes = _excess_by_row(t, self.largest[..., rows])
        self.excess[..., rows] += changes.mul_(p).sum(-1)
        if self.watch_top:
            best = self.best[..., rows]
            self.best[..., rows] = torch.maximum(best, t.add_(logits).amax(-1))

    def effects(
        self,
        t_target: Float[Tensor, "*more row"],
        t_top: Float[Tensor, "*more row"],
        whole: Callable[[Tensor], Tensor],
    ) -> Effects:
        """What came together.

        Args:
            t_target: Centred change of the next token's logit.
            t_top: Centred change of the likeliest token's logit.
            whole: Gives the centred changes ``[some, d_vocab]`` of the rows in a mask again, for
                those few in which ``exp(t)`` leaves the range of the data type, or ``expm1(t) - t``
                cancels.
        """
        kl = torch.log1p(self.excess)
        # exp(t) overflowed; or the effect is small but its bound is not, because some token's
        # direction is very long. Both are rare.
        wrong = ~torch.isfinite(kl) | ((self.largest >= _SMALL) & (self.excess < _CANCELS))
        for some in wrong.nonzero().split(rows_for(self.clean.unembed)):
            rows = torch.zeros_like(wrong)
            rows[tuple(some.T)] = True
            p, logits = (x.expand(*kl.shape, -1)[rows] for x in (self.clean.p, self.clean.logits))
            kl[rows] = kl_from_change(p, whole(rows), logits=logits)
        kl = kl.clamp_min(0)
        loss = torch.where(self.clean.targets >= 0, kl - t_target, torch.nan)
        top = self.clean.logits.gather(-1, self.clean.top[:, None])[:, 0] + t_top
        # The same logit comes out of two products of different shapes: allow for their rounding.
        slack = 8 * torch.finfo(top.dtype).eps * top.abs()
        return Effects(kl, loss, (self.best > top + slack).to(kl.dtype))


def blocks(unembed: Unembed, rows: int) -> Iterator[slice]:
    """The vocabulary in blocks that, at `rows` rows, hold about a mebibyte of float32."""
    width = max(256, 2**18 // max(1, rows))
    for start in range(0, unembed.d_vocab, width):
        yield slice(start, min(start + width, unembed.d_vocab))


def rows_for(unembed: Unembed, budget: int = 2**23) -> int:
    """How many rows of logits hold at most `budget` numbers (default 32 MiB in float32)."""
    return max(1, budget // unembed.d_vocab)
