"""What edits do to the entries that they select: data too, each with its own checks."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mlp_interp.dictionaries import Dictionary
from mlp_interp.edits.selection import Selection
from mlp_interp.models.options import checked_seed, generator_of
from mlp_interp.sites import GATED, NEURONS, Site

__all__ = ["Action", "Add", "Clamp", "Noise", "ProjectOut", "Replace", "Scale", "Set", "Value"]

Value = Tensor | float | int
"""A number, or a tensor that broadcasts to what is selected."""


@dataclass(frozen=True, eq=False)
class Action(ABC):
    """What is done to the selected entries of an activation.

    Attributes:
        name: What it is called, as the constructors of `Edit` are.
    """

    name: ClassVar[str]

    @property
    @abstractmethod
    def values(self) -> tuple[Value, ...]:
        """What must broadcast to the selected entries."""

    @property
    def reads(self) -> tuple[Dictionary, ...]:
        """Dictionaries whose latents it changes."""
        return ()

    @abstractmethod
    def __call__(self, old: Tensor, selection: Selection, *read: Tensor) -> Tensor:
        """The new entries; `old` is not changed. `read` is what each of `reads` reads."""

    def check(self, site: Site, units: tuple[int, ...] | None) -> None:
        """Refuse what it cannot do at a site, or to some of its heads or neurons.

        Raises:
            ValueError: A value is of the wrong kind or not finite, or the site is not one for this.
        """
        for value in self.values:
            if not isinstance(value, Tensor | float | int):
                raise ValueError(f"value={value!r} of {self.name!r}; wanted a number or a tensor")
            self._check_finite(value, site)

    def check_fit(self, shape: Sequence[int | str], site: Site) -> None:
        """Refuse what cannot be done to entries of a shape, of which some sizes may yet grow.

        Raises:
            ValueError: A value does not broadcast to it.
        """
        for value in self.values:
            given = tuple(value.shape) if isinstance(value, Tensor) else ()
            pairs = zip(reversed(given), reversed(shape), strict=False)
            if len(given) > len(shape) or any(n not in (1, wanted) for n, wanted in pairs):
                wanted = ", ".join(map(str, shape))
                raise ValueError(
                    f"value of shape {given} at {site.label!r}; wanted one that broadcasts to "
                    f"({wanted})"
                )

    def _check_finite(self, value: Value, site: Site) -> None:
        wrong = self._wrong(value := torch.as_tensor(value))
        if wrong.any():
            raise ValueError(
                f"value of {self.name!r} at {site.label!r} holds "
                f"{float(value[wrong].flatten()[0])}; wanted finite numbers"
            )

    def _wrong(self, value: Tensor) -> Tensor:
        return ~value.isfinite()

    def __str__(self) -> str:
        return ", ".join(map(_said, self.values))


@dataclass(frozen=True, eq=False)
class _OneValue(Action):
    value: Value

    @property
    def values(self) -> tuple[Value, ...]:
        """The value."""
        return (self.value,)


@dataclass(frozen=True, eq=False)
class Set(_OneValue):
    """Put a value there instead.

    Attributes:
        where: True for the entries that it is put at, of a shape that broadcasts to them; None for
            all. Rows of a batch differ in this, other than in the positions of an edit.
    """

    where: Tensor | None = None
    name: ClassVar[str] = "set"

    @property
    def values(self) -> tuple[Value, ...]:
        """The value, and where it goes."""
        return (self.value,) if self.where is None else (self.value, self.where)

    def __call__(self, old: Tensor, selection: Selection, *read: Tensor) -> Tensor:
        """The value, in the shape of the entries."""
        new = torch.empty_like(old).copy_(selection.cut(self.value, old))
        return new if self.where is None else new.where(selection.cut(self.where, old) != 0, old)


@dataclass(frozen=True, eq=False)
class Replace(Set):
    """Put values of another run there: as many as are selected.

    Attributes:
        for_all: Whether one prompt's values may go into several prompts.
    """

    for_all: bool = False

    def check_fit(self, shape: Sequence[int | str], site: Site) -> None:
        """Refuse as any action; also one prompt's, or one position's, for several."""
        super().check_fit(shape, site)
        given = tuple(torch.as_tensor(self.value).shape)
        if self.for_all and given[0] == 1:
            given = (*shape[:1], *given[1:])
        if given != tuple(shape):
            hint = " (for_all=True puts those of one prompt into all)" if given[0] == 1 else ""
            raise ValueError(
                f"values of shape {given} at {site.label!r}, from another run; wanted "
                f"({', '.join(map(str, shape))}), one for each that is replaced{hint}"
            )


class Add(_OneValue):
    """Add a value, for example a steering vector."""

    name = "add"

    def __call__(self, old: Tensor, selection: Selection, *read: Tensor) -> Tensor:
        """The entries plus the value."""
        return old + selection.cut(self.value, old)


class Scale(_OneValue):
    """Multiply by a value."""

    name = "scale"

    def __call__(self, old: Tensor, selection: Selection, *read: Tensor) -> Tensor:
        """The entries times the value."""
        return old * selection.cut(self.value, old)


@dataclass(frozen=True, eq=False)
class Clamp(Action):
    """Keep every entry between two bounds; None where there is no bound."""

    low: Value | None = None
    high: Value | None = None
    name: ClassVar[str] = "clamp"

    @property
    def values(self) -> tuple[Value, ...]:
        """The bounds that there are."""
        return tuple(bound for bound in (self.low, self.high) if bound is not None)

    def check(self, site: Site, units: tuple[int, ...] | None) -> None:
        """Refuse as any action; also no bounds, and a lower one above the upper."""
        super().check(site, units)
        if not self.values:
            raise ValueError("low=None and high=None; wanted at least one of them")
        if len(self.values) == 2:
            low, high = map(torch.as_tensor, self.values)
            if (low > high).any():
                raise ValueError(f"low={self.low} is above high={self.high}")

    def __call__(self, old: Tensor, selection: Selection, *read: Tensor) -> Tensor:
        """The entries, none below `low` nor above `high`."""
        new = old if self.low is None else old.maximum(selection.cut(self.low, old))
        return new if self.high is None else new.minimum(selection.cut(self.high, old))

    def _wrong(self, value: Tensor) -> Tensor:
        return value.isnan()

    def __str__(self) -> str:
        numbers = not any(isinstance(bound, Tensor) for bound in (self.low, self.high))
        return f"{self.low} to {self.high}" if numbers else "bounds"


@dataclass(frozen=True, eq=False)
class ProjectOut(Action):
    """Remove the component along a direction, or in the subspace that several span."""

    directions: Float[Tensor, "*k d"]
    name: ClassVar[str] = "project_out"

    @property
    def values(self) -> tuple[Value, ...]:
        """None: directions have a width to fit, and no entries."""
        return ()

    @cached_property
    def basis(self) -> Float[Tensor, "rank d"]:
        """Orthonormal directions in float64 that span the same space."""
        rows = torch.atleast_2d(torch.as_tensor(self.directions).detach().double())
        # Only the directions matter, so that a short one counts as much as a long one.
        rows = rows / rows.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
        _, sizes, basis = torch.linalg.svd(rows, full_matrices=False)
        return basis[sizes > 1e-6]

    def check(self, site: Site, units: tuple[int, ...] | None) -> None:
        """Refuse a pattern, some neurons of many, and directions that are none."""
        _refuse_pattern(self, site)
        self._check_finite(self.directions, site)
        shape = tuple(torch.as_tensor(self.directions).shape)
        if len(shape) not in (1, 2):
            raise ValueError(f"directions of shape {shape}; wanted [d] or [k, d]")
        if site.name in (*NEURONS, *GATED) and units is not None:
            raise ValueError(
                f"units={units} at {site.label!r}; wanted all neurons, which a direction goes "
                "across"
            )
        if not len(self.basis):
            raise ValueError("directions are all zero; wanted one that is not")

    def check_fit(self, shape: Sequence[int | str], site: Site) -> None:
        """Refuse directions of another width than the activation's."""
        if self.basis.shape[1] != shape[-1]:
            raise ValueError(
                f"directions of width {self.basis.shape[1]} at {site.label!r}; wanted {shape[-1]}"
            )

    def __call__(self, old: Tensor, selection: Selection, *read: Tensor) -> Tensor:
        """The entries less their projection on the directions."""
        basis = self.basis.to(old)
        return old - old @ basis.T @ basis

    def __str__(self) -> str:
        directions = torch.atleast_2d(self.directions)
        return _said(directions[0]) if len(directions) == 1 else f"{len(directions)} directions"


