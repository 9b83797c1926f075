"""What an edit is: a place, a selection there, and what to do to it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, SupportsInt

from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.dictionaries import Dictionary
from mlp_interp.dictionaries.naming import Latent
from mlp_interp.edits.actions import (
    Action,
    Add,
    Clamp,
    Noise,
    ProjectOut,
    Replace,
    Scale,
    Set,
    Value,
)
from mlp_interp.edits.latents import Error, How, LatentValues, changes_of
from mlp_interp.edits.selection import Region, Selection, axes, region
from mlp_interp.models.caches import cached
from mlp_interp.models.indices import integers
from mlp_interp.models.protocol import Cache
from mlp_interp.sites import ACTIVATIONS, GATED, Site, site_of

__all__ = ["EDITABLE", "Edit", "edits_of"]

Indices = SupportsInt | Iterable[SupportsInt] | None

EDITABLE = ("embed", *ACTIVATIONS)


@dataclass(frozen=True, eq=False)
class Edit:
    """Do something to an activation of a forward pass.

    The constructors read better than the plain form: `set`, `add`, `scale`, `clamp`, `project_out`,
    `replace` and `noise`. An edit is data and knows no model: the same one serves many. Put several
    into a list and they apply where the pass comes to them, those of one place in the list's order.

    Args:
        site: Where; a head or neuron in the site selects just that one.
        action: What to do: `Set`, `Add`, `Scale`, `Clamp`, `ProjectOut` or `Noise`, of numbers or
            of tensors that broadcast to what is selected. That is ``[batch, pos, d_model]``;
            ``[batch, pos, head, d_head]`` for q, k, v, z; ``[batch, pos, d_mlp]`` for pre and post;
            ``[batch, head, pos, source pos]`` for pattern: of it only the chosen positions, heads
            and neurons.
        positions: Which positions; None for all. Negative counts from the end (in a generation:
            from the end of the prompt). Of a pattern: those that attend.
        units: Which heads or neurons, where the site has them; None for all.
        keys: Of a pattern only: which positions are attended to; None for all.

    Raises:
        ValueError: No action; a site that cannot be edited; units where there are none; a selection
            of nothing; a value that is not finite or not one for this action.

    Example:
        >>> import torch
        >>> edit = Edit.set("L1H2", 0.0, positions=[0, -1])
        >>> edit
        Edit(set at L1H2: 0; positions 0, -1)
        >>> edit.apply(torch.ones(1, 3, 4, 8))[0, 0, :, 0]
        tensor([1., 1., 0., 1.])
    """

    site: Site
    action: Action
    positions: tuple[int, ...] | None = None
    units: tuple[int, ...] | None = None
    keys: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.action, Action):
            raise ValueError(
                f"action={self.action!r}; wanted Set, Add, Scale, Clamp, ProjectOut or Noise"
            )
        if self.site.name not in (*EDITABLE, *GATED):
            raise ValueError(
                f"site={self.site.label!r} cannot be edited; wanted one of {', '.join(EDITABLE)}"
            )
        self._check_selection()
        self.action.check(self.site, self.chosen)

    @classmethod
    def set(
        cls,
        site: Site | str,
        value: Value,
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
        return cls._at(site, Set(value), positions, units, keys)

    @classmethod
    def add(
        cls,
        site: Site | str,
        value: Value,
        *,
        positions: Indices = None,
        units: Indices = None,
        keys: Indices = None,
    ) -> "Edit":
        """Add `value`, for example a steering vector ``[d_model]``. Arguments as of `Edit`."""
        return cls._at(site, Add(value), positions, units, keys)

    @classmethod
    def scale(
        cls,
        site: Site | str,
        factor: Value,
        *,
        positions: Indices = None,
        units: Indices = None,
        keys: Indices = None,
    ) -> "Edit":
        """Multiply by `factor`. Arguments as of `Edit`."""
        return cls._at(site, Scale(factor), positions, units, keys)

    @classmethod
    def clamp(
        cls,
        site: Site | str,
        *,
        low: Value | None = None,
        high: Value | None = None,
        positions: Indices = None,
        units: Indices = None,
        keys: Indices = None,
    ) -> "Edit":
        """Keep every entry between `low` and `high`. Other arguments as of `Edit`.

        Raises:
            ValueError: Neither bound is given, or `low` is above `high`.

        Example:
            >>> import torch
            >>> quiet = Edit.clamp("L0N7", high=0.0)
            >>> quiet.apply(torch.ones(1, 2, 9)).sum(-1)
            tensor([[8., 8.]])
        """
        return cls._at(site, Clamp(low, high), positions, units, keys)

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
            >>> import torch
            >>> edit = Edit.project_out("0.resid_post", torch.tensor([3.0, 4.0]))
            >>> edit.apply(torch.tensor([[[3.0, 4.0], [4.0, -3.0]]]))
            tensor([[[ 0.,  0.],
                     [ 4., -3.]]])
        """
        return cls._at(site, ProjectOut(directions), positions, units)

    @classmethod
    def replace(
        cls,
        site: Site | str,
        cache: Cache,
        *,
        positions: Indices = None,
        units: Indices = None,
        keys: Indices = None,
        sources: Indices = None,
        for_all: bool = False,
    ) -> "Edit":
        """Put there what was there in another run (activation patching): a `set` of its values.

        Args:
            site: As of `Edit`.
            cache: Where the values come from: an `ActivationCache`, with its batch dimension or
                without, a `Run`, or a dict of hook names to tensors. It holds what is at the site
                (for a `Run`: ``runner.run(tokens, sites=[site])``; every run keeps ``resid_pre``),
                of as many prompts as the run to be edited has.
            positions: As of `Edit`. None wants a run of the same length.
            units: As of `Edit`; the same heads or neurons of `cache`.
            keys: As of `Edit`; the same of `cache`.
            sources: The positions of `cache` whose values go to `positions`, one for each; None for
                the same positions.
            for_all: Put the values of a cache of one prompt into all prompts.

        Raises:
            ValueError: The cache lacks the site (the text says which ``names_filter`` keeps it), or
                has no such positions, heads or neurons. Where the edit is used: the cache is of
                another number of prompts.

        Example:
            >>> import torch
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
        there = cls._at(site, Set(0.0), positions, units, keys)
        kept = getattr(cache, "at", None)  # a `Run` keeps streams besides what is in its mapping
        values = kept(there.site.whole) if kept else cached(cache, there.site)
        given = integers("sources", sources)
        if given is not None and len(given) != len(there.positions or ()):
            raise ValueError(
                f"sources={given} for positions={there.positions}; wanted one for each position"
            )
        source = replace(there, positions=given or there.positions)
        selection = source.region(values.shape).within(values.shape)
        value = values[selection.index].clone() if selection else values
        return replace(there, action=Replace(value, for_all=for_all))

    @classmethod
    def noise(
        cls,
        site: Site | str,
        *,
        std: Value,
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
        return cls._at(site, Noise(std, seed), positions, units)

    @classmethod
    def latents(
        cls,
        dictionary: Dictionary,
        changes: Mapping[Latent, tuple[How, Value]],
        *,
        positions: Indices = None,
        error: Error | Tensor = "keep",
        where: Tensor | None = None,
    ) -> "Edit":
        """Give some latents of a dictionary other activations, in the place that it writes to.

        What is there gets ``sum_j (a'_j - a_j) d_j`` more: what the dictionary does not explain
        stays as it is. Setting every latent to its own value changes nothing, to the last bit.
        Which latents are active is told in the edited pass; one that is set to zero makes no room
        for another.

        Args:
            dictionary: An SAE or transcoder of this model; of a cross-layer transcoder the part
                that writes to one layer (`Dictionary.towards`), an edit for each.
            changes: By latent, its number or label, ``("set", value)``, ``("scale", factor)`` or
                ``("add", value)``; of numbers, or of tensors that broadcast to ``[batch, pos]``
                of the chosen positions.
            positions: As of `Edit`.
            error: ``"keep"``; ``"drop"`` puts there what the latents make of it, without what they
                do not explain (with no changes: the dictionary spliced in); a tensor takes the
                error's place; ``"beside"`` adds what they make of it to what is there, for places
                that several dictionaries write (the parts of a cross-layer transcoder).
            where: True for the tokens at which it is done, broadcasting to ``[batch, pos]`` of the
                chosen positions; None for all.

        Raises:
            ValueError: A latent that it does not have, an unknown change, nothing to do.

        Example:
            >>> import torch
            >>> from mlp_interp.dictionaries import TopK
            >>> sae = Dictionary(
            ...     torch.eye(2), torch.zeros(2), torch.eye(2), torch.zeros(2), TopK(1), 3
            ... )
            >>> edit = Edit.latents(sae, {0: ("scale", 10.0)})
            >>> edit.apply(torch.tensor([[[2.0, 1.0], [1.0, 2.0]]])).tolist()
            [[[20.0, 1.0], [1.0, 2.0]]]
        """
        action = LatentValues(dictionary, changes_of(dictionary, changes), error, where)
        return cls._at(dictionary.site, action, positions)

    @property
    def chosen(self) -> tuple[int, ...] | None:
        """The heads or neurons, whether the site names one or `units` does."""
        return self.units if self.site == self.site.whole else (self.site.unit,)

    @property
    def place(self) -> tuple[str, int]:
        """Name and layer by which a forward pass tells its observer where it is."""
        return self.site.name, self.site.layer or 0

    @property
    def from_end(self) -> str:
        """Where it counts from the end of rows, in words; empty where it does not."""
        chosen = {"positions": self.positions or (), "keys": self.keys or ()}
        said = [f"{what}={[*n]}" for what, n in chosen.items() if any(i < 0 for i in n)]
        return f"{self.site.label!r}: {', '.join(said)}" if said else ""

    @property
    def prompts(self) -> int:
        """For how many prompts it has values of their own; 1 where they are the same for all."""
        rows = [v for v in self.action.values if isinstance(v, Tensor)]
        return max([1, *(len(v) for v in rows if v.ndim == len(self.site.axes))])

    def apply(self, x: Tensor) -> Tensor:
        """The edited activation of a whole text; `x` itself is not changed.

        Raises:
            ValueError: A position, head or neuron is outside the activation, the value does not
                fit what is selected, or latents that read another place.
        """
        if any(not one.is_sae for one in self.action.reads):
            raise ValueError(f"{self!r} reads another place; wanted it in a run of the model")
        selection = self.region(x.shape).within(x.shape)
        return x if selection is None else self.act(x, selection, *[x] * len(self.action.reads))[0]

    def region(self, shape: Sequence[int], *, longest: int | None = None) -> Region:
        """What it selects of an activation, which it is checked against.

        Args:
            shape: Shape of the whole activation; of the prompt's, where the text will grow.
            longest: How many positions will be run in the end, where the text will grow.

        Raises:
            ValueError: A position, head or neuron is outside the activation or named twice, or the
                value does not fit what is selected.
        """
        chosen = {"positions": self.positions, "units": self.chosen, "keys": self.keys}
        found = region(self.site, chosen, shape, longest=longest)
        self.action.check_fit(found.shape, self.site)
        return found

    def act(self, x: Tensor, selection: Selection, *read: Tensor) -> tuple[Tensor, Int[Tensor, ""]]:
        """An activation with the edit done, and how many entries changed; `x` is not changed.

        Args:
            x: The activation, of a stretch of a text.
            selection: Which of its entries.
            read: What each dictionary of the action reads in that stretch.
        """
        index = selection.index
        old = x[index] if index else x
        new = self.action(old, selection, *read)
        if self.site.name == "pattern":
            new = selection.causal(new)
        changed = (new != old).sum()
        if not index:
            return new, changed
        whole = x.clone()
        whole[index] = new
        return whole, changed

    @classmethod
    def _at(
        cls,
        site: Site | str,
        action: Action,
        positions: Indices = None,
        units: Indices = None,
        keys: Indices = None,
    ) -> "Edit":
        return cls(
            site_of(site),
            action,
            integers("positions", positions),
            integers("units", units),
            integers("keys", keys),
        )

    def _check_selection(self) -> None:
        label, where = self.site.label, axes(self.site)
        if self.units is not None and "units" not in where:
            raise ValueError(f"units={self.units}: site {label!r} has no heads or neurons")
        if self.units is not None and self.chosen is not self.units:
            raise ValueError(f"units={self.units} beside site={label!r}; wanted one of the two")
        if self.keys is not None and "keys" not in where:
            raise ValueError(f"keys={self.keys}: site {label!r} is no pattern")
        for name in ("positions", "units", "keys"):
            if getattr(self, name) == ():
                raise ValueError(f"{name}=() at {label!r} selects nothing; wanted None for all")

    def __str__(self) -> str:
        chosen = {"heads or neurons": self.units, "positions": self.positions, "keys": self.keys}
        parts = [f"{self.action.name} at {self.site.label}: {self.action}"] + [
            f"{what} {', '.join(map(str, some))}" for what, some in chosen.items() if some
        ]
        return "; ".join(parts)

    def __repr__(self) -> str:
        return f"Edit({self})"


def edits_of(given: Any) -> tuple[Edit, ...]:
    """Edits as somebody gave them: one, or several in their order.

    Raises:
        ValueError: Something else is among them.

    Example:
        >>> edits_of(Edit.set("3.mlp", 0.0))
        (Edit(set at 3.mlp: 0),)
    """
    edits = (given,) if isinstance(given, Edit) else tuple(given)
    for n, edit in enumerate(edits):
        if not isinstance(edit, Edit):
            raise ValueError(f"edits[{n}]={edit!r}; wanted an Edit")
    return edits
