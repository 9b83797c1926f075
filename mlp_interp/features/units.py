"""Of which units an index is, and one number of each for every document."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from mlp_interp.corpus import SweepOptions
from mlp_interp.corpus import sweep as run_sweep
from mlp_interp.corpus.reducers.of_latents import OfLatents
from mlp_interp.dictionaries import Dictionary
from mlp_interp.dictionaries.reading import check_given, one_or_more
from mlp_interp.features.documents import HeadsOfDocuments, OfDocuments
from mlp_interp.models import Weights
from mlp_interp.models.padding import Padded
from mlp_interp.models.protocol import Model
from mlp_interp.sites import HEADS, Site

__all__ = ["by_document", "dictionaries_of", "site_at", "unit_of"]

_KINDS = {"neuron": "post", "head": "z", "latent": "latents"}


def unit_of(found: xr.Dataset | xr.DataArray) -> str:
    """What an index is of: ``"neuron"``, ``"head"`` or ``"latent"``, the name of a dim.

    Raises:
        ValueError: It is no index.
    """
    for name in _KINDS:
        if name in found.dims:
            return name
    raise ValueError(f"found has dims {list(found.dims)}; wanted the Dataset of features.index")


def site_at(unit: str, layer: int, place: int) -> Site:
    """A neuron, head or latent."""
    return Site(_KINDS[unit], layer, **{"head" if unit == "head" else "neuron": place})


def dictionaries_of(weights: Weights, given: Any) -> list[Dictionary]:
    """Dictionaries in the order of their layers; None for none.

    Raises:
        ValueError: They are none, of another model, of several sizes, or two of one layer.
    """
    if given is None:
        return []
    listed = one_or_more(given)
    for n, one in enumerate(listed):
        check_given(weights, one, name=f"dictionaries[{n}]")
    layers, sizes = [one.layer for one in listed], {one.n_latents for one in listed}
    if len({*layers}) < len(layers) or len(sizes) > 1:
        raise ValueError(
            f"dictionaries of layers {layers} with {[one.n_latents for one in listed]} latents; "
            "wanted one of each layer, all of one size: others by themselves"
        )
    return sorted(listed, key=lambda one: one.layer)


def by_document(
    model: Model,
    documents: Padded,
    dictionaries: Sequence[Dictionary],
    *,
    sweep: SweepOptions,
    **options: Any,
) -> xr.DataArray:
    """One number of every unit for every document, ``[sequence, layer, unit]``.

    Args:
        model: The model.
        documents: The documents.
        dictionaries: Whose latents; none for what is at the site.
        sweep: How they are run.
        **options: Of `OfDocuments`.
    """
    if not dictionaries:
        kind = HeadsOfDocuments if options["site"] in HEADS else OfDocuments
        reducer = {"documents": kind(**options)}
        found = run_sweep(model, documents, reducer, options=sweep)["documents"]
        return _numbered(found["value"].assign_attrs(found.attrs))
    weights, reducers = Weights.of(model), {}
    for one in dictionaries:
        inner = OfDocuments(**options | {"site": "post", "layers": (one.layer,)})
        reducers[f"{one.layer}"] = OfLatents.of(weights, one, inner)
    swept = run_sweep(model, documents, reducers, options=sweep)
    layers = [found["value"].assign_coords(layer=int(name)) for name, found in swept.items()]
    about = {"dictionary": [repr(one) for one in dictionaries]}
    joined = xr.concat(layers, "layer").transpose("sequence", "layer", "latent")
    return _numbered(joined.assign_attrs({**next(iter(swept.values())).attrs, **about}))


def _numbered(value: xr.DataArray) -> xr.DataArray:
    unit = unit_of(value)
    return value.assign_coords({unit: np.arange(value.sizes[unit])})
