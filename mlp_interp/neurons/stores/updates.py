"""What MLPs do to the prediction, token by token: what reducers of that have in common."""

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from jaxtyping import Bool, Float, Int
from torch import Tensor

from mlp_interp.corpus.reducers import Batch, Shape, SiteReducer, State
from mlp_interp.models import Unembed, Weights
from mlp_interp.models.indices import count, integers
from mlp_interp.models.options import check_choice
from mlp_interp.models.scan import top_tokens
from mlp_interp.models.writes import frozen, frozen_scale
from mlp_interp.results import single
from mlp_interp.sites import Site

__all__ = ["Updates", "UpdatesReducer"]

_SEEN = ("resid_pre", "post", "mlp_out", "resid_post")


@dataclass(frozen=True)
class Updates:
    """The updates of one layer's MLP at some tokens, and the streams that they lead to.

    Attributes:
        layer: Which.
        weights: The model's.
        unembed: Its readout.
        post: What each neuron's value vector is multiplied by.
        bias: What ``b_out`` adds.
        written: The updates.
        before: The stream that they are added to.
        counts: Which of the tokens count.
        texts: How many texts they are of, each of as many.
    """

    layer: int
    weights: Weights
    unembed: Unembed
    post: Float[Tensor, "token neuron"]
    bias: Float[Tensor, "*token d_model"]
    written: Float[Tensor, "token d_model"]
    before: Float[Tensor, "token d_model"]
    counts: Bool[Tensor, " token"]
    texts: int

    @cached_property
    def value(self) -> Float[Tensor, "neuron d_model"]:
        """Value vectors, as later norms see them."""
        return self.weights.norm.keep(single(self.weights.parameter(self.layer, "W_out")))

    @cached_property
    def after(self) -> Float[Tensor, "token d_model"]:
        """The stream with the update."""
        return self.before + self.written

    @cached_property
    def top_after(self) -> Int[Tensor, " token"]:
        """What the stream with the update predicts."""
        return self.top_of(self.after)

    @cached_property
    def top_before(self) -> Int[Tensor, " token"]:
        """What the stream without it predicts."""
        return self.top_of(self.before)

    def top_of(self, streams: Float[Tensor, "token d_model"]) -> Int[Tensor, " token"]:
        """What streams predict."""
        normalized = self.unembed.normalize(streams)
        return top_tokens(self.unembed.weight, normalized, self.unembed.bias)

    def largest(self, k: int) -> Int[Tensor, "token k"]:
        """The neurons with the largest sub-updates, by ``|activation| |value vector|``."""
        size = self.post.abs() * self.value.norm(dim=-1)
        return size.topk(k, dim=-1, sorted=False).indices

    def says(self, vectors: Float[Tensor, "token d_model"]) -> Int[Tensor, " token"]:
        """The token that vectors raise most."""
        return top_tokens(self.unembed.weight, vectors)


@dataclass(frozen=True, kw_only=True)
class UpdatesReducer(SiteReducer):
    """Sums up something about every update; `empty`, `updated` and `result` are to be written.

    Args:
        stream: ``"read"``: updates are added to the stream that the MLP reads. In parallel blocks
            the attention's update is then in neither; ``"left"``: in both, so that with the update
            it is the stream that leaves the block. In sequential blocks these are the same.
        sample: Only every so many-th position, from `first` on.
        site: ``"post"``; there is no other.
        layers: As in `SiteReducer`.
        first: As in `SiteReducer`.
    """

    stream: str = "read"
    sample: int = 1
    site: str = "post"
    takes_padding: ClassVar[bool] = True
    wants_final: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("stream", self.stream, ("read", "left"))
        count("sample", self.sample)

    @abstractmethod
    def updated(self, mine: State, updates: Updates) -> Any:
        """Add a layer's updates to its rows of the state; what is given back, `ended` gets."""

    @abstractmethod
    def ended(
        self,
        state: State,
        given: dict[int, Any],
        final: Int[Tensor, " token"],
        counts: Bool[Tensor, " token"],
        texts: int,
    ) -> None:
        """Add what takes the model's final prediction of each token to know.

        Args:
            state: The whole of it.
            given: What `updated` gave for each layer.
            final: The model's own top token.
            counts: As of `Updates`.
            texts: As of `Updates`.
        """

    def sites(self, shape: Shape) -> tuple[Site, ...]:
        """Neurons, updates and streams of each of the layers."""
        layers = [site.layer for site in super().sites(shape)]
        return tuple(Site(name, layer) for layer in layers for name in _SEEN)

    def see(self, state: State, site: Site, x: Tensor, batch: Batch) -> None:
        """Wait for the stream that leaves the block."""
        layer = site.layer or 0
        if site.name == "post":
            whole, weights = Site("post", layer), batch.weights
            scale = frozen_scale(weights, whole, x)
            bias = single(weights.parameter(layer, "b_out"))
            batch.notes[self, layer, "bias"] = bias if scale is None else self._rows(bias / scale)
            x = frozen(weights, whole, x)
        batch.notes[self, layer, site.name] = self._rows(x)
        if site.name == "resid_post":
            names = ("post", "bias", "mlp_out", "resid_pre", "resid_post")
            post, bias, written, read, left = (
                batch.notes.pop((self, layer, name)) for name in names
            )
            apart = self.stream == "read" and batch.weights.parallel
            updates = Updates(
                layer=layer,
                weights=batch.weights,
                unembed=batch.readout(),
                post=post,
                bias=bias,
                written=written,
                before=read if apart else left - written,
                counts=self._counts(batch),
                texts=len(x),
            )
            mine = {name: value[self.row(site)] for name, value in state.items()}
            batch.notes[self, layer] = self.updated(mine, updates)

    def finish(self, state: State, batch: Batch) -> None:
        """Read the final stream."""
        unembed: Unembed = batch.readout()
        if batch.final is None:
            raise ValueError("the final stream is not there; wanted a pass over all blocks")
        normalized = unembed.normalize(self._rows(batch.final))
        final = top_tokens(unembed.weight, normalized, unembed.bias)
        layers = integers("layers", self.layers) or range(batch.weights.n_layers)
        given = {layer: batch.notes.pop((self, layer)) for layer in layers}
        self.ended(state, given, final, self._counts(batch), len(batch.tokens))

    def _rows(self, x: Tensor) -> Tensor:
        return single(x[:, self.first :: self.sample]).flatten(0, 1)

    def _counts(self, batch: Batch) -> Bool[Tensor, " token"]:
        return batch.counts(self.first)[:, self.first :: self.sample].flatten()
