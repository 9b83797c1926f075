"""What edits do to a dictionary's latents; what these do not explain is kept, unless dropped."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from mlp_interp.dictionaries import Dictionary, Latents
from mlp_interp.dictionaries.naming import Latent, latent_site
from mlp_interp.edits.actions import Action, Value
from mlp_interp.edits.selection import Selection
from mlp_interp.models.indices import distinct
from mlp_interp.models.options import check_choice
from mlp_interp.sites import Site

__all__ = ["Error", "How", "LatentValues", "changes_of"]

How = Literal["set", "scale", "add"]
Error = Literal["keep", "drop", "beside"]


@dataclass(frozen=True, eq=False)
class LatentValues(Action):
    """Other activations for some latents of a dictionary.

    Which latents are active is told by what the dictionary reads in the edited pass; with a TopK, a
    latent that is set to zero makes no room for another.

    Attributes:
        dictionary: Whose.
        changes: By latent, ``"set"``, ``"scale"`` or ``"add"``, and a number, or a tensor that
            broadcasts to ``[batch, pos]`` of what is selected.
        error: What of the activation no latent explains: ``"keep"``, ``"drop"``, or a tensor that
            takes its place; ``"beside"`` takes all that is there for it.
        where: True for the tokens at which it is done, of a shape that broadcasts to ``[batch,
            pos]``; None for all.
    """

    dictionary: Dictionary
    changes: Mapping[int, tuple[How, Value]] = field(default_factory=dict)
    error: Error | Tensor = "keep"
    where: Tensor | None = None
    name: ClassVar[str] = "latents"

    @property
    def reads(self) -> tuple[Dictionary, ...]:
        """The dictionary."""
        return (self.dictionary,)

    @property
    def values(self) -> tuple[Value, ...]:
        """Values and the tokens they are for, with an axis for ``d_model``; and the error."""
        given = [value for _, value in self.changes.values()]
        found = [_last(x) for x in [*given, self.where] if x is not None]
        return (*found, self.error) if isinstance(self.error, Tensor) else tuple(found)

    def check(self, site: Site, units: tuple[int, ...] | None) -> None:
        """Refuse as any action; also another place, unknown latents, and nothing to do."""
        one = self.dictionary
        if site not in one.sites or one.spans > 1:
            places = ", ".join(place.label for place in one.sites)
            raise ValueError(
                f"site={site.label!r} with a dictionary that writes to {places}; wanted one that "
                "writes there, and only there"
            )
        if not isinstance(self.error, Tensor):
            check_choice("error", self.error, get_args(Error))
        if not self.changes and isinstance(self.error, str) and self.error == "keep":
            raise ValueError("latents={} with error='keep' changes nothing; wanted some latents")
        super().check(site, units)

    def __call__(self, old: Tensor, selection: Selection, *read: Tensor) -> Tensor:
        """The entries with what changed latents write.

        Args:
            old: The selected entries.
            selection: Which they are.
            read: What the dictionary reads, of the whole stretch: so that it is encoded in one way,
                to the last bit, however much of it is selected.
        """
        latents = self.dictionary.encode(read[0]).at(selection.index)
        new = self._base(old, latents, selection)
        if self.changes:
            chosen = list(self.changes)
            own = latents.of(chosen)
            change = latents.written(self._changed(own, selection) - own)
            new = new + (change @ self.dictionary.W_dec[chosen]).to(old)
        if self.where is None:
            return new
        return new.where(selection.cut(_last(self.where), old) != 0, old)

    def _base(self, old: Tensor, latents: Latents, selection: Selection) -> Tensor:
        if isinstance(self.error, str) and self.error == "keep":
            return old
        rebuilt = self.dictionary.decode(latents).to(old)
        if isinstance(self.error, Tensor):
            return rebuilt + selection.cut(self.error, old)
        return rebuilt if self.error == "drop" else old + rebuilt

    def _changed(self, own: Tensor, selection: Selection) -> Tensor:
        columns = []
        for n, (how, value) in enumerate(self.changes.values()):
            column = own[..., n : n + 1]
            given = selection.cut(_last(value), own)
            new = {"set": given, "scale": column * given, "add": column + given}[how]
            columns.append(new.expand_as(column))
        return torch.cat(columns, -1)

    def __str__(self) -> str:
        some = [f"L{self.dictionary.layer}F{n} {how}" for n, (how, _) in self.changes.items()]
        error = "replaced" if isinstance(self.error, Tensor) else f"{self.error}"
        return f"{', '.join(some) or 'all as they are'}, error {error}"


def changes_of(
    dictionary: Dictionary, changes: Mapping[Latent, tuple[How, Value]]
) -> dict[int, tuple[How, Value]]:
    """Changes by the numbers of the latents that numbers or labels name.

    Raises:
        ValueError: No such latent, or one named twice; a change that is none.
    """
    given: Any = changes
    if not isinstance(given, Mapping):
        raise ValueError(f"changes={given!r}; wanted changes by latent, {{3: ('set', 0.0)}}, say")
    found: list[tuple[int, tuple[How, Value]]] = []
    for latent, change in given.items():
        site = latent_site(dictionary, latent, argument="latents", others=())
        if not (isinstance(change, tuple | list) and len(change) == 2):
            raise ValueError(f"changes={{{latent!r}: {change!r}}}; wanted ('set', 0.0), say")
        how, value = change
        check_choice("how", how, get_args(How))
        found.append((site.unit, (how, value)))
    distinct("latents", [f"L{dictionary.layer}F{number}" for number, _ in found])
    return dict(found)


def _last(value: Value) -> Value:
    """A tensor over tokens with an axis for what each token holds."""
    return value[..., None] if isinstance(value, Tensor) and value.ndim else value