@dataclass(frozen=True, eq=False)
class Noise(Action):
    """Add Gaussian noise: the same at a position however a text is cut, by the seed alone."""

    std: Value
    seed: int = 0
    name: ClassVar[str] = "noise"

    @property
    def values(self) -> tuple[Value, ...]:
        """The standard deviation."""
        return (self.std,)

    def check(self, site: Site, units: tuple[int, ...] | None) -> None:
        """Refuse as any action; also a pattern, and what is below zero."""
        _refuse_pattern(self, site)
        super().check(site, units)
        if (torch.as_tensor(self.std) < 0).any():
            raise ValueError(f"std={self.std}; wanted none below 0")
        checked_seed(self.seed)

    def __call__(self, old: Tensor, selection: Selection, *read: Tensor) -> Tensor:
        """The entries plus noise."""
        # A stream of random numbers for each position.
        shape = (selection.shape[0], *selection.shape[2:])
        rows = []
        for position in selection.positions:
            generator = generator_of(self.seed, position)
            rows.append(torch.randn(shape, generator=generator, dtype=torch.float32))
        return old + selection.cut(self.std, old) * torch.stack(rows, dim=1).to(old)

    def __str__(self) -> str:
        return f"{_said(self.std)}, seed {self.seed}"


def _refuse_pattern(action: Action, site: Site) -> None:
    if site.name == "pattern":
        raise ValueError(
            f"site={site.label!r} with {action.name!r}; wanted set, add, scale or clamp"
        )


def _said(value: Value) -> str:
    if isinstance(value, Tensor) and value.numel() > 1:
        what = "a vector" if value.ndim == 1 else f"values {tuple(value.shape)}"
        return f"{what} of norm {float(value.double().norm()):.4g}"
    return f"{float(value):.4g}"
