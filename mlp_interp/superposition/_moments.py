"""Sums over sequences from which moments of pairs of different sequences come out without bias."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor

from mlp_interp.corpus.reducers import Batch, Shape, SiteReducer, State
from mlp_interp.results import single, to_numpy
from mlp_interp.sites import Site

__all__ = ["Known", "Sums", "SumsReducer", "participation_of_pairs"]


class Known(NamedTuple):
    """What is known of a layer from texts before these."""

    mean: Float[Tensor, " unit"]
    covariance: Float[Tensor, "unit unit"]


Sums = dict[str, Float[np.ndarray, "..."]]
"""Of one layer, each a sum over sequences: see `SumsReducer`."""


@dataclass(frozen=True, kw_only=True)
class SumsReducer(SiteReducer):
    """Sums over sequences of products of what each of them sums up to.

    With ``x`` the activations of a sequence less `point`, ``m`` their number, ``b`` their sum,
    ``A`` the sum of their outer products and ``a`` its trace, these are sums over sequences of
    ``m, m^2, m^3, m^4, b, A, b b', A b, b'b, (b'b)^2, b b'b, b'A b, tr A^2, a, a^2, a b, a b'b``.
    Plain sums, so that shards add up.

    Args:
        point: What activations are counted from, by layer: any vector near their mean, so that
            large means cost no digits; what comes out does not depend on it.
        known: If given, by layer: also keeps each sequence's influence on the participation ratio,
            as a share of it, to first order around these moments.
        each: How many tokens of each text count, drawn at random; None for all.
        order: Numbers of the texts in the corpus, which the draws depend on.
        seed: Of the draws.
        site: As in `SiteReducer`.
        layers: As in `SiteReducer`.
        first: As in `SiteReducer`.
    """

    point: Mapping[int, Tensor] = field(repr=False, compare=False)
    known: Mapping[int, Known] | None = field(default=None, repr=False, compare=False)
    each: int | None = None
    order: tuple[int, ...] = ()
    seed: int = 0
    takes_padding: ClassVar[bool] = True

    def empty(self, shape: Shape) -> State:
        """Zeros, and no influences."""
        layers, (d,) = len(self.chosen(shape)), shape.units(self.site).values()
        square = ("A", "bb")
        found = {
            name: torch.zeros(layers, *[d] * (2 if name in square else 1), dtype=torch.float64)
            for name in (*square, "b", "Ab", "bb_b", "ab")
        }
        scalars = ("m", "m2", "m3", "m4", "b2", "b4", "bAb", "A2", "a", "a2", "ab2")
        found |= {name: torch.zeros(layers, dtype=torch.float64) for name in scalars}
        return found | {"influence": torch.zeros(layers, 0, dtype=torch.float64)}

    def see(self, state: State, site: Site, x: Tensor, batch: Batch) -> None:
        """Add the sequences of the batch."""
        row, layer = self.row(site), site.layer or 0
        counts = self._counts(batch)
        x = single(x) - self.point[layer].to(x.device)
        x = x * counts[..., None]
        found = _sums_of(x, counts.sum(1).double().to(x.device))
        for name, value in found.items():
            state[name][row] += value.cpu().double()
        if self.known is not None:
            mean, covariance = self.known[layer]
            around = x - (mean - self.point[layer]).to(x) * counts[..., None]
            influence = _influence(around, covariance.to(x), counts.sum(1))
            batch.notes.setdefault(self._key, {})[row] = influence.cpu().double()

    def finish(self, state: State, batch: Batch) -> None:
        """Put the influences of all layers after those before."""
        if self.known is not None:
            rows = batch.notes[self._key]
            new = torch.stack([rows[n] for n in range(len(state["m"]))])
            state["influence"] = torch.cat([state["influence"], new], 1)

    def merge(self, state: State, later: State) -> None:
        """Sums add, influences follow one another."""
        for name, value in later.items():
            if name == "influence":
                state[name] = torch.cat([state[name], value], 1)
            else:
                state[name] += value

    def result(self, state: State, shape: Shape) -> xr.Dataset:
        """The sums as they are."""
        dims = {
            name: [f"{name}_{n}" for n in range(value.ndim - 1)] for name, value in state.items()
        }
        return xr.Dataset(
            {name: (("layer", *dims[name]), to_numpy(value)) for name, value in state.items()},
            coords=self.coords(shape),
        )

    @property
    def _key(self) -> tuple[str, str, int]:
        return "influence", self.site, self.seed

    def _counts(self, batch: Batch) -> Bool[Tensor, "batch pos"]:
        """Which tokens count: of those that do, at most `each` a text."""
        counts = batch.counts(self.first)
        counts = counts & (torch.arange(counts.shape[1], device=counts.device) >= self.first)
        if self.each is None:
            return counts
        chosen = torch.zeros_like(counts)
        for n, row in enumerate(counts.cpu()):
            draws = np.random.default_rng([self.seed, self.order[batch.first + n]])
            places = row.nonzero()[:, 0].numpy()
            chosen[n, draws.permutation(places)[: self.each].tolist()] = True
        return chosen


def _sums_of(x: Float[Tensor, "batch pos unit"], m: Float[Tensor, " batch"]) -> dict[str, Tensor]:
    """All sums of a batch; `x` is 0 where tokens do not count."""
    flat = x.flatten(0, 1)
    b, gram = x.sum(1, dtype=torch.float64), x @ x.mT
    Ab = torch.einsum("bpd,bp->bd", x.double(), torch.einsum("bpd,bd->bp", x.double(), b))
    a, b2 = x.double().square().sum((1, 2)), b.square().sum(1)
    return {
        "A": flat.T @ flat,
        "bb": b.T @ b,
        "b": b.sum(0),
        "Ab": Ab.sum(0),
        "bb_b": b2 @ b,
        "ab": a @ b,
        **{"m": m.sum(), "m2": m @ m, "m3": (m**3).sum(), "m4": (m**4).sum()},
        **{"b2": b2.sum(), "b4": b2 @ b2, "bAb": (b * Ab).sum()},
        "A2": gram.double().square().sum(),
        **{"a": a.sum(), "a2": a @ a, "ab2": a @ b2},
    }


def _influence(
    around: Float[Tensor, "batch pos unit"],
    covariance: Float[Tensor, "unit unit"],
    m: Float[Tensor, " batch"] | Tensor,
) -> Float[Tensor, " batch"]:
    """Change of the participation ratio with each sequence's weight, as a share of it."""
    size = around.square().sum((1, 2)) / covariance.trace()
    square = torch.einsum("bpd,de,bpe->b", around, covariance, around) / covariance.square().sum()
    return 2 * (size - square) / m.clamp_min(1)


def participation_of_pairs(sums: Sums) -> float:
    """``(tr S)^2 / tr S^2`` of the covariance S, numerator and denominator without bias.

    Both are means over pairs, triples and quadruples of *different* sequences, by inclusion and
    exclusion from the sums: tokens of one sequence, which are alike, never meet each other.

    Returns:
        NaN for fewer than four sequences' worth of tokens.
    """
    s = {name: np.asarray(value, dtype=float) for name, value in sums.items()}
    b, A, B = s["b"], s["A"], s["bb"]
    m1, m2, m3, m4 = (float(s[name]) for name in ("m", "m2", "m3", "m4"))
    pairs = m1**2 - m2
    triples = m1**3 - 3 * m1 * m2 + 2 * m3
    quadruples = m1**4 - 6 * m1**2 * m2 + 8 * m1 * m3 + 3 * m2**2 - 6 * m4
    if quadruples <= 0.5:  # of integers
        return float("nan")
    square = float(np.sum(A * A) - s["A2"]) / pairs
    size = float(s["a"] ** 2 - s["a2"]) / pairs
    through = b @ A @ b - 2 * s["Ab"] @ b - np.sum(A * B) + 2 * s["bAb"]
    beside = s["a"] * (b @ b - s["b2"]) - 2 * s["ab"] @ b + 2 * s["ab2"]
    both = np.sum(B * B) - s["b4"]  # of pairs, (b.b')^2
    chain = b @ B @ b - 2 * s["bb_b"] @ b + s["b4"] - both
    four = (b @ b - s["b2"]) ** 2 - 4 * chain - 2 * both
    top = size - 2 * float(beside) / triples + float(four) / quadruples
    bottom = square - 2 * float(through) / triples + float(four) / quadruples
    return top / bottom if bottom > 0 else float("nan")
