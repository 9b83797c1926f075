"""Which share of its neurons is behind an update: a reducer that sums it up over a corpus."""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.corpus.reducers import Batch, Shape, SiteReducer, State
from mlp_interp.corpus.reducers.base import add, pieces
from mlp_interp.models.indices import count
from mlp_interp.models.options import check_choice
from mlp_interp.models.writes import frozen
from mlp_interp.neurons.sweeps.means import add_means, means, sums
from mlp_interp.neurons.sweeps.subupdates import SubUpdates
from mlp_interp.results import single, to_numpy, variable
from mlp_interp.sites import Site

__all__ = ["UpdateShares"]

_ABOUT = {  # unit and long name of the means over tokens
    "cosine": ("cosine", "sum of the largest sub-updates, and of all"),
    "needed": ("neurons", "neurons whose sum reaches the wanted cosine to the update"),
    "negative_share": ("fraction", "share of negative activations in the update's own direction"),
    "positive_share": ("fraction", "share of positive activations in the update's own direction"),
    "negative_norm_share": ("fraction", "share of negative activations in the sum of norms"),
}


@dataclass(frozen=True, kw_only=True)
class UpdateShares(SiteReducer):
    """How many sub-updates make up an MLP's update, of which sign, and how constant it is.

    `update_shares` runs it, and says what its result means.

    Args:
        points: Numbers of neurons at which the cosine is taken, ascending.
        order: ``"activation"`` or ``"norm"``: by what sub-updates are ordered.
        level: The cosine for which neurons are counted.
        sample: Only every so many-th position, from `first` on.
        site: ``"post"``; there is no other.
        layers: As in `SiteReducer`.
        first: As in `SiteReducer`.

    Raises:
        ValueError: Points that do not ascend from 1, an unknown order, a level outside 0 to 1, a
            sample below 1, another site, or as `SiteReducer`.
    """

    points: tuple[int, ...]
    order: str = "activation"
    level: float = 0.9
    sample: int = 1
    site: str = "post"
    takes_padding: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.site != "post":
            raise ValueError(f"site={self.site!r}; wanted 'post'")
        object.__setattr__(self, "points", tuple(int(point) for point in self.points))
        if not self.points or not all(
            low < high for low, high in zip((0, *self.points), self.points, strict=False)
        ):
            raise ValueError(f"points={self.points}; wanted numbers from 1, ascending")
        check_choice("order", self.order, ("activation", "norm"))
        if not 0 < self.level < 1:
            raise ValueError(f"level={self.level}; wanted a cosine between 0 and 1")
        count("sample", self.sample)

    def sites(self, shape: Shape) -> tuple[Site, ...]:
        """As `SiteReducer`."""
        if self.points[-1] > shape.d_mlp:
            raise ValueError(
                f"points={self.points}; wanted at most {shape.d_mlp}, the number of neurons"
            )
        return super().sites(shape)

    def empty(self, shape: Shape) -> State:
        """Sums over sequences, over tokens, and how many tokens need how many neurons."""
        layers = len(self.chosen(shape))
        return {
            **sums(_ABOUT, layers),
            **sums(["cosine"], layers, (len(self.points),)),
            "needed_by_tokens": torch.zeros(layers, shape.d_mlp + 1, dtype=torch.int64),
            "tokens": torch.zeros(layers, dtype=torch.int64),
            "update": torch.zeros(layers, shape.d_model, dtype=torch.float64),
            "direction": torch.zeros(layers, shape.d_model, dtype=torch.float64),
            "square": torch.zeros(layers, dtype=torch.float64),
        }

    def see(self, state: State, site: Site, x: Tensor, batch: Batch) -> None:
        """Take the activations apart, some sequences at a time."""
        mine = {name: value[self.row(site)] for name, value in state.items()}
        W_out = single(batch.weights.parameter(site.layer or 0, "W_out"))
        x = frozen(batch.weights, site, x)
        # Padding has no update: it is left out like tokens without one, and not counted with them.
        for part in pieces(batch.filled(x, 0.0, self.first)[:, :: self.sample]):
            rows = part.flatten(0, 1).to(W_out.dtype)
            updates = SubUpdates(rows, W_out, self.order)
            found = self._measured(updates)
            add_means(mine, found, updates.real, len(part))
            counted = updates.real.nonzero()[:, 0]
            needed = found["needed"][counted].to(torch.int64)
            add(mine["needed_by_tokens"], needed.bincount(minlength=rows.shape[1] + 1))
            add(mine["update"], updates.total.sum(0, dtype=torch.float64))
            add(mine["direction"], updates.direction.sum(0, dtype=torch.float64))
            add(mine["square"], updates.length.square().sum(dtype=torch.float64))
        add(mine["tokens"], batch.counts(self.first)[:, self.first :: self.sample].sum())

    def result(self, state: State, shape: Shape) -> xr.Dataset:
        """Means with errors over sequences; what is constant in the update."""
        counts = to_numpy(state["needed_by_tokens"])
        counted = counts.sum(-1)
        median = (counts.cumsum(-1) * 2 >= counted[:, None]).argmax(-1)
        variables = means(state, _ABOUT, {"cosine": ("k",)})
        variables |= _constant(state, torch.from_numpy(counted))
        variables["needed_median"] = variable(
            "layer", median, unit="neurons", long_name="median over tokens of the neurons needed"
        )
        attrs = {
            "long_name": "neurons behind an MLP's update (without b_out)",
            "unit": "see each variable",
            "order": self.order,
            "level": self.level,
            "first": self.first,
            "sample": self.sample,
            "entries": int(state["tokens"][0]),
            "without_direction": int(state["tokens"].sum()) - int(counted.sum()),
        }
        coords = {**self.coords(shape), "k": [*self.points]}
        return xr.Dataset(variables, coords=coords, attrs=attrs)

    def _measured(self, updates: SubUpdates) -> dict[str, Tensor]:
        """What is averaged over tokens, of each token."""
        size = updates.post.shape[1]
        cosine = {point: updates.cosine(point) for point in sorted({*self.points, size})}
        # How much each neuron writes in the update's own direction, over the update's length.
        inside = updates.post * (updates.direction @ updates.W_out.T)
        inside /= updates.length.clamp_min(torch.finfo(inside.dtype).tiny)[:, None]
        norms = updates.post.abs() * updates.norms
        negative = updates.post < 0
        everything = norms.sum(-1).clamp_min(torch.finfo(norms.dtype).tiny)
        return {
            "cosine": torch.stack([cosine[point] for point in self.points], dim=-1),
            "needed": self._needed(updates, cosine),
            "negative_share": torch.where(negative, inside, 0).sum(-1),
            "positive_share": torch.where(negative, 0, inside).sum(-1),
            "negative_norm_share": torch.where(negative, norms, 0).sum(-1) / everything,
        }

    def _needed(
        self, updates: SubUpdates, cosine: dict[int, Float[Tensor, " token"]]
    ) -> Int[Tensor, " token"]:
        """Smallest point at which the level is reached, then bisection down to one neuron."""
        ends = [0, *cosine]
        reached = torch.stack([*cosine.values()], dim=-1) >= self.level
        reached[:, -1] = True  # all neurons make the update itself; rounding has no say
        bracket = reached.to(torch.int8).argmax(-1)
        ends_here = torch.tensor(ends, device=reached.device)
        low, high = ends_here[bracket], ends_here[bracket + 1]
        widest = max(b - a for a, b in pairwise(ends))
        for _ in range((widest - 1).bit_length()):
            middle = (low + high) // 2
            enough = (updates.cosine(middle) >= self.level) & (middle > low)
            high = torch.where(enough, middle, high)
            low = torch.where(enough, low, middle)
        return high


def _constant(state: State, counted: Int[Tensor, " layer"]) -> dict[str, xr.Variable]:
    """What updates have in common: their mean, and its share in them."""
    tokens = state["tokens"].double()
    update, square = state["update"] / tokens[:, None], state["square"] / tokens
    explained = update.square().sum(-1) / square
    # The mean of cosines to one vector is the product of the mean direction with it.
    towards = torch.cosine_similarity(state["direction"], update, dim=-1)
    cosine = towards * state["direction"].norm(dim=-1) / counted
    constants = (
        ("virtual_bias", update, "activation", "mean update over tokens, without b_out"),
        ("virtual_bias_norm", update.norm(dim=-1), "L2 norm", "norm of the virtual bias"),
        ("update_rms", square.sqrt(), "L2 norm", "root mean square norm of an update"),
        ("explained", explained, "fraction", "share of the mean square that is constant"),
        ("varying", 1 - explained, "fraction", "share of the mean square that varies"),
        ("virtual_bias_cosine", cosine, "cosine", "update and virtual bias, mean over tokens"),
    )
    return {
        name: variable(("layer", "d_model")[: value.ndim], value, unit=unit, long_name=about)
        for name, value, unit, about in constants
    }
