"""What a reducer is: it sees activations as they are computed and keeps only what it sums up."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from mlp_interp.models import Forward, HookForward, Weights
from mlp_interp.models.indices import indices, integers
from mlp_interp.models.padding import counted
from mlp_interp.models.unembed import Unembed
from mlp_interp.results import single, to_numpy
from mlp_interp.sites import ACTIVATIONS, GATED, NEURONS, Site

__all__ = [
    "Batch",
    "Reducer",
    "Shape",
    "SiteReducer",
    "State",
    "add",
    "mean_and_error_of_sums",
    "pieces",
]

State = dict[str, Tensor]
"""What a reducer has summed up, as named tensors: what is kept on disk and sent between workers."""

_SITES = tuple(name for name in (*ACTIVATIONS, *GATED) if name != "pattern")

# Numbers reduced at a time on a processor: about what stays in its cache from pass to pass.
_PIECE = 2**18


@dataclass(frozen=True)
class Shape:
    """The sizes of a model and of the sequences that are run through it.

    Attributes:
        length: Positions of every sequence.
        shortest: Tokens of the shortest; fewer where it is padded.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    d_vocab: int
    length: int
    shortest: int = -1

    def __post_init__(self) -> None:
        if self.shortest < 0:
            object.__setattr__(self, "shortest", self.length)

    @classmethod
    def of(cls, weights: Weights, length: int, shortest: int = -1) -> "Shape":
        """The sizes of a model, for sequences of this length; by default, none is shorter."""
        return cls(
            n_layers=weights.n_layers,
            n_heads=weights.n_heads,
            n_kv_heads=weights.n_kv_heads,
            d_model=weights.d_model,
            d_head=weights.d_head,
            d_mlp=weights.d_mlp,
            d_vocab=weights.d_vocab,
            length=length,
            shortest=shortest,
        )

    def units(self, site: str) -> dict[str, int]:
        """Dims after ``batch pos`` of an activation at a site, with their sizes."""
        if site in (*NEURONS, *GATED):
            return {"neuron": self.d_mlp}
        if site in ("q", "z"):
            return {"head": self.n_heads, "d_head": self.d_head}
        if site in ("k", "v"):
            return {"head": self.n_kv_heads, "d_head": self.d_head}
        return {"d_model": self.d_model}

    def check_next_token(self) -> None:
        """Refuse texts that no token can be predicted in.

        Raises:
            ValueError: The shortest has one token.
        """
        if self.shortest < 2:
            raise ValueError(f"sequences of {self.shortest} token have no next token")


