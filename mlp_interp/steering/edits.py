"""From directions and labels to edits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, SupportsFloat

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from mlp_interp.edits import Edit
from mlp_interp.edits.edit import Indices
from mlp_interp.models.indices import finite_number, indices, integers
from mlp_interp.sites import GATED, HEADS, NEURONS, STREAM, Site, SiteLike, neuron_of, site_of
from mlp_interp.steering.directions.result import direction_dims

__all__ = ["Direction", "LayerVectors", "add", "hold", "labelled", "project_out", "scale"]

Direction = xr.DataArray | Tensor | np.ndarray | Sequence[float]
"""A direction of this package, or a bare vector of the stream."""


def add(
    direction: Direction,
    coefficient: SupportsFloat = 1.0,
    *,
    layers: int | Sequence[int] | None = None,
    positions: Indices = None,
) -> list[Edit]:
    """Add a direction to the activations where it belongs.

    Args:
        direction: A direction of this package; or a vector ``[d_model]`` of yours, a tensor, an
            array or a list, which is one of ``resid_post`` and wants `layers`.
        coefficient: What it is multiplied by, as it is: its own length counts. Coefficient 1 of a
            `mean_difference` is one difference of means; negative ones turn the other way.
        layers: At which of its layers; several add each layer's own direction there. None wants a
            direction of one layer.
        positions: Which positions, as in `Edit`; None for all. A direction of `activation_addition`
            goes to the first positions unless others, as many, are given.

    Returns:
        Edits for `steer`, `Runner.run` and all that takes edits.

    Raises:
        ValueError: It is no direction, has no such layer, or several and none is chosen; the
            coefficient is no finite number; positions that are not as many as the direction's.

    Example:
        >>> from mlp_interp import load_model
        >>> from mlp_interp.steering import output_direction
        >>> (edit,) = add(output_direction(load_model("nano"), "L3N5"), 4.0)
        >>> edit.site.label, edit.action.name
        ('3.resid_post', 'add')
    """
    direction = labelled(direction, layers)
    vectors = LayerVectors.of(direction)
    times = finite_number("coefficient", coefficient)
    if "pos" in direction.dims:
        positions = _first(positions, direction.sizes["pos"])
    return [
        Edit.add(Site(vectors.site, at), times * value, positions=positions, units=vectors.heads)
        for at, value in vectors.at(layers)
    ]


def project_out(
    direction: Direction,
    *,
    layers: int | Sequence[int] | None = None,
    everywhere: bool = False,
    positions: Indices = None,
) -> list[Edit]:
    """Remove from activations what lies along a direction.

    Args:
        direction: A direction of this package, without positions of its own; or a vector of yours,
            as in `add`.
        layers: At which of its layers; None wants a direction of one layer.
        everywhere: Not only where the direction belongs, but from all that writes to the stream:
            the embedding and every attention and MLP output. No layer can then read or write along
            it (directional ablation). The direction is one of the stream, at one layer.
        positions: Which positions, as in `Edit`; None for all.

    Returns:
        Edits, as of `add`.

    Raises:
        ValueError: As `add`; `everywhere` with a direction that is not one vector of the stream.

    References:
        Arditi et al. 2024, arXiv:2406.11717, section 2.4.

    Example:
        >>> from mlp_interp import load_model
        >>> from mlp_interp.steering import output_direction
        >>> value = output_direction(load_model("nano"), "L3N5")
        >>> len(project_out(value)), len(project_out(value, everywhere=True))
        (1, 9)
    """
    direction = labelled(direction, layers)
    vectors = LayerVectors.of(direction)
    if "pos" in direction.dims:
        raise ValueError("direction has positions; wanted one without to project out")
    listed = vectors.at(layers)
    if everywhere:
        return _everywhere(vectors, listed, positions)
    if vectors.heads is None:
        return [Edit.project_out(Site(vectors.site, n), v, positions=positions) for n, v in listed]
    return [
        Edit.project_out(Site(vectors.site, at, head=head), value, positions=positions)
        for at, values in listed
        for head, value in zip(vectors.heads, values, strict=True)
    ]


def hold(neuron: SiteLike, value: SupportsFloat, *, positions: Indices = None) -> list[Edit]:
    """Hold a neuron at one activation, whatever it would do by itself.

    Args:
        neuron: ``"L3N669"`` (after the nonlinearity), ``"L3N669.pre"`` (before it), a `Site`, or
            the pair ``(layer, neuron)``.
        value: The activation: high, 0, or its mean, perhaps as measured over a corpus.
        positions: Which positions, as in `Edit`; None for all.

    Returns:
        One edit.

    Raises:
        ValueError: It is no neuron, or the value is no finite number.

    Example:
        >>> hold("L3N669", 5.0)
        [Edit(set at L3N669: 5)]
    """
    return [Edit.set(neuron_of(neuron), finite_number("value", value), positions=positions)]


def scale(component: Site | str, factor: SupportsFloat, *, positions: Indices = None) -> list[Edit]:
    """Multiply what a component writes: 0 silences it, 2 doubles it.

    Args:
        component: ``"3.mlp"``, ``"3.attn"``, ``"L2H1"``, ``"L3N669"``, or any site.
        factor: What to multiply by.
        positions: Which positions, as in `Edit`; None for all.

    Returns:
        One edit.

    Raises:
        ValueError: It is no component that can be edited, or the factor is no finite number.

    Example:
        >>> scale("L2H1", 2.0)[0].site.label
        'L2H1'
    """
    place = site_of(component, argument="component")
    return [Edit.scale(place, finite_number("factor", factor), positions=positions)]


def labelled(direction: Any, layers: int | Sequence[int] | None) -> xr.DataArray:
    """A direction as it is; of a bare vector, that direction at the output of each of the layers.

    Raises:
        ValueError: It is no vector of finite numbers, or has no layers, counted from 0.
    """
    if isinstance(direction, xr.DataArray):
        return direction
    try:
        vector = torch.as_tensor(direction).detach().cpu().double().numpy()
    except (TypeError, ValueError, RuntimeError):
        vector = np.empty(0)
    if vector.ndim != 1 or not len(vector) or not np.isfinite(vector).all():
        shape = tuple(getattr(direction, "shape", ()))
        raise ValueError(
            f"direction={type(direction).__name__} {shape}; wanted a DataArray of "
            "mlp_interp.steering, or a finite vector [d_model]"
        )
    listed = integers("layers", layers)
    if not listed or min(listed) < 0:
        raise ValueError(
            f"layers={layers} with a bare vector; wanted those, from 0, to whose outputs it belongs"
        )
    return xr.DataArray(
        np.tile(vector, (len(listed), 1)),
        dims=direction_dims("resid_post"),
        coords={"layer": list(listed)},
        attrs={"site": "resid_post"},
    )


@dataclass(frozen=True)
class LayerVectors:
    """A direction as vectors by layer: one, or one for each head."""

    site: str
    by_layer: dict[int, Tensor]
    heads: tuple[int, ...] | None
    n_layers: int | None

    @classmethod
    def of(cls, direction: xr.DataArray) -> "LayerVectors":
        """Read a direction.

        Raises:
            ValueError: It is no direction of this package.
        """
        site = direction.attrs.get("site")
        if site not in (*STREAM, *HEADS, *NEURONS, *GATED):
            raise ValueError(
                f"direction.attrs['site']={site!r}; wanted a direction of mlp_interp.steering "
                "(arithmetic may drop attributes: give the coefficient to add instead)"
            )
        for name in ("layer", "head"):  # one of them may have been chosen with .sel or .isel
            if name in direction.coords and name not in direction.dims:
                direction = direction.expand_dims(name)
        dims = direction_dims(site)
        if "pos" in direction.dims:
            dims = ("layer", "pos", *dims[1:])
        if {*direction.dims} != {*dims} or "layer" not in direction.coords:
            raise ValueError(f"direction has dims {direction.dims}; wanted {dims}")
        direction = direction.transpose(*dims)
        layers = [int(layer) for layer in direction["layer"].values]
        values = torch.from_numpy(np.array(direction.values, dtype=np.float64))
        heads = tuple(map(int, direction["head"].values)) if "head" in dims else None
        n_layers = direction.attrs.get("n_layers")
        n_layers = None if n_layers is None else int(n_layers)  # a file gives numpy's
        return cls(site, dict(zip(layers, values, strict=True)), heads, n_layers)

    def at(self, layers: int | Sequence[int] | None) -> list[tuple[int, Tensor]]:
        """The vectors of some of its layers, negative ones counted from the model's last."""
        have = list(self.by_layer)
        if layers is None:
            if len(have) > 1:
                raise ValueError(
                    f"layers=None with a direction at layers {have}; wanted one or several of them"
                )
            return list(self.by_layer.items())
        listed = indices("layers", layers, self.n_layers or max(have) + 1)
        if not {*listed} <= {*have}:
            raise ValueError(f"layers={layers}; wanted some of {have}, where the direction is")
        return [(n, self.by_layer[n]) for n in listed]


def _everywhere(
    vectors: LayerVectors, listed: list[tuple[int, Tensor]], positions: Indices
) -> list[Edit]:
    if vectors.site not in STREAM or len(listed) != 1 or vectors.n_layers is None:
        raise ValueError(
            f"everywhere=True with {len(listed)} layers of {vectors.site!r}; wanted one vector "
            "of the stream"
        )
    places = [Site("resid_pre", 0)]
    for layer in range(int(vectors.n_layers)):
        places += [Site("attn_out", layer), Site("mlp_out", layer)]
    return [Edit.project_out(place, listed[0][1], positions=positions) for place in places]


def _first(positions: Indices, length: int) -> Indices:
    if positions is None:
        return range(length)
    listed = list(integers("positions", positions) or ())
    if len(listed) != length:
        raise ValueError(f"positions={listed} for a direction of {length}; wanted as many")
    return listed
