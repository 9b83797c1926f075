"""Where in the corpus units are most active, and what they do at chosen strengths, with context."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.corpus.reducers.base import Batch, Reducer, Shape, State
from mlp_interp.corpus.reducers.units import UnitReducer
from mlp_interp.models.options import check_choice
from mlp_interp.results import to_numpy
from mlp_interp.sites import HEADS, Site, SiteLike, neuron_of

__all__ = ["BandExamples", "TopExamples"]

# Units whose examples are gathered at a time.
_UNITS = 1024
# Positions among which the largest activation is looked for.
_STRETCH = 16


@dataclass(frozen=True, kw_only=True)
class TopExamples(UnitReducer):
    """The largest activations of every unit, with the tokens around them.

    At most one of each sequence, so that one text does not take all places. Of equal activations
    the one that comes first in the corpus is kept.

    Args:
        k: How many of each unit.
        before: How many tokens of context before each.
        after: How many after it.
        by: ``"value"``: the largest activations; ``"size"``: the largest of either sign.
        site: As in `SiteReducer`; a site with neurons or ``d_model``.
        layers: As in `SiteReducer`.
        first: As in `SiteReducer`.
        units: As in `UnitReducer`.

    Its result has ``activation``, ``sequence`` and ``pos`` (layer, unit, example) and, along
    ``context`` (0 is the token itself), ``token`` and ``around``, the activation at each token.
    Where there are fewer examples than k, ``sequence`` is -1 and the activation NaN; so is what
    lies beyond the ends of a sequence.

    Raises:
        ValueError: Options below their least, or as `SiteReducer`.

    Example:
        >>> import torch
        >>> from mlp_interp import load_model
        >>> from mlp_interp.corpus import sweep
        >>> tokens = torch.arange(40).reshape(4, 10)
        >>> found = sweep(load_model("nano"), tokens, TopExamples(k=2, site="post"))
        >>> found["topexamples.post"]["activation"].dims
        ('layer', 'neuron', 'example')
    """

    k: int = 10
    before: int = 10
    after: int = 5
    by: str = "value"
    takes_padding: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.k, self.before, self.after)
        check_choice("by", self.by, ("value", "size"))
        if self.site in HEADS:
            raise ValueError(f"site={self.site!r}; wanted one whose units are single numbers")

    def empty(self, shape: Shape) -> State:
        """No examples."""
        (units,) = self.sizes(shape).values()
        return _places((len(self.chosen(shape)), units, self.k), self.before + 1 + self.after)

    def see(self, state: State, site: Site, x: Tensor, batch: Batch) -> None:
        """Each sequence's best among those that are kept."""
        mine = {name: value[self.row(site)] for name, value in state.items()}
        x = self.picked(x)
        key = x if self.by == "value" else torch.abs(x, out=batch.scratch(x, x.dtype))
        highest = _highest(batch.filled(key, -torch.inf, self.first))
        best = highest.amax(1).cpu().to(mine["activation"].dtype)
        better = (best.amax(0) > mine["activation"][:, -1]).nonzero()[:, 0]
        for units in better.split(_UNITS):
            # Those kept, then the batch's in their order: a stable sort keeps the first of equals.
            joined = torch.cat((mine["activation"][units], best.T[units]), dim=1)
            order = joined.sort(dim=1, descending=True, stable=True).indices[:, : self.k]
            self._keep(mine, x, highest, batch, units, order)

    def merge(self, state: State, later: State) -> None:
        """The best of both."""
        joined = {name: torch.cat((state[name], later[name]), dim=2) for name in state}
        _keep_best(state, joined, dim=2)

    def result(self, state: State, shape: Shape) -> xr.Dataset:
        """The examples, best first."""
        (unit,) = self.sizes(shape)
        attrs = {"long_name": f"largest activations at {self.site}", "unit": "activation"}
        dims = ("layer", unit, "example")
        # What they are ordered by has lost its sign where that is their size.
        signed = state | {"activation": state["around"][..., self.before]}
        return _dataset(signed, dims, self.coords(shape), self.before, attrs)

    def _keep(
        self,
        mine: State,
        x: Float[Tensor, "batch pos unit"],
        highest: Float[Tensor, "batch stretch unit"],
        batch: Batch,
        units: Int[Tensor, " some"],
        order: Int[Tensor, "some k"],
    ) -> None:
        """Reorder the examples of some units: `order` counts those kept first, then the batch's."""
        place, row = (order.T >= self.k).nonzero(as_tuple=True)
        sequence = order[row, place] - self.k
        # Sequence by sequence: what is read of a row of memory is read while it is in the cache.
        by_sequence = sequence.argsort()
        place, row, sequence = place[by_sequence], row[by_sequence], sequence[by_sequence]
        stretch = highest[:, :, units.to(x.device)].max(1).indices.cpu()[sequence, row]
        found = self._examples(x, batch, sequence, units[row], stretch)
        kept, new = units[:, None] * self.k + order.clamp_max(self.k - 1), row * self.k + place
        for name, value in mine.items():
            chosen = value.flatten(0, 1).index_select(0, kept.flatten())
            chosen.index_copy_(0, new, found[name].to(value.dtype))
            value.index_copy_(0, units, chosen.unflatten(0, kept.shape))

    def _examples(
        self,
        x: Float[Tensor, "batch pos unit"],
        batch: Batch,
        sequence: Int[Tensor, " some"],
        unit: Int[Tensor, " some"],
        stretch: Int[Tensor, " some"],
    ) -> State:
        """Where each of some units is largest in a sequence of the batch, and what is around.

        Only the stretch that holds its largest activation is looked through.
        """
        at = self.first + _STRETCH * stretch[:, None] + torch.arange(_STRETCH)
        at = at.clamp_max(x.shape[1] - 1)
        key = _at(x, sequence, at, unit)
        key = key if self.by == "value" else key.abs()
        counts = batch.counts(self.first).cpu()
        if not bool(counts.all()):
            key = key.masked_fill(~counts[sequence[:, None], at], -torch.inf)
        activation, place = key.max(1)
        pos = at.gather(1, place[:, None])[:, 0]
        found = _around(x, batch.text, sequence, pos, unit, self.before, self.after)
        return found | {"activation": activation, "sequence": batch.first + sequence, "pos": pos}


