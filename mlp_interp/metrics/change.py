"""What a change of the logits means: KL divergence, loss, and whether the top token changes.

Everything is computed from the *change* of the logits (`mlp_interp.metrics.divergence`), in one
walk over the vocabulary for all changes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mlp_interp.metrics.divergence import CANCELS, SMALL, excess_by_row, kl_from_change
from mlp_interp.metrics.stream import BothNorms
from mlp_interp.models.scan import blocks, scan
from mlp_interp.models.unembed import Unembed, capped, capped_change

__all__ = ["Effects", "LogitChange", "Tally", "rows_for"]

_NEARLY_CANCELS = 1 / 16
"""Below this share of its larger part a sum of two products is computed anew as one product."""


class Effects(NamedTuple):
    """What changes of the logits do, one number a row; NaN loss where no next token is known."""

    kl: Float[Tensor, "*rows"]
    """KL(clean || changed), nats."""
    delta_loss: Float[Tensor, "*rows"]
    """Loss on the next token, changed minus clean, nats."""
    top1_changed: Float[Tensor, "*rows"]
    """1 where another token is the likeliest, else 0; NaN where that was not asked for."""


@dataclass(frozen=True)
class LogitChange:
    """Clean distributions at some positions, ready to be compared with changed ones.

    Holds ``rows * d_vocab`` logits: give it `rows_for` rows.

    Attributes:
        unembed: The readout.
        normalized: The clean streams, normalised.
        logits: Clean logits.
        total: Their log-sum-exp.
        expected: ``E_p[W']``, the direction along which logits change on average.
        top: The likeliest token.
        lead: By how much its logit exceeds the next one.
        targets: The token that follows, -1 where unknown.
    """

    unembed: Unembed
    normalized: Float[Tensor, "row d_model"]
    logits: Float[Tensor, "row d_vocab"]
    total: Float[Tensor, "row 1"]
    expected: Float[Tensor, "row d_model"]
    top: Int[Tensor, " row"]
    lead: Float[Tensor, " row"]
    targets: Int[Tensor, " row"]

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        unembed: Unembed,
        normalized: Float[Tensor, "row d_model"],
        targets: Int[Tensor, " row"],
    ) -> "LogitChange":
        """Clean distributions of normalised streams (`Unembed.normalize`)."""
        weight, bias = unembed.weight, unembed.bias
        logits = normalized.new_empty(len(normalized), unembed.d_vocab)
        for block in blocks(unembed.d_vocab):
            products = torch.addmm(bias[block], normalized, weight[:, block])
            logits[:, block] = capped(products, unembed.cap)
        best, top = logits.topk(2, dim=-1)
        size, expected = torch.zeros_like(best[:, :1]), torch.zeros_like(normalized)
        for block in blocks(unembed.d_vocab):
            p = (logits[:, block] - best[:, :1]).exp_()
            size += p.sum(-1, keepdim=True)
            expected.addmm_(p, weight[:, block].T)
        total, lead = best[:, :1] + size.log(), best[:, 0] - best[:, 1]
        return cls(unembed, normalized, logits, total, expected / size, top[:, 0], lead, targets)

    @property
    def p(self) -> Float[Tensor, "row d_vocab"]:
        """Clean probabilities."""
        return (self.logits - self.total).exp_()

    def loss(self) -> Float[Tensor, " row"]:
        """Clean loss on the next token, nats; NaN where it is unknown."""
        chosen = self.logits.gather(-1, self.targets.clamp_min(0)[:, None])
        return torch.where(self.targets >= 0, (self.total - chosen)[:, 0], torch.nan)

    def row(self, row: int) -> "LogitChange":
        """Just one row."""
        one = slice(row, row + 1)
        rest: dict[str, Tensor] = {k: x for k, x in vars(self).items() if k != "unembed"}
        return LogitChange(self.unembed, **{k: x[one] for k, x in rest.items()})

    def effects(self, change: Float[Tensor, "*more row d_model"], *, top: bool = True) -> Effects:
        """Effects of changes of the normalised stream.

        Args:
            change: Changed minus clean normalised stream, any number of changes per row.
            top: Whether to tell which token is the likeliest, for which every logit is made.
        """
        flat = change.reshape(math.prod(change.shape[:-2]), *change.shape[-2:])
        if self.unembed.cap is not None and len(flat):
            each = zip(*(self._capped(one) for one in flat), strict=True)
            found = Effects(*(torch.stack(x).view(change.shape[:-1]) for x in each))
            untold = torch.full_like(found.kl, torch.nan)
            return found if top else found._replace(top1_changed=untold)
        (found,) = _walk(self, [_Way.of(self, flat, top=top)])
        return Effects(*(x.view(change.shape[:-1]) for x in found))

    @torch.no_grad()
    def kl(
        self, change: Float[Tensor, "item d_model"], rows: Int[Tensor, " item"]
    ) -> Float[Tensor, " item"]:
        """KL(clean || changed), nats, of changes each of which is one of some row."""
        weight, expected = self.unembed.weight, self.expected[rows]
        mean = (change * expected).sum(-1)
        largest = change.norm(dim=-1) * (self.unembed.largest + expected.norm(dim=-1))
        total = torch.zeros_like(mean)
        for block, products in scan(weight, change[:, None], -mean[:, None]):
            p = (self.logits[:, block] - self.total).exp_()
            for some, t in products:
                t = excess_by_row(t[:, 0], largest[some], total[some])
                total[some] += t.mul_(p[rows[some]]).sum(-1)

        def whole(items: Bool[Tensor, " item"]) -> Float[Tensor, "some d_vocab"]:
            return change[items] @ weight - mean[items][:, None]

        return self.kl_of(total, largest, rows, whole)

    def kl_of(
        self,
        excess: Float[Tensor, "*items"],
        largest: Float[Tensor, "*items"],
        rows: Int[Tensor, "*items"],
        whole: Callable[[Tensor], Tensor],
        unsure: Bool[Tensor, "*items"] | None = None,
    ) -> Float[Tensor, "*items"]:
        """KL(clean || changed), nats, from what came together of changes.

        Args:
            excess: ``sum_v p_v (expm1(t_v) - t_v)``.
            largest: A bound on the size of any ``t_v``.
            rows: The row that each is a change of.
            whole: Gives the centred changes ``[some, d_vocab]`` of those in a mask again, for those
                few in which ``exp(t)`` leaves the range of the data type, or ``expm1(t) - t``
                cancels.
            unsure: Which are to be computed again anyway.
        """
        kl = torch.log1p(excess)
        # exp(t) overflowed; or the effect is small but its bound is not, because some token's
        # direction is very long. Both are rare.
        wrong = ~torch.isfinite(kl) | ((largest >= SMALL) & (excess < CANCELS))
        wrong = wrong if unsure is None else wrong | unsure
        for some in wrong.nonzero().split(rows_for(self.unembed)):
            chosen = torch.zeros_like(wrong)
            chosen[tuple(some.T)] = True
            logits, total = self.logits[rows[chosen]], self.total[rows[chosen]]
            kl[chosen] = kl_from_change((logits - total).exp_(), whole(chosen), logits=logits)
        return kl.clamp_min(0)

    def effects_by_norm(self, changes: BothNorms) -> tuple[Effects, Effects]:
        """Effects with the norm's scale taken anew, and with the clean one: from one product.

        Of the second, the likeliest token is not told.
        """
        if self.unembed.cap is not None:
            return (
                self.effects(changes.recomputed),
                self.effects(changes.frozen, top=False),
            )
        frozen = _Way.of(self, changes.frozen, top=False)
        anew = _Way.of(self, changes.recomputed, changes.along, changes.back)
        part = changes.along[..., 0] * frozen.tally.largest
        anew.tally.unsure |= anew.tally.largest < _NEARLY_CANCELS * part
        # The first one's products are used up when it is done with them.
        recompute, freeze = _walk(self, [anew, frozen])
        return recompute, freeze

    def _capped(self, change: Float[Tensor, "row d_model"]) -> Effects:
        """Effects of one change a row where logits are capped, and nothing is linear in it."""
        moved = capped_change(self.logits, change @ self.unembed.weight, self.unembed.cap)
        p = self.p
        t = moved - (p * moved).sum(-1, keepdim=True)
        kl = kl_from_change(p, t, logits=self.logits)
        t_target = t.gather(-1, self.targets.clamp_min(0)[:, None])[:, 0]
        loss = torch.where(self.targets >= 0, kl - t_target, torch.nan)
        return Effects(kl, loss, ((self.logits + t).argmax(-1) != self.top).to(kl.dtype))


@dataclass(frozen=True)
class _Way:
    """Changes of the normalised stream, and what comes together about them.

    Attributes:
        clean: The clean distributions.
        change: The changes.
        mean: Expected change of the logits.
        tally: What comes together.
        along: With `back`, how their logits come from those of other changes and the clean ones.
        back: See `along`.
    """

    clean: LogitChange
    change: Float[Tensor, "more row d_model"]
    mean: Float[Tensor, "more row"]
    tally: "Tally"
    along: Float[Tensor, "more row 1"] | None = None
    back: Float[Tensor, "more row 1"] | None = None

    @classmethod
    def of(cls, clean: LogitChange, change: Tensor, *mix: Tensor, top: bool = True) -> "_Way":
        """An empty one."""
        mean = (change * clean.expected).sum(-1)
        return cls(clean, change, mean, Tally.of(clean, mean, change.norm(dim=-1), top=top), *mix)

    def centred(self, t: Tensor, base: Tensor, some: slice) -> Tensor:
        """Centred changes of the logits, from those of the changes that were multiplied."""
        if self.along is None or self.back is None:
            return t
        return (t * self.along[some]).addcmul_(base, self.back[some])

    def effects(self) -> Effects:
        """What came together."""
        clean, change, mean = self.clean, self.change, self.mean
        columns = clean.unembed.weight.T

        def whole(rows: Bool[Tensor, "more row"]) -> Float[Tensor, "some d_vocab"]:
            return change[rows] @ clean.unembed.weight - mean[rows][:, None]

        t_target = (change * columns[clean.targets.clamp_min(0)]).sum(-1) - mean
        return self.tally.effects(t_target, (change * columns[clean.top]).sum(-1) - mean, whole)


def _walk(clean: LogitChange, ways: Sequence[_Way]) -> list[Effects]:
    """Effects of changes, of which only the last ones are multiplied with the vocabulary."""
    unembed, last = clean.unembed, ways[-1]
    level = (clean.normalized * clean.expected).sum(-1, keepdim=True)
    for block, products in scan(unembed.weight, last.change, -last.mean):
        logits = clean.logits[:, block]
        p, base = (logits - clean.total).exp_(), logits - unembed.bias[block] - level
        for some, t in products:
            for way in ways:  # the last one uses the products up
                way.tally.add(way.centred(t, base, some), p, logits, some)
    return [way.effects() for way in ways]


@dataclass
class Tally:
    """Collects the effects of logit changes while the vocabulary goes by in blocks (`scan`).

    Attributes:
        clean: The clean distributions.
        largest: A bound on the size of any logit's centred change (Cauchy-Schwarz).
        excess: So far, ``sum_v p_v (expm1(t_v) - t_v)``.
        best: So far, the largest changed logit, less its mean change; NaN where nobody asks.
        watch_top: Whether any change is large enough to make another token the likeliest.
        unsure: Which rows are to be computed again from their own products.
    """

    clean: LogitChange
    largest: Float[Tensor, "more row"]
    excess: Float[Tensor, "more row"]
    best: Float[Tensor, "more row"]
    watch_top: bool
    unsure: Bool[Tensor, "more row"]

    @classmethod
    def of(
        cls,
        clean: LogitChange,
        mean: Float[Tensor, "more row"],
        size: Float[Tensor, "more row"],
        *,
        top: bool = True,
    ) -> "Tally":
        """An empty tally for changes with expectation `mean` and L2 norm `size`.

        With `top`, it tells whether another token is the likeliest.
        """
        largest = size * (clean.unembed.largest + clean.expected.norm(dim=-1))
        watch_top = top and bool((clean.lead <= 2 * largest).any())
        best = torch.full_like(mean, -torch.inf if top else torch.nan)
        unsure = torch.zeros_like(mean, dtype=torch.bool)
        return cls(clean, largest, torch.zeros_like(mean), best, watch_top, unsure)

    def add(
        self,
        t: Float[Tensor, "some *row block"],
        p: Float[Tensor, "*row block"],
        logits: Float[Tensor, "*row block"],
        some: slice = slice(None),
        row: slice | int = slice(None),
    ) -> None:
        """Take in a block of centred logit changes.

        Args:
            t: The changes. Overwritten.
            p: Clean probabilities of the block.
            logits: Clean logits of the block.
            some: Which changes.
            row: Which row, if it is a single one.
        """
        at = (some, row)
        changes = excess_by_row(t, self.largest[at], self.excess[at])
        self.excess[at] += changes.mul_(p).sum(-1)
        if self.watch_top:
            self.best[at] = torch.maximum(self.best[at], t.add_(logits).amax(-1))

    def effects(
        self,
        t_target: Float[Tensor, "more row"],
        t_top: Float[Tensor, "more row"],
        whole: Callable[[Tensor], Tensor],
    ) -> Effects:
        """What came together.

        Args:
            t_target: Centred change of the next token's logit.
            t_top: Centred change of the likeliest token's logit.
            whole: As in `LogitChange.kl_of`.
        """
        clean = self.clean
        rows = torch.arange(len(clean.top), device=self.excess.device).expand_as(self.excess)
        kl = clean.kl_of(self.excess, self.largest, rows, whole, self.unsure)
        loss = torch.where(clean.targets >= 0, kl - t_target, torch.nan)
        top = clean.logits.gather(-1, clean.top[:, None])[:, 0] + t_top
        # The same logit comes out of two products of different shapes: allow for their rounding.
        slack = 8 * torch.finfo(top.dtype).eps * top.abs()
        changed = (self.best > top + slack).to(kl.dtype)
        return Effects(kl, loss, changed.masked_fill_(self.best.isnan(), torch.nan))


def rows_for(unembed: Unembed, budget: int = 2**23) -> int:
    """How many rows of logits hold at most `budget` numbers (default 32 MiB in float32)."""
    return max(1, budget // unembed.d_vocab)
