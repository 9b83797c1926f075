"""What components of dictionaries write in one run less what they write in another."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from mlp_interp.dictionaries import Dictionary, Reading
from mlp_interp.residual.dictionaries import parts_of
from mlp_interp.residual.parts import Dense, Scaled
from mlp_interp.runs import Run
from mlp_interp.sites import Site

__all__ = ["Change"]


@dataclass(frozen=True)
class Change:
    """What a dictionary makes of its place in one run, less what it makes of it in another.

    Attributes:
        dictionary: The dictionary, of one layer.
        parts: Latents that are active in one of the runs, bias, skip and error.
        whole: The change of the place, which they sum to.
    """

    dictionary: Dictionary
    parts: tuple[Dense | Scaled, ...]
    whole: Float[Tensor, "prompt pos d_model"]

    @classmethod
    def of(cls, dictionary: Dictionary, taken: Run, own: Run) -> "Change":
        """From two runs of as many prompts, which keep what the dictionary reads and writes."""
        weights, place = own.weights, dictionary.site
        sites = {Site(*where) for where in Reading(weights, [dictionary]).wanted} | {place}
        both = {site: (taken.at(site), own.at(site)) for site in sites}
        found = parts_of(weights, dictionary, lambda site: torch.cat(both[site]))
        # Two products of other rows may differ in their last bits where what is read does not.
        moved = torch.stack([(x != y).any(-1) for x, y in both.values()]).any(0)
        parts = tuple(_apart(part, moved[..., None]) for part in found)
        return cls(dictionary, parts, both[place][0] - both[place][1])

    @cached_property
    def _places(self) -> dict[Site, tuple[Dense | Scaled, int]]:
        return {site: (part, n) for part in self.parts for n, site in enumerate(part.sites)}

    @property
    def moving(self) -> list[Site]:
        """Components that write something else in some prompt; and the error in any case."""
        found = [Site("error", self.dictionary.layer)]
        for part in self.parts:
            changed = (part.square_norm() > 0).flatten(0, 1).any(0).tolist()
            found += [site for site, yes in zip(part.sites, changed, strict=True) if yes]
        return found

    def written(self, site: Site) -> Float[Tensor, "prompt pos d_model"]:
        """The change of what one component writes."""
        if site not in self._places:
            return torch.zeros_like(self.whole)
        part, n = self._places[site]
        return part.take([n]).sum()

    def along(
        self, rows: Sequence[int], gradient: Float[Tensor, "prompt row d_model"]
    ) -> dict[Site, Float[Tensor, "prompt row"]]:
        """Every component's change along a vector at some positions."""
        found = {}
        for part in self.parts:
            shares = part.at(rows).project(gradient).unbind(-1)
            found |= dict(zip(part.sites, shares, strict=True))
        return found


def _apart(part: Dense | Scaled, moved: Tensor) -> Dense | Scaled:
    """The first half of the rows less the second, where anything is another."""
    if isinstance(part, Dense):
        taken, own = part.values.chunk(2)
        return replace(part, values=(taken - own) * moved[..., None])
    taken, own = part.coefficients.chunk(2)
    return replace(part, coefficients=(taken - own) * moved)
