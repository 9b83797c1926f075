"""A residual stream as a sum of named components."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor

from mlp_interp.models.norm import Norm
from mlp_interp.models.padding import places
from mlp_interp.residual.parts import Part, Stand
from mlp_interp.results import variable
from mlp_interp.sites import EDITED, Site, component_coords

__all__ = ["LEVELS", "Level", "Residual"]

Level = Literal["component", "head", "neuron"]
LEVELS: tuple[str, ...] = get_args(Level)

_MAX_DENSE = 2**30  # numbers; 4 GiB in float32


@dataclass(frozen=True)
class Residual:
    """One residual stream as a sum of named components.

    Components come in the order in which they are written: the embeddings, then for each layer the
    attention's, then the MLP's; what edits wrote (``edit:3.resid_post``) stands where they did.
    Made by `decompose`.

    Attributes:
        parts: The components, grouped by kind; see `mlp_interp.residual.parts`.
        total: The stream itself, from the cache.
        positions: Token positions that the ``pos`` axis holds.
        level: ``"component"``, ``"head"`` or ``"neuron"``.
        where: Which stream: ``"final"`` or ``"3.resid_pre"``.
        attrs: What results made from this say of the model, and of padding.
        real: Where text is that was asked about; None for everywhere. Elsewhere all that is
            computed of the components is NaN.
    """

    parts: tuple[Part, ...]
    total: Float[Tensor, "batch pos d_model"]
    positions: tuple[int, ...]
    level: Level | Literal["selected"]
    where: str
    attrs: dict[str, Any]
    real: Bool[Tensor, "batch pos"] | None = None

    @property
    def sites(self) -> tuple[Site, ...]:
        """The components' sites, in order."""
        return tuple(site for part in self.parts for site in part.sites)

    @property
    def edits(self) -> tuple[Site, ...]:
        """The components that edits wrote, in order."""
        firsts = (part.sites[0] for part in self.parts)
        return tuple(site for site in firsts if site.name in EDITED)

    @property
    def labels(self) -> list[str]:
        """The components' names: ``embed``, ``0.attn``, ``L3H5``, ``L3N669``, ``3.b_out``."""
        return [site.label for site in self.sites]

    def __len__(self) -> int:
        return sum(len(part.sites) for part in self.parts)

    def vectors(self) -> Float[Tensor, "batch pos component d_model"]:
        """What each component wrote, as one dense tensor.

        Raises:
            ValueError: It would hold more than 2^30 numbers; use `project`, `square_norms` or
                `select` instead.
        """
        size = self.total.numel() * len(self)
        if size > _MAX_DENSE:
            raise ValueError(
                f"vectors of {len(self)} components at {tuple(self.total.shape[:2])} positions "
                f"hold {size:.1e} numbers; wanted at most {_MAX_DENSE:.1e}: use project() or "
                "select()"
            )
        return self._of_text(torch.cat([part.vectors() for part in self.parts], dim=-2))

    def project(
        self, directions: Float[Tensor, "#batch #pos d_model"]
    ) -> Float[Tensor, "batch pos component"]:
        """Dot product of every component with one direction per position, or one for all.

        Neurons are projected through their value vectors: nothing of size
        ``neurons * d_model`` per position is made.
        """
        shares = [part.project(directions) for part in self.parts]
        return self._of_text(torch.cat(shares, dim=-1))

    def along(self, direction: Any) -> xr.Dataset:
        """How far every component goes along a direction, named: `project` as a result.

        The projections sum to that of the whole stream. They are dot products, so a direction of
        length 1 gives lengths. `mi.table` lists the largest.

        Args:
            direction: A vector ``[d_model]`` of torch or numpy, or what `mlp_interp.steering` gives
                of one layer.

        Returns:
            A Dataset ``[prompt, pos, component]`` with ``projection``, in the stream's own units
            times the direction's, and ``projection_chance``, its root mean square at one position
            if the direction were a random one of the same length: a component's norm times that
            length over ``sqrt(d_model)``.

        Raises:
            ValueError: The direction is no finite vector as wide as the stream.

        Example:
            >>> from mlp_interp import cache_for, decompose, load_model, table
            >>> model = load_model("nano")
            >>> residual = decompose(model, cache_for(model, "The capital of France is"))
            >>> table(residual.along(model.W_U[:, 0]), 2).frame.columns.tolist()
            ['component', 'projection', 'projection_chance']
        """
        vector = self._vector(direction)
        projection = self.project(vector.expand(1, 1, -1))
        chance = self.square_norms().sqrt() * vector.norm() / self.total.shape[-1] ** 0.5
        dims = ("prompt", "pos", "component")
        return xr.Dataset(
            {
                "projection": variable(
                    dims, projection, unit="stream", long_name="projection on the direction"
                ),
                "projection_chance": variable(
                    dims, chance, unit="stream", long_name="of random directions as long"
                ),
            },
            coords={
                **component_coords(self.sites),
                "prompt": np.arange(projection.shape[0]),
                "pos": [*self.positions],
            },
            attrs={**self.attrs, "analysis": "projection", "level": self.level, "exact": 1},
        )

    def square_norms(self) -> Float[Tensor, "batch pos component"]:
        """Squared L2 norm of every component."""
        return self._of_text(torch.cat([part.square_norm() for part in self.parts], dim=-1))

    def sum(self) -> Float[Tensor, "batch pos d_model"]:
        """Sum of all components; equals `total` up to rounding."""
        return self._of_text(torch.stack([part.sum() for part in self.parts]).sum(0))

    def kept_by(self, norm: Norm) -> "Residual":
        """What a norm keeps of everything: a LayerNorm takes the mean over ``d_model`` out."""
        return self._with(tuple(part.kept_by(norm) for part in self.parts), norm.keep(self.total))

    def less(self, stand: Stand) -> "Residual":
        """Every component less what stands in for it; `total` stays the whole stream."""
        return self._with(tuple(part.less(stand) for part in self.parts), self.total)

    def at(self, positions: int | Sequence[int] | None) -> "Residual":
        """The same at some of the positions that this holds; None keeps all.

        Negative ones count from the end of each text.

        Raises:
            ValueError: A position is outside or named twice.
        """
        if positions is None:
            return self
        chosen, real = places(positions, len(self.positions), self.real)
        parts = tuple(part.at(chosen) for part in self.parts)
        kept, total = tuple(self.positions[i] for i in chosen), self.total[:, list(chosen)]
        return replace(self, parts=parts, total=total, positions=kept, real=real)

    def error(self) -> float:
        """Largest entry of total minus sum: how exactly the components add up."""
        error = (self.total - self.sum()).abs()
        return float((error if self.real is None else error[self.real]).max())

    def _vector(self, direction: Any) -> Float[Tensor, " d_model"]:
        values = direction.values if isinstance(direction, xr.DataArray) else direction
        try:
            vector = torch.as_tensor(values).detach().squeeze().to(self.total)
        except (TypeError, ValueError, RuntimeError):
            vector = torch.empty(0)
        width = self.total.shape[-1]
        if vector.shape != (width,) or not bool(torch.isfinite(vector).all()):
            shape = tuple(getattr(direction, "shape", ()))
            raise ValueError(
                f"direction={type(direction).__name__} {shape}; wanted one finite vector of width "
                f"{width}"
            )
        return vector

    def _of_text(self, x: Float[Tensor, "batch pos *rest"]) -> Float[Tensor, "batch pos *rest"]:
        """The same, NaN at what is no text, or was not asked about."""
        if self.real is None:
            return x
        return x.masked_fill(~self.real.view(*self.real.shape, *[1] * (x.ndim - 2)), torch.nan)

    def _with(self, parts: tuple[Part, ...], total: Tensor) -> "Residual":
        return replace(self, parts=parts, total=total)

    def __repr__(self) -> str:
        batch, pos, d_model = self.total.shape
        kinds = Counter(site.kind for site in self.sites)
        shown = self.labels if len(self) <= 8 else [*self.labels[:4], "…", *self.labels[-3:]]
        return (
            f"Residual of {self.attrs.get('model', 'a model')}, {self.where} stream, "
            f"level={self.level!r}\n"
            f"  {batch} prompt(s) x {pos} position(s) x d_model {d_model}\n"
            f"  {len(self)} components: {', '.join(f'{n} {kind}' for kind, n in kinds.items())}\n"
            f"  {', '.join(shown)}\n"
            f"  sum differs from the stream by at most {self.error():.1e} "
            f"(median norm {float(self.total.norm(dim=-1).median()):.3g})"
        )
