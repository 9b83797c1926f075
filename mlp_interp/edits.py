"""Interventions on a forward pass, and the one runner that applies them.

An `Edit` names a site, which part of it (positions, heads, neurons) and what to do there. Edits
are data: they compose by being put in a list, and no hook ever stays on the user's model, because
the runner computes on the weights or inside the library's own hook context.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.models import Forward, HookForward, Weights, forward_of
from mlp_interp.sites import Site

__all__ = ["Edit", "Run", "Runner"]

_EDITABLE = ("resid_pre", "attn_out", "mlp_out", "z", "q", "k", "v", "pre", "post", "resid_post")


@dataclass(frozen=True, eq=False)
class Edit:
    """Do something to an activation: set it, add to it, or scale it.

    Args:
        site: Where; a head or neuron in the site selects just that one.
        action: ``"set"``, ``"add"`` or ``"scale"``.
        value: A number, or a tensor that broadcasts to the selected activation
            (``[batch, pos, d_model]``; ``[batch, pos, head, d_head]`` for q, k, v, z;
            ``[batch, pos, d_mlp]`` for pre and post; only the chosen positions, heads, neurons).
        positions: Which positions; None for all. Negative counts from the end.
        units: Which heads or neurons, where the site has them; None for all.

    Raises:
        ValueError: An unknown action, a site that cannot be edited, or units where there are none.

    Example:
        >>> edit = Edit(Site("z", 1, head=2), "set", 0.0)
        >>> edit.apply(torch.ones(1, 3, 4, 8))[0, 0, :, 0]
        tensor([1., 1., 0., 1.])
    """

    site: Site
    action: Literal["set", "add", "scale"]
    value: Tensor | float
    positions: tuple[int, ...] | None = None
    units: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.action not in ("set", "add", "scale"):
            raise ValueError(f"action={self.action!r}; wanted 'set', 'add' or 'scale'")
        if self.site.name not in _EDITABLE:
            raise ValueError(
                f"site={self.site.label!r} cannot be edited; wanted one of {', '.join(_EDITABLE)}"
            )
        if self.units is not None and self.site.name not in ("z", "q", "k", "v", "pre", "post"):
            raise ValueError(
                f"units={self.units}: site {self.site.label!r} has no heads or neurons"
            )

    @property
    def _units(self) -> tuple[int, ...] | None:
        single = self.site.head if self.site.head is not None else self.site.neuron
        return self.units if single is None else (single,)

    def apply(self, x: Tensor) -> Tensor:
        """The edited activation; `x` itself is not changed.

        Raises:
            ValueError: A position, head or neuron is outside the activation.
        """
        index = self._index(x)
        new = x.clone()
        if self.action == "set":
            new[index] = torch.as_tensor(self.value, dtype=x.dtype, device=x.device)
        elif self.action == "add":
            new[index] += torch.as_tensor(self.value, dtype=x.dtype, device=x.device)
        else:
            new[index] *= torch.as_tensor(self.value, dtype=x.dtype, device=x.device)
        return new

    def _index(self, x: Tensor) -> tuple[Any, ...]:
        every = slice(None)
        positions = self._checked(self.positions, x.shape[1], "positions")
        units = self._checked(self._units, x.shape[2], "units")
        if units is None:
            return every, every if positions is None else positions
        if positions is None:
            return every, every, units
        return every, positions[:, None], units[None, :]

    def _checked(self, chosen: tuple[int, ...] | None, size: int, name: str) -> Tensor | None:
        if chosen is None:
            return None
        if any(not -size <= i < size for i in chosen):
            raise ValueError(
                f"{name}={chosen} at {self.site.label!r}; wanted indices from {-size} to {size - 1}"
            )
        return torch.tensor(chosen)


@dataclass(frozen=True)
class Run:
    """An unedited forward pass to compare with and to restart from.

    Attributes:
        tokens: What was run.
        streams: The stream at every block's input, and the final one last.
        seen: Activations at the sites that were asked for.
    """

    tokens: Int[Tensor, "batch pos"]
    streams: tuple[Float[Tensor, "batch pos d_model"], ...]
    seen: dict[Site, Tensor]

    @property
    def final(self) -> Float[Tensor, "batch pos d_model"]:
        """The final stream."""
        return self.streams[-1]


class Runner:
    """Runs a model with edits, from the first edited layer on.

    Example:
        >>> from mlp_interp import load_model
        >>> runner = Runner.of(load_model("nano"))
        >>> clean = runner.run(torch.tensor([[0, 5, 6]]))
        >>> silenced = runner.edited(clean, [Edit(Site("mlp_out", 2), "set", 0.0)])
        >>> bool((silenced - clean.final).abs().max() > 0)
        True
    """

    def __init__(self, forward: Forward | HookForward) -> None:
        """Use a forward pass; see `of`."""
        self.forward = forward

    @classmethod
    def of(cls, model: Any) -> "Runner":
        """A runner for this model, on the fastest forward pass that is right for it."""
        return cls(forward_of(model))

    @property
    def weights(self) -> Weights:
        """The model's weights."""
        return self.forward.weights

    @torch.no_grad()
    def run(self, tokens: Int[Tensor, "batch pos"], *, sites: Sequence[Site] = ()) -> Run:
        """Run without edits; keep every block's input, and the activations at `sites`.

        Raises:
            ValueError: The tokens are not ones that the model can take.
        """
        tokens = self.weights.checked(tokens)
        streams: list[Tensor] = []
        wanted = {Site(site.name, site.layer) for site in sites}
        seen: dict[Site, Tensor] = {}

        def observe(name: str, layer: int, x: Tensor) -> Tensor:
            if name == "resid_pre":
                streams.append(x)
            if (site := Site(name, layer)) in wanted:
                seen[site] = x
            return x

        streams.append(self.forward.run(self.forward.embed(tokens), observe=observe))
        return Run(tokens, tuple(streams), seen)

    @torch.no_grad()
    def edited(self, clean: Run, edits: Sequence[Edit]) -> Float[Tensor, "batch pos d_model"]:
        """The final stream of the same tokens with `edits` applied, in the order given.

        Starts at the first edited block: everything below is as in the clean run.

        Raises:
            ValueError: An edit is at a layer that the model does not have, so that it never fired.
        """
        if not edits:
            return clean.final
        by_place: dict[tuple[str, int], list[Edit]] = {}
        for edit in edits:
            by_place.setdefault((edit.site.name, edit.site.layer or 0), []).append(edit)
        fired: set[tuple[str, int]] = set()

        def observe(name: str, layer: int, x: Tensor) -> Tensor:
            for edit in by_place.get((name, layer), ()):
                fired.add((name, layer))
                x = edit.apply(x)
            return x

        start = min(layer for _, layer in by_place)
        if start < self.weights.n_layers:
            final = self.forward.run(clean.streams[start], start=start, observe=observe)
        silent = set(by_place) - fired
        if silent:
            labels = ", ".join(Site(*place).label for place in sorted(silent))
            raise ValueError(
                f"edits at {labels} never fired; wanted layers 0 to {self.weights.n_layers - 1}"
            )
        return final
