"""Does a layer say what one of its memories says, or something that none of them does?"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mlp_interp.corpus import SweepOptions
from mlp_interp.corpus import sweep as run_sweep
from mlp_interp.corpus.reducers import Shape, State
from mlp_interp.models import Unembed, Weights
from mlp_interp.models.finite import check_weights
from mlp_interp.models.indices import each, indices
from mlp_interp.models.options import checked_count, checked_counts
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.models.scan import top_tokens
from mlp_interp.models.vectors import Vectors
from mlp_interp.neurons.stores.updates import Updates, UpdatesReducer
from mlp_interp.neurons.sweeps.means import add_means, means, sums
from mlp_interp.neurons.sweeps.subupdates import SubUpdates
from mlp_interp.results import single

__all__ = ["Composition", "composition"]

_WHICH = {
    "any": "none of its neurons promotes most",
    "positive": "none of its neurons with a positive activation promotes most",
    "dominant": "none of the largest sub-updates promotes most",
}
_ABOUT = {
    "bias": "layer's top token is the one of b_out",
    "stream": "layer's top token is what the stream predicts without it",
    "after": "layer's top token is what the stream predicts with it",
    "final": "layer's top token is what the model predicts",
    "parts": "layer's top token is the one of its largest sub-updates' sum",
}


@own_mode()
@torch.no_grad()
def composition(
    model: Model,
    corpus: Any,
    *,
    attention_mask: Any = None,
    layers: int | Sequence[int] | None = None,
    dominant: int = 10,
    points: Sequence[int] | None = None,
    first: int = 1,
    sample: int = 4,
    sweep: SweepOptions = SweepOptions(),
) -> xr.Dataset:
    """How often an MLP's update raises a token most that none of its neurons does.

    A neuron's memory is the token that its sub-update raises most: its value vector's top token, or
    the last one where the activation is negative. The layer's top token is that of the whole
    update, ``b_out`` included, read through the readout. A layer is *compositional* at a token if
    its top token is none of its memories'.

    With GELU and gated neurons nearly every neuron is active, and so many memories rarely miss a
    token: ``any`` is a lower bound, and the other two say which memories matter. Chance is the top
    token that the layer has elsewhere in the batch.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        corpus: As in `activity`.
        attention_mask: As in `activity`.
        layers: Which layers; None for all.
        dominant: How many of the largest sub-updates, by ``|activation| |value vector|``, are the
            dominant ones.
        points: At which numbers of the largest sub-updates their sum is read; None for 1, 10 and
            100, as far as there are so many. Each costs an unembedding.
        first: Position from which on tokens count.
        sample: Only every so many-th position, from `first` on.
        sweep: How the corpus is run.

    Returns:
        A Dataset over ``layer`` of shares of tokens, with standard errors over sequences
        (``..._se``):

        - ``compositional`` (with ``memories``: ``any``, ``positive``, ``dominant``), and
          ``compositional_chance``;
        - ``bias``: the layer's top token is that of ``b_out``; ``stream``: it is what the stream
          that the MLP reads predicts; ``after``: what this predicts with the update; ``final``: it
          is the model's own prediction;
        - ``parts`` (with ``k``, the points): it is the top token of the sum of the k largest
          sub-updates, without ``b_out``.

    Raises:
        ValueError: Layers that the model does not have, numbers of neurons that it does not have,
            other options out of range, a model without neurons, or as `sweep`.

    References:
        Geva et al., "Transformer Feed-Forward Layers Are Key-Value Memories", 2021, section 5.

    Example:
        >>> from mlp_interp import load_corpus, load_model
        >>> model = load_model("nano")
        >>> corpus = load_corpus("nano", model, sequences=8, length=32)
        >>> share = composition(model, corpus)["compositional"].mean("layer")
        >>> [round(float(share.sel(memories=name)), 1) for name in ("any", "positive")]
        [0.2, 0.4]
    """
    weights = Weights.of(model)
    weights.check_names(["post"], argument="neurons")
    listed = indices("layers", layers, weights.n_layers)
    checked_count(dominant, weights.d_mlp, "neurons", name="dominant")
    if points is None:
        points = [k for k in (1, 10, 100) if k <= weights.d_mlp]
    if each(points):
        points = checked_counts(points, weights.d_mlp, "neurons", name="points")
    check_weights(model)
    unembed = Unembed.of(model)
    reducer = Composition(
        dominant=dominant,
        points=tuple(points),
        sample=sample,
        layers=listed,
        first=first,
        tops=torch.stack([_tops(weights, unembed, layer) for layer in listed]),
    )
    found = run_sweep(
        model, corpus, {"composition": reducer}, attention_mask=attention_mask, options=sweep
    )["composition"]
    attrs = {name: value for name, value in found.attrs.items() if name != "reducer"}
    return found.drop_attrs(deep=False).assign_attrs(attrs | {"analysis": "composition"})


def _tops(weights: Weights, unembed: Unembed, layer: int) -> Int[Tensor, "3 neuron"]:
    """The token that each value vector raises most, and lowers most; and ``b_out``'s."""
    value, weight = Vectors.of(weights, layer).value_folded, unembed.weight
    bias = single(weights.parameter(layer, "b_out"))[None]
    best, worst, of_bias = (top_tokens(weight, x) for x in (value, -value, bias))
    return torch.stack([best, worst, of_bias.expand_as(best)])


