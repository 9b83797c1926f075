"""What the distributions of several layers say, and how far each is from each, in one walk.

For a few positions at a time the logits of the final stream are held; those of all other layers are
multiplied out a block of the vocabulary after the other (`mlp_interp.models.scan`), and everything
is asked of a block while it is in the processor's cache. So the price is that of the products.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mlp_interp.metrics import kl_from_change, rows_for
from mlp_interp.models.scan import Largest, blocks, together
from mlp_interp.models.unembed import Unembed, capped, capped_change

__all__ = ["Distributions", "rows_at_once"]

_SMALL = 1e-3
"""Nats below which a KL is computed anew, from the change of the logits: see `metrics`."""


def rows_at_once(unembed: Unembed, columns: int) -> int:
    """How many positions to give at a time, of so many layers beside the final one."""
    return max(1, min(together(columns), rows_for(unembed, 2**22)))


@dataclass(frozen=True)
class Distributions:
    """Of each position (``row``), the distributions of several layers (``column``), final one last.

    Attributes:
        kl: KL(base ‖ column), nats; never negative, exactly 0 of a column from itself.
        entropy: Nats.
        total: Log-sum-exp of the logits.
        top_logits: The largest logits.
        top: Whose they are.
        logits: Of the tokens that were asked about, by name.
        ranks: How many tokens have a larger logit than those.
    """

    kl: Float[Tensor, "base column row"]
    entropy: Float[Tensor, "column row"]
    total: Float[Tensor, "column row"]
    top_logits: Float[Tensor, "column row k"]
    top: Int[Tensor, "column row k"]
    logits: dict[str, Float[Tensor, "column row"]]
    ranks: dict[str, Int[Tensor, "column row"]]

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        unembed: Unembed,
        normalized: Float[Tensor, "column row d_model"],
        targets: Mapping[str, Int[Tensor, " row"]],
        *,
        bases: Sequence[int] = (0, -1),
        k: int = 1,
    ) -> "Distributions":
        """Read some positions.

        Args:
            unembed: The readout.
            normalized: What it is given, as the final norm leaves it; the final layer's last.
            targets: Tokens to ask about, by name; ``output``, the likeliest of the final layer, is
                added to them.
            bases: The columns that every column's distance from is wanted.
            k: How many of the likeliest tokens.
        """
        bases = [base % len(normalized) for base in bases]
        final, top = _logits_and_top(unembed, normalized[-1])
        targets = {**targets, "output": top}
        ids = torch.stack([*targets.values()])
        asked = _Asked(ids, _at(unembed, normalized, ids))
        tally = _walk(unembed, normalized, final, asked, bases, k, None)
        if not tally.finite:  # some logit is far above the first block's
            shift = tally.largest.result()[0][..., 0]
            tally = _walk(unembed, normalized, final, asked, bases, k, shift)
        logits = dict(zip(targets, asked.logits, strict=True))
        ranks = dict(zip(targets, tally.ranks(), strict=True))
        entropy, total, kl = tally.result()
        _recompute(unembed, normalized, bases, kl)
        return cls(kl, entropy, total, *tally.largest.result(), logits, ranks)


def _logits_and_top(
    unembed: Unembed, normalized: Float[Tensor, "row d_model"]
) -> tuple[Float[Tensor, "row d_vocab"], Int[Tensor, " row"]]:
    """All logits of some rows, and the largest's token."""
    logits = normalized.new_empty(len(normalized), unembed.d_vocab)
    for block in blocks(unembed.d_vocab):
        _multiplied(unembed, normalized, block, out=logits[:, block])
    return logits, logits.max(-1).indices


def _multiplied(
    unembed: Unembed,
    normalized: Float[Tensor, "row d_model"],
    block: slice,
    *,
    out: Float[Tensor, "row block"],
) -> Float[Tensor, "row block"]:
    """Logits of a block of the vocabulary."""
    weight, bias = (x[..., block].to(normalized.dtype) for x in (unembed.weight, unembed.bias))
    torch.addmm(bias, normalized, weight, out=out)
    return out if unembed.cap is None else out.copy_(capped(out, unembed.cap))


def _at(
    unembed: Unembed, normalized: Float[Tensor, "column row d_model"], ids: Int[Tensor, "name row"]
) -> Float[Tensor, "name column row"]:
    """Logits of single tokens."""
    columns = unembed.weight.T[ids].to(normalized.dtype)
    products = torch.einsum("crd,nrd->ncr", normalized, columns)
    return capped(products + unembed.bias[ids][:, None], unembed.cap)


@dataclass(frozen=True)
class _Asked:
    """The tokens whose ranks are wanted, and their logits."""

    ids: Int[Tensor, "name row"]
    logits: Float[Tensor, "name column row"]