@dataclass
class Batch:
    """Some sequences on their way through the model.

    Attributes:
        tokens: What is run.
        first: Number in the corpus of the first of the sequences.
        forward: The model's forward pass.
        readout: Gives the model's readout; asked only by who wants logits.
        real: Where text is, at the beginning of each row, and not padding; None for everywhere.
        bos: The token that begins texts; None for none.
        final: The stream that leaves the last block that is run; there when `Reducer.finish` is
            called. It is the final stream if a reducer `wants_final`.
        notes: For a reducer to keep what it needs of one site until it sees another.
        buffers: Memory for `scratch`, handed on from batch to batch.
        tick: To be called, by who takes long, with the share of the batch that is done.
    """

    tokens: Int[Tensor, "batch pos"]
    first: int
    forward: Forward | HookForward
    readout: Any
    real: Bool[Tensor, "batch pos"] | None = None
    bos: int | None = None
    final: Tensor | None = None
    notes: dict[Any, Any] = field(default_factory=dict)
    buffers: dict[Any, Tensor] = field(default_factory=dict)
    tick: Callable[[float], object] = lambda share: None

    def scratch(self, like: Tensor, dtype: torch.dtype = torch.float32, slot: int = 0) -> Tensor:
        """Memory of a tensor's shape to compute in, with anything in it; the same at every call.

        Fresh memory costs a processor several times what most sums over it do. Who needs two at a
        time takes them from different slots.
        """
        key = dtype, like.device, slot
        held = self.buffers.get(key)
        if held is None or held.numel() < like.numel():
            held = self.buffers[key] = like.new_empty(like.numel(), dtype=dtype)
        return held[: like.numel()].view(like.shape)

    def counts(self, first: int) -> Bool[Tensor, "batch pos"]:
        """Which tokens count (`mlp_interp.models.padding.counted`)."""
        key = "counts", first
        if key not in self.notes:
            self.notes[key] = counted(self.tokens, self.real, first=first, bos=self.bos)
        return self.notes[key]

    def rows(
        self, x: Float[Tensor, "batch pos *units"], first: int, *, numbers: int = _PIECE
    ) -> Iterator[Tensor]:
        """Activations ``[token, *units]`` at the tokens that count, in `pieces` of so many."""
        x, counts, done = x[:, first:], self.counts(first)[:, first:], 0
        all_count = bool(counts.all())
        for part in pieces(x, numbers):
            tokens = part.flatten(0, 1) if all_count else part[counts[done : done + len(part)]]
            yield from pieces(tokens, numbers)
            done += len(part)

    def filled(
        self, x: Shaped[Tensor, "batch pos *units"], value: float | int, first: int
    ) -> Shaped[Tensor, "batch later *units"]:
        """Activations from position `first` on, with a value where tokens do not count."""
        x, counts = x[:, first:], self.counts(first)[:, first:]
        if bool(counts.all()):
            return x
        return x.masked_fill(~counts.view(*counts.shape, *[1] * (x.ndim - 2)), value)

    def reached(self, first: int) -> Int[Tensor, " pos"]:
        """How many texts have a token that counts at each position from `first` on."""
        return self.counts(first)[:, first:].sum(0).cpu()

    def counted(self, first: int) -> Int[Tensor, " batch"]:
        """How many tokens of each text count."""
        return self.counts(first).sum(1).cpu()

    @property
    def text(self) -> Int[Tensor, "batch pos"]:
        """The tokens on the CPU, -1 where padding is."""
        tokens = self.tokens.cpu()
        return tokens if self.real is None else tokens.masked_fill(~self.real.cpu(), -1)

    @property
    def weights(self) -> Weights:
        """The model's weights."""
        return self.forward.weights

    @cached_property
    def loss(self) -> Float[Tensor, "batch next_pos"]:
        """Loss at every position but the last, nats; computed once for all that ask.

        Where a padded text has no next token it is that of token 0: `real` says where.

        Raises:
            ValueError: The reducer did not say that it `wants_final`.
        """
        if self.final is None:
            raise ValueError("the final stream is not there; wanted a reducer with wants_final")
        unembed: Unembed = self.readout()
        rows = max(1, 2**22 // unembed.d_vocab)
        stream, targets = self.final[:, :-1].flatten(0, 1), self.tokens[:, 1:].flatten()
        parts = [
            F.cross_entropy(single(unembed.logits(some)), wanted, reduction="none")
            for some, wanted in zip(stream.split(rows), targets.split(rows), strict=True)
        ]
        return torch.cat(parts).view(len(self.tokens), -1)


class Reducer(ABC):
    """Sums up what a model does over a corpus, a batch at a time.

    `name`, `empty` and `result` are needed; the rest does nothing, or adds, unless overridden.
    A reducer itself is only a description (a frozen dataclass, so that its `repr` says all of it):
    what it has seen is in a `State`, which it makes, adds to and merges. So a sweep can be cut into
    shards, stopped, sent to other machines and put together again.

    Attributes:
        wants_final: Whether it reads the final stream or the loss.
        takes_padding: Whether it leaves out what `Batch.real` says is padding; if not, `sweep`
            refuses padded texts.
    """

    wants_final: bool = False
    takes_padding: ClassVar[bool] = False

    @property
    @abstractmethod
    def name(self) -> str:
        """What its result is called unless the caller names it."""

    def resolved(self, shape: Shape) -> "Reducer":
        """The same reducer for a model of this shape: with indices counted from 0; called first.

        Raises:
            ValueError: It wants what a model of this shape has not.
        """
        return self

    def sites(self, shape: Shape) -> tuple[Site, ...]:
        """Which activations it wants to see; none by default.

        Raises:
            ValueError: It wants what a model of this shape has not.
        """
        return ()

    @abstractmethod
    def empty(self, shape: Shape) -> State:
        """The state before anything has been seen; tensors on the CPU."""

    def see(self, state: State, site: Site, x: Tensor, batch: Batch) -> None:  # noqa: B027
        """Add one activation ``[batch, pos, *units]`` to the state, which is changed in place.

        `x` is what the model goes on with: it must not be changed, nor kept beyond the batch.
        """

    def finish(self, state: State, batch: Batch) -> None:  # noqa: B027
        """Called when a batch has been run, after everything in it was seen."""

    def merge(self, state: State, later: State) -> None:
        """Add the state of a later stretch of the corpus, in place; by default a plain sum."""
        for name, value in later.items():
            state[name] += value

    @abstractmethod
    def result(self, state: State, shape: Shape) -> xr.Dataset:
        """The numbers, with their units."""


@dataclass(frozen=True, kw_only=True)
class SiteReducer(Reducer):
    """A reducer of one kind of site in some layers.

    Args:
        site: ``"pre"``, ``"pre_linear"`` (of gated MLPs), ``"post"``, ``"mlp_out"``,
            ``"attn_out"``, ``"z"``, ``"q"``, ``"k"``, ``"v"``, ``"resid_pre"`` or ``"resid_post"``.
        layers: Which layers, one or several, negative ones from the last; None for all.
        first: Position from which on activations count: 1 leaves out the first, and BOS wherever
            it stands, at which many models do something else than everywhere else.

    Raises:
        ValueError: An unknown site, or a negative position; from `sweep`, layers that the model has
            not or that are named twice.
    """

    site: str = "pre"
    layers: int | tuple[int, ...] | None = None
    first: int = 0

    def __post_init__(self) -> None:
        if self.site not in _SITES:
            raise ValueError(f"site={self.site!r}; wanted one of {', '.join(_SITES)}")
        object.__setattr__(self, "layers", integers("layers", self.layers))
        if self.first < 0:
            raise ValueError(f"first={self.first}; wanted a position from 0")

    @property
    def name(self) -> str:
        """The kind of reducer and its site, as ``fraction.pre``."""
        return f"{type(self).__name__.lower()}.{self.site}"

    def resolved(self, shape: Shape) -> "SiteReducer":
        """With layers counted from 0."""
        self._check_first(shape)  # before states are made, which would have less than no positions
        return self if self.layers is None else replace(self, layers=self.chosen(shape))

    def chosen(self, shape: Shape) -> tuple[int, ...]:
        """The layers that are looked at."""
        return indices("layers", self.layers, shape.n_layers)

    def sites(self, shape: Shape) -> tuple[Site, ...]:
        """One site in each of the layers."""
        self._check_first(shape)
        return tuple(Site(self.site, layer) for layer in self.chosen(shape))

    def _check_first(self, shape: Shape) -> None:
        if self.first >= shape.shortest:
            raise ValueError(
                f"first={self.first}: sequences of {shape.shortest} tokens have no such position"
            )

    def row(self, site: Site) -> int:
        """Where a site's layer stands in the state."""
        return self.row_of(site.layer or 0)

    def row_of(self, layer: int) -> int:
        """Where a layer stands in the state."""
        chosen = integers("layers", self.layers)
        return layer if chosen is None else chosen.index(layer)

    def coords(self, shape: Shape) -> dict[str, Any]:
        """Coordinates of the layers."""
        return {"layer": list(self.chosen(shape))}

    def positions(self, shape: Shape) -> int:
        """How many positions of a sequence count."""
        return shape.length - self.first


def pieces(x: Float[Tensor, "batch ..."], numbers: int = _PIECE) -> Iterator[Tensor]:
    """Parts of an activation along its first axis that fit into a processor's cache.

    They are in single precision at least: sums over half precisions would overflow or lose digits.
    Elsewhere than on a processor it is one part: there, each call costs more than what it computes.
    """
    if x.device.type != "cpu":
        return iter((single(x),))
    each = max(1, x[0].numel()) if len(x) else 1
    return (single(part) for part in x.split(max(1, numbers // each)))


def add(total: Tensor, value: Tensor) -> None:
    """Add to a sum in its own precision, wherever the value was computed."""
    total += value.to(device=total.device, dtype=total.dtype)


def mean_and_error_of_sums(
    sums: Tensor, squares: Tensor, sequences: Tensor | int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean over sequences and its standard error, from sums of values and of their squares.

    The number of sequences may be another at each position, the last axis.
    """
    n = torch.as_tensor(sequences)
    spread = (n * squares.double() - sums.double().square()).clamp_min(0)
    error = (spread / (n - 1).clamp_min(1)).sqrt() / n.clamp_min(1)
    error = torch.where(n < 2, torch.nan, error)
    return to_numpy(sums.double() / n), to_numpy(error)