@dataclass(frozen=True, kw_only=True)
class BandExamples(Reducer):
    """Examples of one neuron drawn at random from bands of its activation.

    The largest activations show what a neuron likes best, not what it does most of the time. The
    draw is by a hash of seed and place: every shard and worker draws alike.

    Args:
        neuron: A label (``"L3N669"``, ``"L3N669.pre"``), a `Site` or the pair ``(layer, neuron)``.
        edges: Edges of the bands, ascending: each band is ``[edge, next edge)``.
        k: How many of each band.
        before: As in `TopExamples`.
        after: As in `TopExamples`.
        first: As in `SiteReducer`.
        seed: Of the draw.

    Its result is as that of `TopExamples`, along ``band`` and ``example``, with ``count``.

    Raises:
        ValueError: No such neuron, edges that do not ascend, or options below their least.

    Example:
        >>> import torch
        >>> from mlp_interp import load_model
        >>> from mlp_interp.corpus import sweep
        >>> tokens = torch.arange(40).reshape(4, 10)
        >>> bands = BandExamples(neuron="L1N3", edges=(-1.0, 0.0, 9.0), k=2)
        >>> int(sweep(load_model("nano"), tokens, bands)["bandexamples.L1N3"]["count"].sum())
        40
    """

    neuron: SiteLike
    edges: Sequence[float]
    k: int = 5
    before: int = 10
    after: int = 5
    first: int = 0
    seed: int = 0
    takes_padding: ClassVar[bool] = True
    _site: Site = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check(self.k, self.before, self.after)
        object.__setattr__(self, "edges", tuple(float(edge) for edge in self.edges))
        site = neuron_of(self.neuron)
        object.__setattr__(self, "neuron", site.label)
        if len(self.edges) < 2 or any(
            not low < high for low, high in zip(self.edges, self.edges[1:], strict=False)
        ):
            raise ValueError(f"edges={self.edges}; wanted two or more, ascending")
        if self.first < 0:
            raise ValueError(f"first={self.first}; wanted a position from 0")
        object.__setattr__(self, "_site", site)

    @property
    def name(self) -> str:
        """The neuron's label after the kind of reducer."""
        return f"bandexamples.{self.neuron}"

    def sites(self, shape: Shape) -> tuple[Site, ...]:
        """The neuron's layer."""
        layer, neuron = self._site.layer or 0, self._site.unit
        if layer >= shape.n_layers or neuron >= shape.d_mlp:
            raise ValueError(
                f"neuron={self.neuron!r}; wanted layers 0 to {shape.n_layers - 1} and neurons 0 "
                f"to {shape.d_mlp - 1}"
            )
        if self.first >= shape.shortest:
            raise ValueError(f"first={self.first}: sequences have {shape.shortest} tokens")
        return (Site(self._site.name, layer),)

    def empty(self, shape: Shape) -> State:
        """No examples."""
        bands = len(self.edges) - 1
        return {
            **_places((bands, self.k), self.before + 1 + self.after),
            "rank": torch.full((bands, self.k), torch.iinfo(torch.int64).max),
            "count": torch.zeros(bands, dtype=torch.int64),
        }

    def see(self, state: State, site: Site, x: Tensor, batch: Batch) -> None:
        """Keep those whose hash is lowest."""
        values = x[..., self._site.unit].cpu()
        sequence = batch.first + torch.arange(len(values))
        places = torch.arange(values.shape[1])
        rank = _hash(sequence[:, None] * values.shape[1] + places, self.seed)
        text, counts = batch.text, batch.counts(self.first).cpu()
        bounds = zip(self.edges, self.edges[1:], strict=False)
        for band, (low, high) in enumerate(bounds):
            inside = (values >= low) & (values < high) & counts
            state["count"][band] += int(inside.sum())
            row, place = inside.nonzero(as_tuple=True)
            order = rank[row, place].argsort()[: self.k]
            row, place = row[order], place[order]
            found = _around(
                values[..., None], text, row, place, torch.zeros_like(row), self.before, self.after
            )
            found |= {
                "activation": values[row, place].to(state["activation"].dtype),
                "sequence": sequence[row],
                "pos": place,
                "rank": rank[row, place],
            }
            mine = {name: state[name][band] for name in found}
            joined = {name: torch.cat((mine[name], found[name])) for name in found}
            keep = joined["rank"].argsort(stable=True)[: self.k]
            for name, value in mine.items():
                value.copy_(joined[name][keep])

    def merge(self, state: State, later: State) -> None:
        """Those of both whose hash is lowest."""
        state["count"] += later["count"]
        names = [name for name in state if name != "count"]
        joined = {name: torch.cat((state[name], later[name]), dim=1) for name in names}
        order = joined["rank"].argsort(dim=1, stable=True)[:, : self.k]
        for name in names:
            state[name] = _take(joined[name], order, 1)

    def result(self, state: State, shape: Shape) -> xr.Dataset:
        """The examples, in each band by falling activation."""
        shown = {name: state[name] for name in _NAMES}
        order = (
            shown["activation"]
            .nan_to_num(-torch.inf, neginf=-torch.inf)
            .argsort(dim=1, descending=True, stable=True)
        )
        shown = {name: _take(value, order, 1) for name, value in shown.items()}
        coords: dict[str, Any] = {
            "low": ("band", np.array(self.edges[:-1]), {"unit": "activation"}),
            "high": ("band", np.array(self.edges[1:]), {"unit": "activation"}),
        }
        attrs = {"long_name": f"examples of {self.neuron} by activation", "unit": "activation"}
        found = _dataset(shown, ("band", "example"), coords, self.before, attrs)
        return found.assign(count=("band", to_numpy(state["count"]), {"unit": "positions"}))