class _Tally:
    """What comes together while the vocabulary goes by.

    Attributes:
        shift: What is subtracted from logits before anything else.
        mass: So far, the sum of ``exp(z)``.
        inner: So far, the sum of ``exp(z) z``.
        cross: So far, the sum of ``exp(z_base) z``.
        above: So far, how many have a larger logit than each token that is asked about.
        largest: So far, the largest logits.
    """

    def __init__(self, asked: _Asked, bases: Sequence[int], k: int, shift: Tensor | None) -> None:
        self.asked, (_, columns, rows) = asked, asked.logits.shape
        like = asked.logits
        self.bases, self._fixed = bases, shift is not None
        self.shift = like.new_zeros(columns, rows) if shift is None else shift
        self.mass = like.new_zeros(columns, rows, dtype=torch.float64)
        self.inner = torch.zeros_like(self.mass)
        self.cross = like.new_zeros(rows, len(bases), columns, dtype=torch.float64)
        self.above = like.new_zeros(like.shape)
        # The tokens that are asked about, in order, and their logits as the products have them.
        self._ids, self._order = asked.ids.flatten().sort()
        self._rows = self._order % rows
        self._own: list[Tensor] = []
        self.largest = Largest(k)

    def add(self, block: slice, z: Float[Tensor, "column row block"], memory: Tensor) -> None:
        """Take in the logits of a block, which are overwritten, as is memory of their shape."""
        best = self.largest.add(block, z)
        ones = z.new_ones(z.shape[-1])
        for above, logits in zip(self.above, self.asked.logits, strict=True):
            above += torch.gt(z, logits[..., None], out=memory) @ ones
        ends = self._ids.new_tensor([block.start, block.stop])
        here = slice(*torch.searchsorted(self._ids, ends).tolist())
        self._own.append(z[:, self._rows[here], self._ids[here] - block.start])
        if not self._fixed:
            self.shift, self._fixed = best, True
        exp = torch.exp(z.sub_(self.shift[..., None]), out=memory)
        self.mass += exp @ ones
        weights = torch.stack([exp[base] for base in self.bases], dim=1)
        self.cross += weights @ z.permute(1, 2, 0)
        self.inner += exp.mul_(z) @ ones

    @property
    def finite(self) -> bool:
        """Whether nothing has grown out of what the data type holds."""
        return all(bool(x.isfinite().all()) for x in (self.mass, self.inner, self.cross))

    def ranks(self) -> Int[Tensor, "name column row"]:
        """How many tokens have a larger logit than each that is asked about.

        A token is not above itself, whatever rounding makes of the two products.
        """
        own = torch.cat(self._own, 1)[:, self._order.argsort()]
        own = own.unflatten(1, self.asked.ids.shape).transpose(0, 1)
        return self.above.long() - (own > self.asked.logits).long()

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        """Entropies, log-sum-exps and KLs."""
        level, bases = self.mass.log(), list(self.bases)
        entropy = level - self.inner / self.mass
        kl = level - self.cross.permute(1, 2, 0) / self.mass[bases, None] - entropy[bases, None]
        return entropy, level + self.shift, kl


def _walk(
    unembed: Unembed,
    normalized: Float[Tensor, "column row d_model"],
    final: Float[Tensor, "row d_vocab"],
    asked: _Asked,
    bases: Sequence[int],
    k: int,
    shift: Tensor | None,
) -> _Tally:
    """One walk over the vocabulary; where no shift is given, by the maxima of its first block."""
    columns, rows = normalized.shape[:2]
    tally = _Tally(asked, bases, k, shift)
    others = normalized[:-1].flatten(0, 1)
    held: list[Tensor] = []
    for block in blocks(unembed.d_vocab):
        shape = columns, rows, block.stop - block.start
        if not held or held[0].shape != shape:
            held = [normalized.new_empty(shape) for _ in range(2)]
        logits, memory = held
        _multiplied(unembed, others, block, out=logits[:-1].flatten(0, 1))
        logits[-1] = final[:, block]
        tally.add(block, logits, memory)
    return tally


def _recompute(
    unembed: Unembed,
    normalized: Float[Tensor, "column row d_model"],
    bases: Sequence[int],
    kl: Float[Tensor, "base column row"],
) -> None:
    """KLs that are small, in which the difference of large numbers leaves no digits, in place."""
    of = torch.tensor(list(bases), device=kl.device)
    same = (of[:, None] == torch.arange(kl.shape[1], device=kl.device))[..., None]
    wanted: Bool[Tensor, "base column row"] = (kl < _SMALL) & ~same
    for some in wanted.nonzero().split(rows_for(unembed, 2**21)):
        one, other, row = some.T
        base = normalized[of[one], row]
        logits, _ = _logits_and_top(unembed, base)
        delta = (normalized[other, row] - base) @ unembed.weight.to(base.dtype)
        delta = capped_change(logits, delta, unembed.cap)
        p = logits.softmax(-1)
        t = delta - (p * delta).sum(-1, keepdim=True)
        kl[one, other, row] = kl_from_change(p, t, logits=logits).to(kl.dtype)
    kl.masked_fill_(same, 0)
