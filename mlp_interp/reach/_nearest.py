"""`nearest_streams`: where a corpus comes nearest to the streams that lists need."""

import hashlib
from dataclasses import dataclass, field

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp import corpus as corpora
from mlp_interp.corpus import SweepOptions
from mlp_interp.corpus.reducers import Batch, Reducer, Shape, State
from mlp_interp.models import describe
from mlp_interp.models.indices import count
from mlp_interp.models.options import checked_count, checked_seed
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.padding import which_count
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.reading import readable
from mlp_interp.prompts.texts import padded_texts
from mlp_interp.prompts.tokenizing import decode
from mlp_interp.reach._certificate import found_by, leads
from mlp_interp.reach._readout import Readout
from mlp_interp.results import single, strings, to_numpy, variable

__all__ = ["nearest_streams"]

_CONTEXT = 16  # tokens up to the one whose stream it is


@own_mode()
@torch.no_grad()
def nearest_streams(
    model: Model,
    result: xr.Dataset,
    corpus: object,
    *,
    k: int = 5,
    controls: int = 16,
    first: int = 1,
    seed: int = 0,
    sweep: SweepOptions = SweepOptions(),
) -> xr.Dataset:
    """Where a corpus makes streams most like those that sets of tokens need, and who leads there.

    `reachable` finds a stream with which a set leads. It says nothing of whether the model ever
    writes one like it; this looks for the nearest, by the cosine of normalised streams, and says by
    how much the set leads there: negative, where others are above it. `random` is what to compare
    cosines with: the largest one of the same corpus with directions drawn at random. The stream of
    `reachable` is the one with the largest margin, of many that would do: a set can lead at a
    stream that is far from it.

    Args:
        model: The model.
        result: What `reachable` gave for it.
        corpus: A `Corpus`; tokens ``[sequence, pos]``, padded or not; texts.
        k: How many streams of each set, at most one of each sequence.
        controls: Random directions.
        first: Position of each text from which on streams count: 1 leaves out the first, and BOS.
        seed: Of the random directions.
        sweep: Batches, where finished shards are kept, on what machines.

    Returns:
        A Dataset along ``set`` and ``near``, the nearest first: ``cosine``, ``lead`` (logits, of
        the set at that stream, as ``lower`` of `reachable`), ``sequence`` and ``pos``, ``context``
        (the text up to there); ``random`` along ``draw``, the largest cosine with each random
        direction.

    Raises:
        ValueError: Not what `reachable` gives of this model, more streams than sequences, or
            options out of range; or as `sweep`.

    Example:
        >>> from mlp_interp import load_corpus, load_model
        >>> from mlp_interp.reach import reachable
        >>> model = load_model("nano")
        >>> found = reachable(model, [[" Paris"], [" dog"]])
        >>> near = nearest_streams(model, found, load_corpus("nano", model, sequences=8), k=2)
        >>> near["cosine"].dims, bool((near["lead"] < found["lower"]).all())
        (('set', 'near'), True)
    """
    readout, streams = found_by(model, result)
    count("controls", controls, least=0)
    documents = padded_texts(model, corpus)
    checked_count(k, len(documents.tokens), "sequences")
    which_count(model, documents.tokens, documents.real, first)
    drawn = _random(readout, controls, checked_seed(seed))
    directions = torch.from_numpy(np.concatenate([streams, drawn]))
    reducer = _Nearest.of(directions, k=k, first=first)
    swept = corpora.sweep(model, documents, {"nearest": reducer}, options=sweep)["nearest"]
    size = len(streams)
    near = swept.isel(direction=slice(size))
    if not np.isfinite(near["cosine"].values).all():
        some = int(np.isfinite(near["cosine"].values).sum(1).min())
        raise ValueError(f"k={k}; wanted at most {some}: other texts have no token that counts")
    sequence, pos = near["sequence"].values, near["pos"].values
    real = near["stream"].values.astype(float)
    ordered = bool(result.attrs["ordered"])
    sets = np.repeat(result["token_id"].values, k, axis=0)
    lead = leads(readout, real.reshape(size * k, -1), sets, ordered).reshape(size, k)
    dims = ("set", "near")
    context = _contexts(model, documents.tokens, sequence, pos)
    attrs = {name: value for name, value in swept.attrs.items() if name != "reducer"}
    return xr.Dataset(
        {
            "cosine": variable(dims, near["cosine"].values, unit="1", long_name="with its stream"),
            "lead": variable(dims, lead, unit="logits", long_name="of the set at that stream"),
            "sequence": variable(dims, sequence, unit="index"),
            "pos": variable(dims, pos, unit="index"),
            "context": variable(dims, strings(context), unit="text"),
            "random": variable(
                "draw",
                swept["cosine"].values[size:, 0],
                unit="1",
                long_name="largest cosine with a random direction",
            ),
        },
        attrs={
            **attrs,
            **describe(model),
            "analysis": "nearest streams",
            "unit": "1",
            "exact": 1,
            "ordered": int(ordered),
            "first": first,
            "seed": seed,
        },
    )