@dataclass(frozen=True, kw_only=True)
class Composition(UpdatesReducer):
    """How often a layer's top token is none of its memories'.

    `composition` runs it, and says what its result means.

    Args:
        dominant: As there.
        points: As there.
        tops: Top tokens of the values, of their opposites and of ``b_out``, in each of the layers.
        sample: As there.
        site: ``"post"``; there is no other.
        layers: As in `SiteReducer`.
        first: As in `SiteReducer`.
    """

    dominant: int
    points: tuple[int, ...]
    tops: Int[Tensor, "layer 3 neuron"] = field(repr=False, compare=False)

    def empty(self, shape: Shape) -> State:
        """Sums over sequences."""
        layers = len(self.chosen(shape))
        return {
            **sums(["compositional", "compositional_chance"], layers, (len(_WHICH),)),
            **sums(["parts"], layers, (len(self.points),)),
            **sums(["bias", "stream", "after"], layers),
            **sums(["final"], layers),
        }

    def updated(self, mine: State, updates: Updates) -> Int[Tensor, " token"]:
        """Compare the layer's top tokens with its memories'."""
        row = self.row_of(updates.layer)
        best, worst, of_bias = self.tops[row].to(updates.post.device)
        says = updates.says(updates.written)
        elsewhere = says.clone()
        said = says[updates.counts]  # what stands at padding is no text's
        # Another text's, where there are several.
        elsewhere[updates.counts] = said.roll(max(1, len(said) // 2))
        memory = torch.where(updates.post > 0, best, torch.where(updates.post < 0, worst, -1))
        largest = updates.largest(self.dominant)
        found = {
            "compositional": self._missed(memory, updates.post, largest, says),
            "compositional_chance": self._missed(memory, updates.post, largest, elsewhere),
            "parts": self._parts(updates, says),
            "bias": says == of_bias[0],
            "stream": says == updates.top_before,
            "after": says == updates.top_after,
        }
        add_means(mine, found, updates.counts, updates.texts)
        return says

    def ended(
        self,
        state: State,
        given: dict[int, Any],
        final: Int[Tensor, " token"],
        counts: Bool[Tensor, " token"],
        texts: int,
    ) -> None:
        """Compare them with the model's prediction."""
        for row, says in enumerate(given.values()):
            mine = {name: state[name][row] for name in ("final", "final_squares")}
            uncounted = {"sequences": torch.zeros((), dtype=torch.int64)}
            add_means(mine | uncounted, {"final": says == final}, counts, texts)

    def result(self, state: State, shape: Shape) -> xr.Dataset:
        """Shares of tokens with errors over sequences."""
        share = "share of tokens at which the"
        about = {
            "compositional": ("fraction", f"{share} layer's top token is no memory's"),
            "compositional_chance": ("fraction", f"{share} top token of elsewhere is no memory's"),
            **{name: ("fraction", f"{share} {text}") for name, text in _ABOUT.items()},
        }
        which = ("memories",)
        dims = {"compositional": which, "compositional_chance": which, "parts": ("k",)}
        coords = {**self.coords(shape), "k": [*self.points], "memories": [*_WHICH]}
        attrs = {
            "long_name": "layers that say what none of their neurons says",
            "unit": "fraction",
            "dominant": self.dominant,
            "first": self.first,
            "sample": self.sample,
            **{f"memories_{name}": text for name, text in _WHICH.items()},
        }
        return xr.Dataset(means(state, about, dims), coords=coords, attrs=attrs)

    def _missed(
        self,
        memory: Int[Tensor, "token neuron"],
        post: Float[Tensor, "token neuron"],
        largest: Int[Tensor, "token dominant"],
        says: Int[Tensor, " token"],
    ) -> Bool[Tensor, "token 3"]:
        """Whether tokens are none of the memories, by which memories are looked at."""
        hit = memory == says[:, None]
        found = hit.any(1), (hit & (post > 0)).any(1), hit.gather(1, largest).any(1)
        return ~torch.stack(found, dim=1)

    def _parts(self, updates: Updates, says: Int[Tensor, " token"]) -> Bool[Tensor, "token k"]:
        if not self.points:
            return says.new_zeros(len(says), 0, dtype=torch.bool)
        parts = SubUpdates(updates.post, updates.value, "norm")
        return torch.stack([updates.says(parts.sum(k)) == says for k in self.points], dim=1)