_NAMES = ("activation", "sequence", "pos", "token", "around")


def _check(k: int, before: int, after: int) -> None:
    for name, value, least in (("k", k, 1), ("before", before, 0), ("after", after, 0)):
        if value < least:
            raise ValueError(f"{name}={value}; wanted at least {least}")


def _places(size: tuple[int, ...], width: int) -> State:
    return {
        "activation": torch.full(size, -torch.inf),
        "sequence": torch.full(size, -1, dtype=torch.int64),
        "pos": torch.full(size, -1, dtype=torch.int64),
        "token": torch.full((*size, width), -1, dtype=torch.int64),
        "around": torch.full((*size, width), torch.nan),
    }


def _highest(x: Float[Tensor, "batch pos unit"]) -> Float[Tensor, "batch stretch unit"]:
    """The largest activation of each unit in each stretch of positions; the last may be shorter."""
    whole = x.shape[1] // _STRETCH * _STRETCH
    found = x[:, :whole].unflatten(1, (-1, _STRETCH)).amax(2)
    return found if whole == x.shape[1] else torch.cat((found, x[:, whole:].amax(1, True)), dim=1)


def _at(
    x: Float[Tensor, "batch pos unit"],
    sequence: Int[Tensor, " some"],
    at: Int[Tensor, "some places"],
    unit: Int[Tensor, " some"],
) -> Float[Tensor, "some places"]:
    """Activations at several positions each of some sequences and units, on the CPU."""
    # One index in place of three is found in a third of the time.
    index = (sequence * x.shape[1])[:, None] + at
    index = index.mul_(x.shape[2]).add_(unit[:, None])
    return x.reshape(-1).index_select(0, index.flatten().to(x.device)).view(index.shape).cpu()


