"""Induction circuits: which heads they are, and all that speaks for it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from mlp_interp.heads._circuits import Circuits
from mlp_interp.heads._compose import compose
from mlp_interp.heads._detect import detect
from mlp_interp.heads._key_path import KeyPath
from mlp_interp.heads._keys import attended
from mlp_interp.heads._match import Matching
from mlp_interp.heads._positions import check_rotated, kernels
from mlp_interp.heads._repeated import Repeated
from mlp_interp.heads._vocabulary import SAMPLE, Vocabulary
from mlp_interp.heads._which import head_coords
from mlp_interp.models import Unembed, Weights, describe
from mlp_interp.models.heads import Heads
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.models.token_streams import TokenSource
from mlp_interp.prompts.texts import padded_texts
from mlp_interp.results import mean_and_error, strings, variable
from mlp_interp.sites import Site

__all__ = ["induction"]

_DISTANCES = 64
_PREVIOUS, _COMPOSED, _CHANCE = 0.5, 10.0, 3.0
_ATTENDS, _CARRIES = 0.4, 0.5
_TEXTS = 16
"""Texts on which paths are measured."""

_ABOUT = {  # unit and long name
    "previous": ("attention", "of the writer to the previous token, by position alone"),
    "compose": ("share", "K-composition score"),
    "compose_z": ("sd", "its square over chance"),
    "match": ("share", "whether the reader looks for the token that the writer brings"),
    "match_null": ("share", "its deviation by chance"),
    "match_z": ("sd", "scores of the same token over those of others"),
    "copying": ("share", "sum of the reader's OV eigenvalues over the sum of their sizes"),
    "copying_null": ("share", "its deviation by chance"),
    "score": ("attention", "of the reader to the token after the same token, on data"),
    "score_se": ("attention", "error over texts"),
    "expected": ("attention", "the same by chance"),
    "expected_se": ("attention", "error over texts"),
    "score_share": ("share", "of the attention margin that the writer's part of keys makes"),
    "knockout": ("nats", "rise of the loss on repeated tokens without the writer's part of keys"),
    "knockout_se": ("nats", "error over texts"),
}

_SCORES = "score", "score_se", "expected", "expected_se"


@dataclass(frozen=True)
class _Static:
    """What weights say of all heads and of the pairs that may be circuits."""

    pairs: list[tuple[Site, Site]]
    rows: list[dict[str, float]]
    held: dict[int, Heads]


@own_mode()
@torch.no_grad()
def induction(
    model: Model,
    *,
    tokens: Any = None,
    n: int = 64,
    period: int = 24,
    source: TokenSource = "extended",
    sample: int | None = SAMPLE,
    seed: int = 0,
) -> xr.Dataset:
    """The induction circuits of a model, with all the evidence: first from weights, then on data.

    An earlier head, the writer, attends to the previous token and brings it along; a later one, the
    reader, looks for keys to which its own token was brought, and copies what stands there. A pair
    is listed if weights alone say so: by position the writer pays half of its attention to the
    previous token (``previous``), the reader's keys read what it writes (``compose_z`` above 10),
    for the token that it wrote (``match``) and copy (``copying``), both above three times their
    deviation by chance.

    Then texts are asked: ``score``, the reader's attention to the token after an earlier
    occurrence, beside ``expected`` (with ``expected_se``); ``score_share``, how much of its
    preference for these keys the writer's part of the keys makes; ``knockout``, how much the loss
    on repeated tokens rises if that part is the same everywhere. Heads that do the same stand in
    for each other, so that a circuit may well have no ``knockout``; heads that share keys all lose
    the part. ``strength`` is ``"strong"`` where ``score`` is at least 0.4 and ``score_share`` 0.5;
    else ``"weak"``.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        tokens: Texts of one length or tokens ``[batch, pos]``, with repetitions; None for `n` texts
            of random tokens that come twice.
        n: Random texts. Shares and knockouts are of the first 16.
        period: Different tokens in each.
        source: What stands for tokens, see `roles`.
        sample: How many tokens stand for a larger vocabulary, drawn by `seed`; None for all.
        seed: Of random texts, that draw, and chance levels.

    Returns:
        A Dataset over ``circuit``, the largest ``compose_z`` first, with ``writer``, ``reader`` and
        the variables above; it is empty where no pair is found. ``attrs["exact"]`` tells whether
        `source` and `sample` leave out nothing of what heads of all layers read of tokens.

    Raises:
        ValueError: As `positions` and `detect`; texts of several lengths, or without a repetition.

    References:
        Elhage et al., "A Mathematical Framework for Transformer Circuits", 2021; Olsson et al.,
        "In-context Learning and Induction Heads", 2022.

    Example:
        >>> from mlp_interp import load_model
        >>> found = induction(load_model("nano"), n=8)
        >>> strong = found.circuit[found.strength == "strong"].values.tolist()
        >>> sorted(strong)[:2], len(strong), found.sizes["circuit"]
        (['L0H0 → L1H0', 'L0H0 → L1H1'], 6, 8)
    """
    weights = Weights.of(model)
    check_rotated(weights, "induction")
    drawn = Repeated.of(weights, n, period, seed) if tokens is None else None
    ran = drawn.tokens if drawn is not None else _texts(model, weights, tokens)
    vocabulary = Vocabulary.of(model, source, sample=sample, seed=seed)
    static = _from_weights(model, weights, vocabulary, seed)
    asked = {"n": n, "period": period, "seed": seed}
    # As lists all of it is text, whatever it ends in.
    rows = _on_data(model, static, ran, None if drawn is not None else ran.tolist(), asked)
    attrs = {
        **describe(model),
        **vocabulary.attrs(range(weights.n_layers)),
        "analysis": "induction circuits",
        "long_name": "induction circuits, from weights and on data",
        "unit": "see each variable",
        "data": f"{len(ran)} texts of {ran.shape[1]} tokens",
        **({} if drawn is None else asked),
    }
    return _dataset(static.pairs, rows, attrs)


def _texts(model: Model, weights: Weights, given: Any) -> Tensor:
    """Tokens in which every text has something to repeat."""
    texts = padded_texts(model, given)
    if texts.padding is not None:
        raise ValueError(
            f"tokens={texts.attrs['data']}; wanted texts of one length (lists of ids where what "
            "they end in is text)"
        )
    tokens = weights.checked(texts.tokens)
    # The loss is that of the next token, which the last one has not.
    if not bool(attended(tokens, "induction")[:, :-1].any(-1).any(-1).all()):
        raise ValueError(
            f"tokens={tuple(tokens.shape)}: a text has no token that comes again after another one "
            "and before its end; wanted repetitions in each"
        )
    return tokens


def _from_weights(model: Model, weights: Weights, vocabulary: Vocabulary, seed: int) -> _Static:
    """The pairs that weights alone take for circuits."""
    previous: dict[Site, float] = {}
    held = {}
    for layer in range(weights.n_layers):
        held[layer] = heads = Heads.of(weights, layer)
        found = kernels(heads, vocabulary.moments(layer), _reach(weights)).mean.softmax(-1)[:, 1]
        previous |= {Site("z", layer, head=i): x for i, x in enumerate(found.tolist())}
    last = weights.n_layers - 1  # what it writes no head reads
    writers = [
        site for site, share in previous.items() if share >= _PREVIOUS and site.layer != last
    ]
    if not writers:
        return _Static([], [], held)
    composed = compose(model, writers=writers, readers="k")
    rows: list[tuple[tuple[Site, Site], dict[str, float]]] = []
    copying: dict[int, tuple[Tensor, float]] = {}
    for writer in writers:
        for layer in range((writer.layer or 0) + 1, weights.n_layers):
            readers = [Site("k", layer, head=head) for head in range(weights.n_heads)]
            here = composed.sel(writer=writer.label, reader=[site.label for site in readers])
            close = [site for site in readers if here.z.sel(reader=site.label) > _COMPOSED]
            if not close:
                continue
            matching = Matching(held[writer.layer or 0], held[layer], vocabulary)
            matched, chance = matching.positivity()[:, writer.unit], matching.chance(seed)
            if layer not in copying:
                copied, _, by_chance = Circuits(held[layer], vocabulary, seed).copying()
                copying[layer] = copied, by_chance
            for site in close:
                copied, by_chance = copying[layer]
                row = {
                    "previous": previous[writer],
                    "compose": float(here.score.sel(reader=site.label)),
                    "compose_z": float(here.z.sel(reader=site.label)),
                    "match": float(matched[site.unit]),
                    "match_null": chance,
                    "match_z": matching.own_z(site.unit, writer.unit, seed),
                    "copying": float(copied[site.unit]),
                    "copying_null": by_chance,
                }
                if all(row[x] > _CHANCE * row[f"{x}_null"] for x in ("match", "copying")):
                    rows.append(((writer, Site("z", layer, head=site.head)), row))
    rows.sort(key=lambda row: -row[1]["compose_z"])
    return _Static([pair for pair, _ in rows], [row for _, row in rows], held)


def _reach(weights: Weights) -> int:
    return min(_DISTANCES, int(weights.model.cfg.n_ctx))


def _on_data(
    model: Model, static: _Static, ran: Tensor, corpus: Any, asked: dict[str, Any]
) -> list[dict[str, float]]:
    """The rows with what texts say."""
    if not static.pairs:
        return []
    data = detect(model, corpus, kinds="induction", **asked).sel(kind="induction")
    unembed, rows = Unembed.of(model), []
    for (writer, reader), row in zip(static.pairs, static.rows, strict=True):
        first, second = (static.held[site.layer or 0] for site in (writer, reader))
        path = KeyPath(first, writer.unit, second, reader.unit, ran[:_TEXTS], unembed)
        share, rise = path.measured()
        knockout, error = mean_and_error(rise)
        at = data.sel(layer=reader.layer, head=reader.unit)
        rows.append(
            row
            | {name: float(at[name]) for name in _SCORES}
            | {"score_share": share, "knockout": float(knockout), "knockout_se": float(error)}
        )
    return rows


def _dataset(
    pairs: list[tuple[Site, Site]], rows: list[dict[str, float]], attrs: dict[str, Any]
) -> xr.Dataset:
    variables = {
        name: variable("circuit", np.array([row[name] for row in rows]), unit=unit, long_name=about)
        for name, (unit, about) in _ABOUT.items()
    }
    strong = [r["score"] >= _ATTENDS and r["score_share"] >= _CARRIES for r in rows]
    words = strings(["strong" if x else "weak" for x in strong])
    variables["strength"] = variable("circuit", words, unit="text")
    names = [f"{writer.label} → {reader.label}" for writer, reader in pairs]
    coords: dict[str, Any] = {"circuit": strings(names)}
    for dim, sites in zip(("writer", "reader"), zip(*pairs, strict=True), strict=False):
        for name, values in head_coords(sites, dim).items():
            coords[name] = ("circuit", values[1] if isinstance(values, tuple) else values)
    return xr.Dataset(variables, coords, attrs)
