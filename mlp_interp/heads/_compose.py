"""Which heads read what which other heads write, more than chance would have it."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
import xarray as xr
from torch import Tensor

from mlp_interp.dictionaries import Dictionary
from mlp_interp.heads._sides import compared, heard, sides_of
from mlp_interp.heads._spectral import spectral
from mlp_interp.heads._vocabulary import SAMPLE, Vocabulary
from mlp_interp.heads._which import (
    check_some_later,
    checked_distance,
    head_coords,
    listed_heads,
)
from mlp_interp.models import Weights, describe
from mlp_interp.models.indices import each
from mlp_interp.models.options import check_choice, checked_number, checked_seed
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.models.token_streams import TokenSource
from mlp_interp.results import strings, variable
from mlp_interp.sites import Site

__all__ = ["compose"]

KINDS = ("q", "k", "v")
Measure = Literal["frobenius", "spectral", "overlap", "tokens"]
_Found = tuple[list[int], list[int], tuple[Tensor, ...]]
"""Which writers, which readers, and their scores, deviations and chances."""

_NUMBERS = 2**25
"""Of what heads write and read with that is held at once: 128 MiB. In larger models writers alone
take as much; then readers of half their number are held beside them."""


@own_mode()
@torch.no_grad()
def compose(
    model: Model,
    *,
    writers: Any = None,
    readers: Any = None,
    measure: Measure = "frobenius",
    distance: int | None = None,
    energy: float = 0.9,
    source: TokenSource = "extended",
    sample: int | None = SAMPLE,
    seed: int = 0,
) -> xr.Dataset:
    """How much of what each head writes the queries, keys and values of later heads can read.

    With ``A = V O`` of a writer and ``B`` of a reader (``Q R K^T`` for its queries, ``K R^T Q^T``
    for its keys, ``V O`` for its values), the score is ``|A B| / (|A| |B|)`` with Frobenius norms:
    Q-, K- and V-composition. By itself it says nothing: it depends on the ranks of both. So `z`
    compares its square with what it would be if the writer pointed anywhere, equally stretched:
    under a random rotation of one against the other, mean and variance are known exactly for any
    spectra. Heads that compose by accident of a common subspace, in which all heads write, have
    large `z` too, and a negative one says that a reader avoids a writer.

    Weights alone say that a path exists, not that text takes it: see `induction`, `path_patch`.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        writers: Labels of heads, one or several; None for all. Or a dictionary of one layer: then
            each of its latents writes its decoder row, whatever its activation.
        readers: Labels of what reads (``"L1H3.k"``), or ``"q"``, ``"k"`` or ``"v"`` for those of
            all heads; one or several; None for all of all three.
        measure: With what the sizes of ``A B``, ``A`` and ``B`` are measured:

            - ``"frobenius"``: over all directions alike;
            - ``"spectral"``: their largest singular values: the share of the strongest read of the
              strongest write, which one direction in common makes large;
            - ``"overlap"``: of the spaces alone: ``A`` and ``B`` are replaced by projections on the
              directions that hold `energy` of each;
            - ``"tokens"``: over the tokens at the other two ends, as `source` has them, less their
              means: those that the writer attends to, and those of the query (or of the key, or,
              for values, of the logits). The square is the mean square of cosines between what the
              writer writes for one token and the reader looks for with another, weighed by their
              lengths.
        distance: Between query and key, whose rotation stands between the two; None for the
            average over distances 1 to 31 of the Gram matrix. Values have none.
        energy: For the overlap, the share of the squared norm.
        source: For tokens: ``"embed"``, ``"extended"`` or `TokenStreams`.
        sample: How many tokens stand for a larger vocabulary, drawn by `seed`; None for all.
        seed: Of that draw, and of the rotations that the spectral measure's chance is drawn with.

    Returns:
        A Dataset over ``writer, reader`` with ``score``, ``z`` and ``expected``, NaN where the
        reader comes before or beside the writer, or a latent writes nothing; and over ``reader``
        and ``writer`` their layers and heads. ``expected`` is the score whose square is the mean
        under rotations. For the spectral measure no closed form is known: ``expected`` is the mean
        of 48 random rotations, and ``z`` is in their deviations, which so many draws give to a
        tenth.

    Raises:
        ValueError: A head or reader that the model does not have or that is named twice, no reader
            in a later layer than some head that writes (in a model of one layer there is none), a
            dictionary of several layers or of another model, or one beside the spectral measure, an
            unknown measure, a distance beyond the context, a share outside 0 to 1, a source or
            sample that cannot be, or scores that are more than products of queries and keys where
            queries or keys are asked for.

    References:
        Elhage et al., "A Mathematical Framework for Transformer Circuits", 2021, on composition.
        Moments of orthogonal matrices: Collins and Sniady, "Integration with respect to the Haar
        measure on unitary, orthogonal and symplectic group", 2006.

    Example:
        >>> from mlp_interp import load_model
        >>> found = compose(load_model("nano"), writers="L0H0", readers=["L1H2.k", "L1H2.v"])
        >>> found.z.values.round().tolist()
        [[87.0, -10.0]]
    """
    weights = Weights.of(model)
    check_choice("measure", measure, get_args(Measure))
    energy = checked_number("energy", energy, lambda x: 0 < x <= 1, "a share above 0, up to 1")
    checked_distance(weights, distance)
    reading = _readers(weights, readers)
    latents, writing = _writers(weights, writers, reading, measure)
    checked_seed(seed)
    tokens = None
    if measure == "tokens":
        tokens = Vocabulary.of(model, source, sample=sample, seed=seed)
    elif (source, sample) != ("extended", SAMPLE):
        raise ValueError(
            f"source={source!r}, sample={sample} beside measure={measure!r}, which asks for no "
            "tokens; wanted measure='tokens'"
        )
    options = {"measure": measure, "distance": distance, "energy": energy, "tokens": tokens}
    if latents is None:
        measured = partial(spectral, seed=seed) if measure == "spectral" else compared
        groups = _of_heads(weights, writing, reading, measured, options)
    else:
        groups = _of_latents(weights, latents, reading, options)
    score, z, expected = (
        torch.full((len(writing), len(reading)), torch.nan, dtype=torch.float64) for _ in range(3)
    )
    for rows, columns, found in groups:
        for target, value in zip((score, z, expected), found, strict=True):
            target[torch.tensor(rows)[:, None], torch.tensor(columns)] = value.cpu()
    dims = ("writer", "reader")
    above = "it over chance" if measure == "spectral" else "its square over chance"
    about = "by chance, its mean" if measure == "spectral" else "by chance, root of its mean square"
    variables = {
        "score": variable(dims, score, unit="share", long_name=f"{measure} composition score"),
        "z": variable(dims, z, unit="sd", long_name=above),
        "expected": variable(dims, expected, unit="share", long_name=about),
    }
    coords = {
        **head_coords(writing, "writer"),
        **_reader_coords(reading),
    }
    attrs = {
        **describe(model),
        "analysis": "composition of heads",
        "long_name": "composition of heads, from weights",
        "unit": "see each variable",
        "data": "the weights alone",
        "measure": measure,
        "distance": "1 to 31" if distance is None else distance,
        "exact": 1,
        "seed": seed,
    }
    if measure == "spectral":
        attrs |= {"exact": 0, "approximation": "expected and z are of 48 random rotations"}
    if tokens is not None:
        own = reading if latents is not None else [*writing, *reading]
        attrs |= tokens.attrs({site.layer for site in own})
    return xr.Dataset(variables, coords, attrs)


def _writers(
    weights: Weights, given: Any, reading: Sequence[Site], measure: Measure
) -> tuple[Dictionary | None, list[Site]]:
    """The dictionary whose latents write, if one does, and all that write."""
    if isinstance(given, Dictionary):
        return given, _listed_latents(weights, given, measure)
    writing = listed_heads(weights, given, argument="writers")
    check_some_later(writing, reading)
    return None, writing


def _listed_latents(weights: Weights, one: Dictionary, measure: Measure) -> list[Site]:
    """All latents of a dictionary, as writers."""
    one.check(weights, name="writers")
    if one.spans + one.ahead > 1 or measure == "spectral":
        raise ValueError(
            f"writers={one!r} with measure={measure!r}; wanted a dictionary that writes to one "
            "layer, and another measure than 'spectral'"
        )
    return [Site("latents", one.layer, neuron=n) for n in range(one.n_latents)]


def _readers(weights: Weights, given: Any) -> list[Site]:
    """The queries, keys and values that somebody named, each head's own."""
    found: list[Site] = []
    for reader in KINDS if given is None else each(given):
        if isinstance(reader, str) and reader in KINDS:
            for layer in range(weights.n_layers):
                found += [Site(reader, layer, head=head) for head in range(weights.n_heads)]
            continue
        site = weights.place(reader, argument="readers", words=KINDS, per_head=True)
        if site.name not in KINDS or site.head is None:
            raise ValueError(
                f"readers={site.label!r}; wanted 'q', 'k', 'v', or those of a head, as "
                f"'L1H0.k' (layers to {weights.n_layers - 1}, heads to {weights.n_heads - 1})"
            )
        found.append(site)
    if not found or len(set(found)) < len(found):
        raise ValueError(
            f"readers={[site.label for site in found]}; wanted at least one, each once"
        )
    return found