def _around(
    x: Float[Tensor, "batch pos unit"],
    tokens: Int[Tensor, "batch pos"],
    sequence: Int[Tensor, " some"],
    place: Int[Tensor, " some"],
    unit: Int[Tensor, " some"],
    before: int,
    after: int,
) -> State:
    """Tokens and activations around places in sequences; a token of -1 is none."""
    at = place[:, None] + torch.arange(-before, after + 1)
    inside = (at >= 0) & (at < x.shape[1])
    at = at.clamp(0, x.shape[1] - 1)
    found = tokens.long()[sequence[:, None], at]
    inside &= found >= 0
    return {
        "token": found.masked_fill(~inside, -1),
        "around": _at(x, sequence, at, unit).float().masked_fill(~inside, torch.nan),
    }


def _keep_best(state: State, joined: State, dim: int) -> None:
    """Put the largest of the joined examples into the state; the first of equals first."""
    k = state["activation"].shape[dim]
    order = joined["activation"].sort(dim=dim, descending=True, stable=True).indices
    order = order.narrow(dim, 0, k)
    for name in state:
        state[name] = _take(joined[name], order, dim)


def _take(values: Tensor, order: Tensor, dim: int) -> Tensor:
    if values.ndim > order.ndim:
        order = order.unsqueeze(-1).expand(*order.shape, values.shape[-1])
    return values.gather(dim, order)


def _hash(numbers: Int[Tensor, "*shape"], seed: int) -> Int[Tensor, "*shape"]:
    """Well-mixed 62-bit numbers, the same on every machine (SplitMix64's finaliser)."""
    x = to_numpy(numbers).astype(np.uint64)
    x += np.uint64((seed * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % 2**64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return torch.from_numpy((x >> np.uint64(2)).astype(np.int64))


def _dataset(
    state: State, dims: tuple[str, ...], coords: Any, before: int, attrs: dict[str, str]
) -> xr.Dataset:
    found = {name: to_numpy(state[name]) for name in _NAMES}
    missing = found["sequence"] < 0
    found["activation"] = np.where(missing, np.nan, found["activation"])
    wide = (*dims, "context")
    return xr.Dataset(
        {
            "activation": (dims, found["activation"], {"unit": "activation"}),
            "sequence": (dims, found["sequence"], {"unit": "number in the corpus"}),
            "pos": (dims, found["pos"], {"unit": "position"}),
            "token": (wide, found["token"], {"unit": "token id"}),
            "around": (wide, found["around"], {"unit": "activation"}),
        },
        coords={**coords, "context": np.arange(found["token"].shape[-1]) - before},
        attrs=attrs,
    )
