"""What edits wrote to the stream: the part of it that no component accounts for.

A cache does not say whether it was made with edits on the model, but it shows: where a stream is
another than the one before it and what was added in between, something else wrote there.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mlp_interp.models import Weights
from mlp_interp.models.protocol import Cache
from mlp_interp.models.remember import has_hooks, hooked
from mlp_interp.models.writes import written
from mlp_interp.residual.parts import Part
from mlp_interp.sites import Site

__all__ = [
    "adds_up",
    "between",
    "check_units",
    "differ",
    "edit_places",
    "outputs_of",
    "streams_of",
    "told_by",
    "written_by_edits",
]

_WHOLE = {"z": "attn_out", "post": "mlp_out"}
_UNITS = {"z": "heads", "post": "neurons"}

At = Callable[[Site], Tensor]
"""From a place to its activation ``[batch, pos, ...]``."""


def adds_up(parts: Sequence[Part], total: Float[Tensor, "batch pos d_model"]) -> bool:
    """Whether components sum to a stream, up to rounding."""
    sums = [part.sum() for part in parts]
    return not differ(total, sum(sums, torch.zeros_like(total)), sums)


def outputs_of(weights: Weights, layers: int) -> list[Site]:
    """The attention and MLP outputs of so many layers."""
    return [Site(name, layer) for layer in range(layers) for name in weights.outputs]


def edit_places(weights: Weights) -> list[Site]:
    """What hooks on the model may write to the stream, in order."""
    streams = hooked(weights.model, streams_of(weights, weights.n_layers))
    return [Site(f"edit:{place.name}", place.layer) for place in streams]


def told_by(weights: Weights, wholes: Iterable[Site]) -> list[Site]:
    """Outputs by which it shows whether heads and neurons are what their block wrote.

    Nothing where no hooks are on the model that could have changed an output.
    """
    if not has_hooks(weights.model):
        return []
    outputs = (Site(_WHOLE[w.name], w.layer) for w in wholes if w.name in _WHOLE)
    return list(dict.fromkeys(outputs))


def streams_of(weights: Weights, layers: int) -> list[Site]:
    """The streams around so many blocks, as they are before and after edits."""
    names = [(n, layer) for layer in range(layers) for n in ("resid_pre", "resid_post")]
    names += [("resid_pre", layers)] if layers < weights.n_layers else []
    return [Site(*name) for name in names]


def between(weights: Weights, layers: int) -> list[Site]:
    """What `written_by_edits` cannot do without, besides the embeddings."""
    inputs = [Site("resid_pre", layer) for layer in range(min(layers + 1, weights.n_layers))]
    return [*inputs, *outputs_of(weights, layers)]


def written_by_edits(
    weights: Weights, cache: Cache, layers: int, at: At
) -> dict[Site, Float[Tensor, "batch pos d_model"]]:
    """What stands in the stream of so many layers and was written by no component.

    Args:
        weights: The model's.
        cache: Says which streams were kept; ``resid_post`` tells an edit there from one at the next
            block's ``resid_pre``, and is not needed.
        layers: How many.
        at: Gives what was kept.

    Returns:
        By the place of the edit, in order; nothing where there are none.
    """
    kept, found = {*cache}, {}
    embeddings = ("embed", "pos_embed")[: 1 + weights.has_pos_embed]
    added = [at(Site(name)) for name in embeddings]
    stream = torch.zeros_like(added[0])
    for layer in range(layers + 1):
        places = [Site("resid_post", layer - 1)] if layer else []
        places += [Site("resid_pre", layer)] if layer < weights.n_layers else []
        expected = sum(added, stream)
        first = places[0]
        for place in (place for place in places if place.hook_name in kept):
            now = at(place)
            if differ(now, expected, [stream, *added]):
                found[Site(f"edit:{first.name}", first.layer)] = now - expected
            # Where the output of the block before was kept, too, this is what came after it.
            first, expected = places[-1], now
        stream = expected
        if layer < layers:
            added = [at(Site(name, layer)) for name in weights.outputs]
    return found


def check_units(weights: Weights, cache: Cache, wholes: Iterable[Site], at: At) -> None:
    """Refuse heads or neurons that do not sum to what their block's attention or MLP wrote.

    Args:
        weights: The model's.
        cache: Says what was kept.
        wholes: Places in the model; those that are ``z`` or ``post`` are looked at.
        at: Gives what was kept.

    Raises:
        ValueError: They do not.
    """
    for whole in wholes:
        if whole.name in _WHOLE and Site(_WHOLE[whole.name], whole.layer).hook_name in cache:
            _check_units(weights, whole, at)


def _check_units(weights: Weights, whole: Site, at: At) -> None:
    layer, name = whole.layer or 0, whole.name
    output, units = Site(_WHOLE[name], layer), _UNITS[name]
    expected, total = written(weights, whole, at(whole)), at(output)
    if differ(total, expected, [expected]):
        apart = (total - expected).norm() / total.norm().clamp_min(1e-12)
        raise ValueError(
            f"cache: the {units} of block {layer} do not sum to {output.label!r}, which differs "
            f"from them by {float(apart):.1e} of its norm, as where an edit has changed it or the "
            f"cache is of another model; wanted {output.label!r} as a whole: level='component'"
        )


def differ(
    total: Float[Tensor, "batch pos d_model"],
    expected: Float[Tensor, "#batch pos d_model"],
    terms: Iterable[Tensor],
) -> bool:
    """Whether two vectors at any position are apart by more than rounding of what was summed."""
    size = sum((term.norm(dim=-1) for term in terms), total.norm(dim=-1))
    apart = (total - expected).norm(dim=-1)
    return bool((apart > _rounding(total) * size).any())


def _rounding(total: Tensor) -> float:
    if total.dtype not in (torch.float32, torch.float64):
        return 5e-2
    # Where the user lets matrix products round, on graphics processors, they do.
    return 1e-5 if torch.get_float32_matmul_precision() == "highest" else 5e-3
