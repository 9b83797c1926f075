"""`read`: what the model would say if it stopped at each layer."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Int
from torch import Tensor

from mlp_interp.lens.asked import Asked, texts_and_run
from mlp_interp.lens.columns import Columns
from mlp_interp.lens.decoding import Decoded
from mlp_interp.lens.distributions import Distributions, rows_at_once
from mlp_interp.lens.embedding import Embedding
from mlp_interp.lens.labels import finished, layer_coords, token_coords
from mlp_interp.lens.lens import Lens, logit
from mlp_interp.metrics.rows import next_tokens
from mlp_interp.models import Weights
from mlp_interp.models.indices import indices
from mlp_interp.models.options import checked_count
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.models.unembed import Unembed
from mlp_interp.results import to_numpy
from mlp_interp.runs import Run

__all__ = ["chosen_layers", "lenses_of", "read"]

Lenses = Lens | Mapping[str, Lens] | None


@own_mode()
@torch.no_grad()
def read(
    model: Model,
    tokens: Any,
    lens: Lenses = None,
    *,
    attention_mask: Any = None,
    positions: Any = None,
    layers: Any = None,
    targets: Any = None,
    k: int = 5,
    embedding: bool = False,
) -> xr.Dataset:
    """What would the model say if it stopped at each layer, and how far is that from the end?

    The stream that enters a layer is given to the readout, through a lens. ``kl_output`` says how
    far what is read is from what the model says in the end, ``kl_input`` how far it is from what
    the same lens reads of the embedding. A small distance says that *this lens* can read the
    prediction there, not that the model has decided, and a large one may be the lens's fault:
    compare `decoder` and `tuned`.

    Args:
        model: The model.
        tokens: Tokens ``[batch, pos]``, padded or not; texts; a `Corpus`; a `Contrast`, of which
            the clean side is read and answers and foils are targets; or a `Run`, edited or not,
            whose streams are read.
        lens: The lens, None for `logit`; or several by names, along a new dim ``lens``.
        attention_mask: 1 where text is, 0 where padding is; None tells it by the rule of
            `mlp_interp.models.padding`.
        positions: Which positions, negative ones from the end of each text; None for all.
        layers: Which layers, the number of blocks for the final stream; None for all.
        targets: A token (id or single-token string) for all texts or one for each: its
            log-probability and rank are given, too.
        k: How many of the likeliest tokens to give.
        embedding: Whether to compare the streams with the token embeddings, which costs about as
            much as all the rest. In a model whose unembedding is not its embedding, this is what
            says whether the input is still there.

    Returns:
        A Dataset along ``prompt layer pos`` (and ``rank`` for the likeliest tokens). ``layer`` l is
        the stream that *enters* block l, the last one the final stream; a decoder of n blocks has
        nothing between block L-n and the end. In nats: ``kl_output`` (KL(final‖layer); exactly 0 at
        the last), ``kl_input`` (KL(lens at layer 0‖layer)), ``entropy``, and ``logp_next``,
        ``logp_output``, ``logp_input``, ``logp_target``, of the token that comes next, the final
        likeliest, the one that stands there and the target; ``rank_…``: how many tokens are
        likelier than those, 0 for the likeliest. ``agrees``: 1 where the likeliest token is the
        final one. ``top_id``, ``top_logp``, ``top_text``. ``depth`` (prompt, pos): the first layer
        from which on the likeliest token stays the final one; ``first``: the first at which the
        target is the likeliest, NaN for never. With a foil ``logit_difference``, at the layer's own
        scale. With `embedding`, ``cosine_input`` (of the stream and the embedding of the token that
        stands there) and ``rank_embedding`` (how many tokens' embeddings are closer). NaN, -1 and
        "" where there is nothing: padding, and what is next after the last position.

        A lens that looks `ahead` is held against what the model says that many positions later.

    Raises:
        ValueError: A lens of another model, layers that it does not have, positions outside a text,
            `k` outside the vocabulary, targets that are not one token each, a stream that is not
            finite.

    References:
        nostalgebraist, "interpreting GPT: the logit lens", 2020; Belrose et al., "Eliciting Latent
        Predictions from Transformers with the Tuned Lens", 2023.

    Example:
        >>> from mlp_interp import load_model, prompts
        >>> model = load_model("nano")
        >>> found = read(model, prompts.facts(model, n=4, seed=0), positions=-1)
        >>> found.rank_target.median("prompt").values[:, 0].tolist()[2:]
        [0.0, 0.0, 0.0]
        >>> bool((found.kl_output.sel(layer=4) == 0).all())
        True
    """
    weights = Weights.of(model)
    named = lenses_of(model, lens)
    for one in named.values():
        chosen_layers(one, layers, weights.n_layers)
    checked_count(k, weights.d_vocab, "tokens")
    padded, run = texts_and_run(model, tokens, attention_mask)
    asked = Asked.of(weights, padded, positions, tokens, targets)
    unembed = Unembed.of(model)
    closest = Embedding.of(weights) if embedding else None
    results = {
        name: _read(run, unembed, one, asked, chosen_layers(one, layers, weights.n_layers), k)
        for name, one in named.items()
    }
    if closest is not None:
        results = {name: closest.added(found, run, asked) for name, found in results.items()}
    several = isinstance(lens, Mapping)
    found = finished(model, results, named, padded.attrs, single=not several)
    return found.assign_coords(token_coords(model, asked, k))


def lenses_of(model: Model, lens: Lenses) -> dict[str, Lens]:
    """Lenses by name, each of this model.

    Raises:
        ValueError: There are none, or one is none or of another model.
    """
    if lens is None:
        return {"logit": logit(model)}
    named = dict(lens) if isinstance(lens, Mapping) else {getattr(lens, "kind", "lens"): lens}
    if not named:
        raise ValueError("lens is empty; wanted at least one, or None for the logit lens")
    for name, one in named.items():
        if not isinstance(one, Lens):
            raise ValueError(f"lens[{name!r}]={one!r}; wanted a Lens, as mi.lens.logit(model)")
        one.check(model)
    return named


def chosen_layers(lens: Lens, layers: Any, n_layers: int) -> tuple[int, ...]:
    """The layers that are asked for, of those that a lens reads; in order.

    Raises:
        ValueError: It does not read one of them.
    """
    there = lens.layers(n_layers)
    if layers is None:
        return there
    wanted = sorted(indices("layers", layers, n_layers + 1))
    missing = [layer for layer in wanted if layer not in there]
    if missing:
        raise ValueError(
            f"layers={wanted}: {lens!r} runs the last {lens.blocks} blocks itself, and does not "
            f"read layer {missing[0]}; wanted some of {list(there)}"
        )
    return tuple(wanted)


def _read(
    run: Run, unembed: Unembed, lens: Lens, asked: Asked, layers: tuple[int, ...], k: int
) -> xr.Dataset:
    """The result of one lens."""
    columns = Columns.of(layers, run.n_layers, lens.ahead)
    wanted = sorted({*columns.layers, run.n_layers})
    decoded = Decoded.of(run.forward, unembed, lens, run.streams, wanted)
    tokens, real = run.tokens, asked.padded.real
    table = _Table(asked, layers, k)
    at = torch.tensor(asked.positions)
    texts, places = asked.rows()
    lengths = torch.full((len(tokens),), run.length)
    lengths = lengths if asked.padded.lengths is None else asked.padded.lengths.cpu()
    there = at[places] + lens.ahead < lengths[texts]
    texts, places = texts[there], places[there]
    following = next_tokens(tokens, real)
    for some in torch.arange(len(texts)).split(rows_at_once(unembed, len(columns))):
        text, place = texts[some], places[some]
        rows = text.to(tokens.device), at[place].to(tokens.device)
        named = {
            "next": following[rows[0], rows[1] + lens.ahead],
            "input": tokens[rows],
            **{name: ids.to(tokens.device)[rows[0]] for name, ids in asked.targets.items()},
        }
        known = {name: (0 <= ids) & (ids < unembed.d_vocab) for name, ids in named.items()}
        targets = {name: torch.where(known[name], ids, 0) for name, ids in named.items()}
        found = columns.read(unembed, decoded, rows, targets, k=k)
        table.fill(text, place, found, list(columns.shown), known)
    return table.result()


class _Table:
    """The arrays of a result, filled a few positions at a time."""

    def __init__(self, asked: Asked, layers: tuple[int, ...], k: int) -> None:
        self.asked, self.layers = asked, layers
        self.shape = len(asked.padded.tokens), len(layers), len(asked.positions)
        self.values: dict[str, np.ndarray] = {}
        self.top = np.full((*self.shape, k), -1)
        self.top_logp = np.full((*self.shape, k), np.nan, dtype=np.float32)

    def fill(
        self,
        text: Int[Tensor, " row"],
        place: Int[Tensor, " row"],
        found: Distributions,
        shown: list[int],
        known: Mapping[str, Tensor],
    ) -> None:
        """Put in what was found of some positions."""
        where = text.numpy(), slice(None), place.numpy()
        numbers = {
            "kl_output": found.kl[-1],
            "kl_input": found.kl[0],
            "entropy": found.entropy,
            "agrees": (found.top[..., 0] == found.top[-1:, :, 0]).float(),
        }
        for name, logits in found.logits.items():
            numbers[f"logp_{name}"] = _known(logits - found.total, known.get(name))
            numbers[f"rank_{name}"] = _known(found.ranks[name].float(), known.get(name))
        if "foil" in found.logits:
            numbers["logit_difference"] = found.logits["target"] - found.logits["foil"]
        for name, values in numbers.items():
            if name not in self.values:
                self.values[name] = np.full(self.shape, np.nan, dtype=np.float32)
            self.values[name][where] = to_numpy(values[shown]).T
        logp = found.top_logits - found.total[..., None]
        self.top[where] = to_numpy(found.top[shown].transpose(0, 1))
        self.top_logp[where] = to_numpy(logp[shown].transpose(0, 1))

    def result(self) -> xr.Dataset:
        """All of them, without labels of tokens."""
        dims = ("prompt", "layer", "pos")
        found = xr.Dataset({name: (dims, values) for name, values in self.values.items()})
        found["top_id"] = ((*dims, "rank"), self.top)
        found["top_logp"] = ((*dims, "rank"), self.top_logp)
        found = found.assign_coords(layer_coords(self.layers))
        stays = found["agrees"].isel(layer=slice(None, None, -1)).cumprod("layer").sum("layer")
        found["depth"] = _layer_at(found, len(self.layers) - stays)
        if "rank_target" in found:
            first = (found["rank_target"] == 0).argmax("layer")
            ever = (found["rank_target"] == 0).any("layer")
            found["first"] = _layer_at(found, first).where(ever)
        return found


def _known(values: Tensor, known: Tensor | None) -> Tensor:
    return values if known is None else values.masked_fill(~known, torch.nan)


def _layer_at(found: xr.Dataset, index: xr.DataArray) -> xr.DataArray:
    """The layer at an index of those that were read; NaN where nothing was."""
    layers = np.append(found["layer"].values.astype(np.float32), np.nan)
    at = index.fillna(len(layers) - 1).astype(int)
    return at.copy(data=layers[at.values]).where(found["entropy"].notnull().any("layer"))
