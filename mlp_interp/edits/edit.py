"""What an edit is: a place, a selection there, and what to do to it."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, SupportsInt, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from mlp_interp.edits.actions import act, span
from mlp_interp.edits.checks import check_selection, check_value
from mlp_interp.edits.selection import indices, place
from mlp_interp.sites import Site

__all__ = ["EDITABLE", "Action", "Edit", "Value"]

Action = Literal["set", "add", "scale", "clamp", "project_out", "noise"]
Bound = Tensor | float | int | None
Value = Tensor | float | int | tuple[Bound, Bound]
Indices = SupportsInt | Iterable[SupportsInt] | None

EDITABLE = tuple(
    "embed resid_pre q k v pattern z attn_out pre post mlp_out resid_post".split()  # as computed
)


@dataclass(frozen=True, eq=False)
class Edit:
    """Do something to an activation of a forward pass.

    The constructors read better than the plain form: `set`, `add`, `scale`, `clamp`, `project_out`,
    `replace` and `noise`. An edit is data and knows no model: the same one serves many. Put several
    into a list and they apply where the pass comes to them, those of one place in the list's order.

    Args:
        site: Where; a head or neuron in the site selects just that one.
        action: What to do: ``"set"``, ``"add"``, ``"scale"``, ``"clamp"``, ``"project_out"`` or
            ``"noise"``.
        value: What the action needs. For set, add and scale a number, or a tensor that broadcasts
            to what is selected; for clamp the pair ``(low, high)`` of such, None where there is no
            bound; for project_out directions ``[d]`` or ``[k, d]``; for noise its standard
            deviation. What is selected is ``[batch, pos, d_model]``; ``[batch, pos, head, d_head]``
            for q, k, v, z; ``[batch, pos, d_mlp]`` for pre and post; ``[batch, head, pos, source
            pos]`` for pattern: of it only the chosen positions, heads and neurons.
        positions: Which positions; None for all. Negative counts from the end (in a generation:
            from the end of the prompt). Of a pattern: those that attend.
        units: Which heads or neurons, where the site has them; None for all.
        keys: Of a pattern only: which positions are attended to; None for all.
        seed: Of noise only.

    Raises:
        ValueError: An unknown action; a site that cannot be edited; units where there are none;
            a selection of nothing; a value that is not finite or not one for this action.

    Example:
        >>> edit = Edit.set(Site("z", 1, head=2), 0.0)
        >>> edit.apply(torch.ones(1, 3, 4, 8))[0, 0, :, 0]
        tensor([1., 1., 0., 1.])
    """

    site: Site
    action: Action
    value: Value
    positions: tuple[int, ...] | None = None
    units: tuple[int, ...] | None = None
    keys: tuple[int, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.action not in get_args(Action):
            wanted = ", ".join(map(repr, get_args(Action)))
            raise ValueError(f"action={self.action!r}; wanted one of {wanted}")
        if self.site.name not in EDITABLE:
            raise ValueError(
                f"site={self.site.label!r} cannot be edited; wanted one of {', '.join(EDITABLE)}"
            )
        check_selection(self)
        check_value(self)

    @classmethod
    def set(
        cls,
        site: Site | str,
        value: Tensor | float | int,
        *,
        positions: Indices = None,
        units: Indices = None,
        keys: Indices = None,
    ) -> "Edit":
        """Put `value` there instead. Arguments as of `Edit`; a site may be given by its label.

        Example:
            >>> Edit.set("3.mlp", 0.0).site
            Site(name='mlp_out', layer=3, head=None, neuron=None)
        """
        return cls(_site(site), "set", value, *_chosen(positions, units, keys))

    @classmethod
    def add(
        cls,
        site: Site | str,
        value: Tensor | float | int,
        *,
        positions: Indices = None,
        units: Indices = None,
        keys: Indices = None,
    ) -> "Edit":
        """Add `value`, for example a steering vector ``[d_model]``. Arguments as of `Edit`."""
        return cls(_site(site), "add", value, *_chosen(positions, units, keys))

    @classmethod
    def scale(
        cls,
        site: Site | str,
        factor: Tensor | float | int,
        *,
        positions: Indices = None,
        units: Indices = None,
        keys: Indices = None,
    ) -> "Edit":
        """Multiply by `factor`. Arguments as of `Edit`."""
        return cls(_site(site), "scale", factor, *_chosen(positions, units, keys))

    @classmethod
    def clamp(
        cls,
        site: Site | str,
        *,
        low: Bound = None,
        high: Bound = None,
        positions: Indices = None,
        units: Indices = None,
        keys: Indices = None,
    ) -> "Edit":
        """Keep every entry between `low` and `high`. Other arguments as of `Edit`.

        Raises:
            ValueError: Neither bound is given, or `low` is above `high`.

        Example:
            >>> quiet = Edit.clamp("L0N7", high=0.0)
            >>> quiet.apply(torch.ones(1, 2, 9)).sum(-1)
            tensor([[8., 8.]])
        """
        return cls(_site(site), "clamp", (low, high), *_chosen(positions, units, keys))

    @classmethod
    def project_out(
        cls,
        site: Site | str,
        directions: Float[Tensor, "*k d"],
        *,
        positions: Indices = None,
        units: Indices = None,
    ) -> "Edit":
        """Remove the component along a direction, or in the subspace that several span.

        Args:
            site: As of `Edit`; no pattern.
            directions: ``[d]`` or ``[k, d]``, with ``d`` the last axis of the activation: d_model,
                d_head (the same for every chosen head), or d_mlp. They need be neither of unit
                length nor orthogonal.
            positions: As of `Edit`.
            units: Heads, as of `Edit`. Neurons cannot be chosen here: a direction goes across them.

        Example:
            >>> edit = Edit.project_out("0.resid_post", torch.tensor([3.0, 4.0]))
            >>> edit.apply(torch.tensor([[[3.0, 4.0], [4.0, -3.0]]]))
            tensor([[[ 0.,  0.],
                     [ 4., -3.]]])
        """
        return cls(_site(site), "project_out", directions, indices(positions), indices(units))

    @classmethod
    def replace(
        cls,
        site: Site | str,
        run: Any,
        *,
        positions: Indices = None,
        units: Indices = None,
        keys: Indices = None,
        sources: Indices = None,
    ) -> "Edit":
        """Put there what was there in another run (activation patching): a `set` of its values.

        Args:
            site: As of `Edit`; `run` must have been asked to keep it (``runner.run(tokens,
                sites=[site])``), except ``resid_pre``, which every run keeps.
            run: Where the values come from. It has as many prompts as the run to be edited, or one.
            positions: As of `Edit`. None wants a run of the same length.
            units: As of `Edit`; the same heads or neurons of `run`.
            keys: As of `Edit`; the same of `run`.
            sources: The positions of `run` whose values go to `positions`, one for each; None for
                the same positions.

        Raises:
            ValueError: The run did not keep the site, or has no such positions, heads or neurons.

        Example:
            >>> from mlp_interp import load_model
            >>> from mlp_interp.runs import Runner
            >>> runner = Runner.of(load_model("nano"))
            >>> other = runner.run(torch.tensor([[0, 7, 6]]), sites=[Site("mlp_out", 1)])
            >>> run = runner.run(
            ...     torch.tensor([[0, 5, 6]]), edits=[Edit.replace("1.mlp", other, positions=1)]
            ... )
            >>> run.fired
            (Fired(times=1, changed=192),)
        """
        site = _site(site)
        there = cls(site, "set", 0.0, *_chosen(positions, units, keys))
        values = run.at(Site(site.name, site.layer))
        sources = indices(sources)
        if sources is not None and len(sources) != len(there.positions or ()):
            raise ValueError(
                f"sources={sources} for positions={there.positions}; wanted one for each position"
            )
        source = cls(site, "set", 0.0, sources or there.positions, there.units, there.keys)
        selection = place(source, values.shape).within(values.shape)
        value = values[selection.index].clone() if selection else values
        return cls(site, "set", value, there.positions, there.units, there.keys)

    @classmethod
    def noise(
        cls,
        site: Site | str,
        *,
        std: Tensor | float | int,
        seed: int,
        positions: Indices = None,
        units: Indices = None,
    ) -> "Edit":
        """Add Gaussian noise.

        The same edit always adds the same noise: it depends on the seed, the position and the shape
        of what is selected at a position (with the batch), not on the site nor on how much of a
        text is run at once; torch's own random state is neither read nor changed. Give edits seeds
        of their own for independent noise.

        Args:
            site: As of `Edit`; no pattern.
            std: Standard deviation, in units of the activation; a tensor broadcasts.
            seed: Any integer from 0.
            positions: As of `Edit`.
            units: As of `Edit`.
        """
        return cls(_site(site), "noise", std, indices(positions), indices(units), None, seed)

    def apply(self, x: Tensor) -> Tensor:
        """The edited activation of a whole text; `x` itself is not changed.

        Raises:
            ValueError: A position, head or neuron is outside the activation, or the value does not
                fit what is selected.
        """
        edited = act(place(self, x.shape), x)
        return x if edited is None else edited[0]

    @property
    def chosen(self) -> tuple[int, ...] | None:
        """The heads or neurons, whether the site names one or `units` does."""
        single = self.site.head if self.site.head is not None else self.site.neuron
        return self.units if single is None else (single,)

    @cached_property
    def basis(self) -> Float[Tensor, "k d"]:
        """Orthonormal directions of a project_out, in float64."""
        return span(torch.as_tensor(self.value))

    @property
    def values(self) -> tuple[Tensor | float | int, ...]:
        """What must broadcast to the selection."""
        if isinstance(self.value, tuple):
            return tuple(bound for bound in self.value if bound is not None)
        return () if self.action == "project_out" else (self.value,)


def _chosen(
    positions: Indices, units: Indices, keys: Indices
) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None, tuple[int, ...] | None]:
    return indices(positions), indices(units), indices(keys)


def _site(site: Site | str) -> Site:
    return Site.parse(site) if isinstance(site, str) else site
