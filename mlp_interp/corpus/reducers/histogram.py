"""How activations are distributed, in bins that are the same for every unit, shard and worker."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from mlp_interp.corpus.reducers.base import Batch, Shape, State, pieces
from mlp_interp.corpus.reducers.units import UnitReducer
from mlp_interp.models.options import checked_numbers
from mlp_interp.results import to_numpy
from mlp_interp.sites import Site

__all__ = ["Histogram", "quantiles"]

# Units whose counts are made at a time, entries binned at a time, and entries between two counts:
# bins, counts and what is between them stay in a processor's cache.
_WIDTH = 64
_BINNED = 2**17
_COUNTED = 2**23


@dataclass(frozen=True, kw_only=True)
class Histogram(UnitReducer):
    """Counts of every unit's activations in bins whose width grows with their distance from zero.

    Between 2^low and 2^high, and the same below zero, each octave is cut into `per_octave` bins of
    equal width; what is smaller lies in one bin around zero, what is larger in the outermost ones.
    So small and large activations are known to the same relative precision, nothing has to be known
    of their range beforehand, and counts add up exactly. `quantiles` reads quantiles from it.

    Args:
        octaves: The exponents ``(low, high)``.
        per_octave: Bins in an octave: a power of 2. The width of a bin is at most
            ``1 / per_octave`` of the activations in it.
        site: As in `SiteReducer`.
        layers: As in `SiteReducer`.
        first: As in `SiteReducer`.
        units: As in `UnitReducer`.

    Raises:
        ValueError: Options out of range, or as `SiteReducer`.

    Example:
        >>> import torch
        >>> from mlp_interp import load_model
        >>> from mlp_interp.corpus import sweep
        >>> tokens = torch.arange(40).reshape(4, 10)
        >>> found = sweep(load_model("nano"), tokens, Histogram(layers=(3,)))["histogram.pre"]
        >>> found["count"].dims, int(found["count"].sum("bin")[0, 0])
        (('layer', 'neuron', 'bin'), 40)
    """

    octaves: tuple[int, int] = (-5, 7)
    per_octave: int = 8
    takes_padding: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.octaves
        if not -100 <= low < high <= 100:
            raise ValueError(f"octaves={self.octaves}; wanted (low, high) between -100 and 100")
        if self.per_octave < 1 or self.per_octave & (self.per_octave - 1) or self.per_octave > 256:
            raise ValueError(f"per_octave={self.per_octave}; wanted a power of 2 up to 256")

    @property
    def edges(self) -> np.ndarray:
        """Edges of the bins: one more than bins, the outermost infinite."""
        low, high = self.octaves
        steps = 1 + np.arange(self.per_octave) / self.per_octave
        inner = np.concatenate([2.0**octave * steps for octave in range(low, high)] + [[2.0**high]])
        return np.concatenate([[-np.inf], -inner[::-1], inner, [np.inf]])

    def empty(self, shape: Shape) -> State:
        """Counts of zero."""
        size = (len(self.chosen(shape)), *self.sizes(shape).values(), len(self.edges) - 1)
        return {"count": torch.zeros(size, dtype=torch.int64)}

    def see(self, state: State, site: Site, x: Tensor, batch: Batch) -> None:
        """Sort into bins by the leading bits of the numbers themselves."""
        counts = state["count"][self.row(site)]
        units = counts[..., 0].numel()
        width = _width(units) if x.device.type == "cpu" else units
        # Of half the size, numbers of bins take a third of the time.
        fits = self.per_octave <= 128 and width * 2 * self._ends <= 2**15
        narrow = torch.int16 if fits else torch.int32
        found = torch.zeros(units // width, width * 2 * self._ends, dtype=torch.int64)
        first = torch.arange(width, device=x.device, dtype=narrow) * (2 * self._ends)
        for rows in batch.rows(self.picked(x), self.first, numbers=_COUNTED):
            if not len(rows):
                continue
            rows = rows.flatten(1).float()
            bins = batch.scratch(rows, narrow, slot=2).view(-1, len(rows), width)
            done = 0
            for part in pieces(rows, _BINNED):
                self._bins(part, batch, first, into=bins[:, done : done + len(part)])
                done += len(part)
            for mine, some in zip(found, bins.flatten(1), strict=True):
                mine += some.bincount(minlength=len(mine)).cpu()
        below, above = found.view(units, 2, self._ends).unbind(1)
        counts = counts.view(units, -1)
        counts[:, : self._ends] += below.flip(-1)
        counts[:, self._ends - 1 :] += above

    def result(self, state: State, shape: Shape) -> xr.Dataset:
        """The counts, with the edges of the bins."""
        edges, units = self.edges, self.sizes(shape)
        counts = to_numpy(state["count"])
        variables: dict[str, Any] = {"count": (("layer", *units, "bin"), counts, {"unit": "count"})}
        coords = {
            **self.coords(shape),
            "low": ("bin", edges[:-1], {"unit": "activation"}),
            "high": ("bin", edges[1:], {"unit": "activation"}),
        }
        attrs = {"long_name": f"activations at {self.site} by their size", "unit": "count"}
        return xr.Dataset(variables, coords=coords, attrs=attrs)

    @property
    def _ends(self) -> int:
        """Bins to either side, with the one around zero that both have."""
        low, high = self.octaves
        return (high - low) * self.per_octave + 2

    def _bins(self, x: Tensor, batch: Batch, first: Tensor, into: Tensor) -> None:
        """Number of the bin of each entry ``[row, unit]``, from the unit's `first` on.

        A float32 is sign, exponent and mantissa; the exponent and the first bits of the mantissa,
        read as one integer, count the bins of all octaves. Those below zero, from zero outwards,
        stand before those above.
        """
        (low, _), ends = self.octaves, self._ends
        bits = x.contiguous().view(torch.int32)
        leading = batch.scratch(bits, torch.int32)
        torch.bitwise_right_shift(bits, 23 - (self.per_octave.bit_length() - 1), out=leading)
        size = batch.scratch(bits, into.dtype).copy_(leading)
        # -1 below zero, else 0.
        sign = batch.scratch(bits, into.dtype, slot=1)
        torch.bitwise_right_shift(size, torch.iinfo(size.dtype).bits - 1, out=sign)
        size &= 256 * self.per_octave - 1
        around = (low + 127) * self.per_octave - 1
        size.clamp_(around, around + ends - 1)
        size.add_(sign, alpha=ends)
        size = size.view(len(x), -1, len(first)).transpose(0, 1)
        torch.add(size, first + (ends - around), out=into)


def _width(units: int) -> int:
    """How many units' counts are made at a time: so many divide all."""
    return next(n for n in range(min(units, _WIDTH), 0, -1) if units % n == 0)


