"""What dictionaries make of the components they are of: active latents, a bias, and the error."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from jaxtyping import Bool
from torch import Tensor

from mlp_interp.dictionaries import Dictionary, Latents, Reading
from mlp_interp.models import Weights
from mlp_interp.residual.parts import Dense, Part, Scaled
from mlp_interp.residual.stream import Residual
from mlp_interp.sites import Site

__all__ = ["parts_of", "split"]


def split(
    weights: Weights,
    residual: Residual,
    dictionaries: Sequence[Dictionary],
    at: Callable[[Site], Tensor],
) -> Residual:
    """A residual with some components split into what dictionaries make of them.

    Args:
        weights: The model's.
        residual: The stream as a sum of components.
        dictionaries: At most one of a layer.
        at: Gives what was kept at a site, at the positions of the residual.

    Raises:
        ValueError: Two of a layer, or one of no component of the residual.
    """
    if not dictionaries:
        return residual
    parts: dict[Site, Sequence[Part]] = {part.sites[0].whole: [part] for part in residual.parts}
    layers = [one.layer for one in dictionaries]
    for n, one in enumerate(dictionaries):
        one.check(weights, name=f"dictionaries[{n}]")
        if layers.count(one.layer) > 1:
            raise ValueError(
                f"dictionaries has {layers.count(one.layer)} of layer {one.layer}; wanted one, "
                "for latents are named by their layer"
            )
        if one.site not in parts or one.spans + one.ahead > 1:
            places = ", ".join(site.label for site in one.sites)
            raise ValueError(
                f"dictionaries[{n}] is of {places}; wanted one component of a residual at "
                f"level={residual.level!r}"
            )
        parts[one.site] = parts_of(weights, one, at, residual.real)
    return replace(residual, parts=tuple(part for some in parts.values() for part in some))


def parts_of(
    weights: Weights,
    one: Dictionary,
    at: Callable[[Site], Tensor],
    real: Bool[Tensor, "batch pos"] | None = None,
) -> list[Dense | Scaled]:
    """What a dictionary makes of what is at its place: active latents, bias, skip, and the error.

    Args:
        weights: The model's.
        one: The dictionary, of one layer.
        at: Gives what was kept at a site.
        real: Where text is, not padding; None for everywhere.
    """
    reading, written, layer = Reading(weights, [one]), at(one.site), one.layer
    for name, place in reading.wanted:
        reading.note(name, place, at(Site(name, place)))
    rebuilt, latents = one(reading.read(one, written))
    bias = latents.rescaled(one.b_dec.expand(*latents.values.shape[:-1], -1))
    biases = Dense((Site("b_dec", layer),), bias.to(written)[:, :, None])
    found: list[Dense | Scaled] = [*_active(one, latents, written, real), biases]
    if latents.skipped is not None:
        passing = latents.skipped if latents.scale is None else latents.skipped * latents.scale
        found.append(Dense((Site("skip", layer),), passing.to(written)[:, :, None]))
    error = (written - rebuilt.to(written))[:, :, None]
    return [*found, Dense((Site("error", layer),), error)]


def _active(
    one: Dictionary, latents: Latents, like: Tensor, real: Bool[Tensor, "batch pos"] | None
) -> list[Scaled]:
    """The latents that are active at some token that is asked about."""
    values = latents.values
    if real is not None:
        values = values * real[..., None].to(values)
    chosen, places = latents.indices.unique(return_inverse=True)
    empty = values.new_zeros(*values.shape[:-1], len(chosen))
    coefficients = empty.scatter_add(-1, places, values)
    on = (coefficients > 0).flatten(0, 1).any(0)
    if not bool(on.any()):
        return []
    chosen = chosen[on]
    sites = tuple(Site("latents", one.layer, neuron=int(n)) for n in chosen)
    weighted = latents.written(coefficients[..., on])
    return [Scaled(sites, weighted.to(like), one.W_dec[chosen].to(like))]