def _of_heads(
    weights: Weights,
    writing: Sequence[Site],
    reading: Sequence[Site],
    measured: Callable[..., tuple[Tensor, ...]],
    options: Mapping[str, Any],
) -> Iterator[_Found]:
    """What heads write, beside a group of readers after the other."""
    order, writer = _by_layer(writing), None
    ordered, layers = [writing[i] for i in order], [writing[i].layer or 0 for i in order]
    numbers = weights.d_model * weights.d_head
    for places in _groups(reading, numbers, len(writing) * numbers):
        some = [reading[i] for i in places]
        before = [bisect_left(layers, site.layer or 0) for site in some]
        # Made with the first readers: they have matrices in common.
        made = sides_of(weights, *([ordered] if writer is None else []), some, **options)
        writer = made[0] if writer is None else writer
        yield order, places, measured(writer, made[-1], before, _rotated(weights))
        del made  # before others are made


def _of_latents(
    weights: Weights, latents: Dictionary, reading: Sequence[Site], options: Mapping[str, Any]
) -> Iterator[_Found]:
    """What a dictionary's latents write, beside a group of readers after the other."""
    rows, after = weights.norm.keep(latents.W_dec), latents.layer - (latents.writes == "resid_pre")
    for places in _groups(reading, weights.d_model * weights.d_head, rows.numel()):
        some = [reading[i] for i in places]
        (side,) = sides_of(weights, some, **options)
        above = torch.tensor([(site.layer or 0) > after for site in some])
        yield [*range(len(rows))], places, heard(rows, side, above, _rotated(weights))


def _rotated(weights: Weights) -> int:
    """In how many dimensions one may be rotated against the other."""
    return weights.d_model - (weights.norm.kind == "layer")


def _groups(reading: Sequence[Site], numbers: int, beside: int) -> list[list[int]]:
    """Places of the readers that are held at once, those of early layers first.

    What is written is multiplied out for each group anew, but only by heads before its readers: few
    where these are of early layers.

    Args:
        reading: All readers.
        numbers: Of one reader.
        beside: Numbers that are held beside them.
    """
    most = max(1, max(_NUMBERS - beside, beside // 2) // numbers)
    order = torch.tensor(_by_layer(reading))
    return [some.tolist() for some in order.tensor_split(-(-len(order) // most))]


def _by_layer(sites: Sequence[Site]) -> list[int]:
    """Places of some sites, in the order of their layers."""
    return sorted(range(len(sites)), key=lambda i: sites[i].layer or 0)


def _reader_coords(sites: Sequence[Site]) -> dict[str, Any]:
    return {
        **head_coords(sites, "reader"),
        "reader_kind": ("reader", strings([site.name for site in sites])),
        "reader_head": (
            "reader",
            strings([Site("z", site.layer, head=site.head).label for site in sites]),
        ),
    }