def quantiles(histogram: xr.Dataset, q: float | list[float]) -> xr.DataArray:
    """Quantiles from a `Histogram`'s result, evenly spread within each bin.

    A quantile is the least entry that at least the share lies at or below. The error is at most the
    width of a bin: ``1 / per_octave`` of the quantile's own size, or twice
    ``2^low`` around zero. In the outermost bins, which have no width, it is their finite edge.

    Args:
        histogram: What `Histogram` gave.
        q: One or several shares between 0 and 1.

    Returns:
        Quantiles along the dims of the counts, with ``quantile`` in place of ``bin``.

    Raises:
        ValueError: It is no histogram, or a share is outside 0 to 1.
    """
    held = {*histogram.variables} if isinstance(histogram, xr.Dataset) else set()
    if not {"count", "low", "high"} <= held:
        raise ValueError(f"histogram={type(histogram).__name__}; wanted what Histogram gave")
    shares = "shares between 0 and 1"
    wanted = checked_numbers("q", q, lambda x: (x >= 0) & (x <= 1), shares)
    counts = histogram["count"]
    table = counts.values.reshape(-1, counts.sizes["bin"]).astype(float)
    low, high = histogram["low"].values.copy(), histogram["high"].values.copy()
    low[0], high[-1] = high[0], low[-1]
    total = table.cumsum(-1)
    found = np.full((len(table), len(wanted)), np.nan)
    for n, share in enumerate(wanted):
        # The entry that is asked for, counted among the entries sorted by size.
        place = share * total[:, -1]
        at = np.minimum((total < place[:, None]).sum(-1), table.shape[-1] - 1)
        rows = np.arange(len(table))
        inside = table[rows, at]
        # The first bin that holds anything, for a share of 0.
        at = np.where(inside > 0, at, (table > 0).argmax(-1))
        inside = table[rows, at]
        before = total[rows, at] - inside
        part = np.divide(place - before, inside, out=np.zeros_like(place), where=inside > 0)
        found[:, n] = np.where(
            total[:, -1] > 0, low[at] + part.clip(0, 1) * (high[at] - low[at]), np.nan
        )
    dims = (*(d for d in counts.dims if d != "bin"), "quantile")
    shape = (*(counts.sizes[d] for d in dims[:-1]), len(wanted))
    coords = {name: c for name, c in counts.coords.items() if "bin" not in c.dims}
    return xr.DataArray(
        found.reshape(shape),
        dims=dims,
        coords={**coords, "quantile": wanted},
        attrs={**histogram.attrs, "long_name": "quantiles of activations", "unit": "activation"},
    )