def _random(readout: Readout, controls: int, seed: int) -> Float[np.ndarray, "draw d_model"]:
    """Directions that the norm can leave, all as likely."""
    drawn = np.random.default_rng(seed).normal(size=(controls, len(readout.unembed.weight)))
    return to_numpy(readout.unembed.norm.keep(torch.from_numpy(drawn)))


def _contexts(
    model: Model, tokens: Int[Tensor, "sequence pos"], sequence: np.ndarray, pos: np.ndarray
) -> np.ndarray:
    """The text up to places."""
    found, tokenizer = np.empty(sequence.shape, dtype=object), getattr(model, "tokenizer", None)
    for place, (row, at) in enumerate(zip(sequence.flat, pos.flat, strict=True)):
        ids = tokens[row, max(0, at + 1 - _CONTEXT) : at + 1].tolist()
        found.flat[place] = readable(decode(tokenizer, ids))
    return found


@dataclass(frozen=True, kw_only=True)
class _Nearest(Reducer):
    """The final streams with the largest cosine with some directions, one of each sequence.

    Attributes:
        directions: Of length 1.
        named: By which finished shards are found again.
        k: How many of each.
        first: Position from which on streams count.
    """

    directions: Float[Tensor, "direction d_model"] = field(repr=False, compare=False)
    named: str
    k: int
    first: int
    wants_final = True
    takes_padding = True

    @classmethod
    def of(cls, vectors: Float[Tensor, "direction d_model"], *, k: int, first: int) -> "_Nearest":
        """Of vectors of any length."""
        named = hashlib.sha256(vectors.numpy().tobytes()).hexdigest()
        unit = vectors / vectors.norm(dim=1, keepdim=True).clamp_min(1e-30)
        return cls(directions=unit, named=named, k=k, first=first)

    @property
    def name(self) -> str:
        """Nearest streams."""
        return "nearest streams"

    def empty(self, shape: Shape) -> State:
        """No streams."""
        size = len(self.directions), self.k
        return {
            "cosine": torch.full(size, -torch.inf, dtype=torch.float64),
            "sequence": torch.full(size, -1),
            "pos": torch.full(size, -1),
            "stream": torch.zeros(*size, shape.d_model),
        }

    def finish(self, state: State, batch: Batch) -> None:
        """Each sequence's nearest among those that are kept."""
        if batch.final is None:
            raise ValueError("the final stream is not there; wanted wants_final")
        n = single(batch.readout().normalize(batch.final))
        unit = n / n.norm(dim=-1, keepdim=True).clamp_min(1e-30)
        cosine = unit @ self.directions.to(unit).T
        best, pos = batch.filled(cosine, -torch.inf, self.first).max(1)
        pos, rows = pos + self.first, torch.arange(len(n), device=n.device)
        radius = n.shape[-1] ** 0.5
        found = {
            "cosine": best.T.double().cpu(),
            "sequence": (batch.first + rows).expand(best.T.shape).cpu(),
            "pos": pos.T.cpu(),
            "stream": (n[rows, pos.T] / radius).cpu(),
        }
        self.merge(state, found)

    def merge(self, state: State, later: State) -> None:
        """The nearest of both; of equals, the earlier."""
        joined = {name: torch.cat([state[name], later[name]], 1) for name in state}
        order = joined["cosine"].sort(dim=1, descending=True, stable=True).indices[:, : self.k]
        for name, value in joined.items():
            wide = order.reshape(*order.shape, *[1] * (value.ndim - 2))
            state[name] = value.take_along_dim(wide, 1)

    def result(self, state: State, shape: Shape) -> xr.Dataset:
        """The nearest first; streams in units of ``sqrt(d_model)``."""
        dims = ("direction", "near")
        values = {name: to_numpy(value) for name, value in state.items()}
        own = {name: (dims, values[name]) for name in ("cosine", "sequence", "pos")}
        return xr.Dataset({**own, "stream": ((*dims, "d_model"), values["stream"])})
