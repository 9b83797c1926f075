"""Places of a model, and the dictionaries that stand in each together."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from mlp_interp.dictionaries import Dictionary
from mlp_interp.dictionaries.reading import check_given
from mlp_interp.edits import Edit
from mlp_interp.latents.spliced import put, read_in, splice
from mlp_interp.models import Weights
from mlp_interp.models.indices import distinct
from mlp_interp.runs import Run
from mlp_interp.sites import Site

__all__ = ["Place", "places_of"]


@dataclass(frozen=True)
class Place:
    """A place, and what writes there: one dictionary, or those of a cross-layer transcoder.

    Attributes:
        parts: Each writes to this place alone; the last one reads its layer.
    """

    parts: tuple[Dictionary, ...]

    @property
    def own(self) -> Dictionary:
        """The one that reads the place's own layer."""
        return self.parts[-1]

    @property
    def site(self) -> Site:
        """Where it is."""
        return self.own.site

    def rebuilt(
        self, run: Run, counts: Bool[Tensor, "batch pos"] | None = None
    ) -> Float[Tensor, "*rest d_out"]:
        """What the dictionaries make of the place together, of all tokens or of some."""
        reads = (read_in(run, one)[0] for one in self.parts)
        each = [
            one(x if counts is None else x[counts])[0]
            for one, x in zip(self.parts, reads, strict=True)
        ]
        return sum(each[1:], each[0])

    def spliced(self, counts: Bool[Tensor, "batch pos"], error: Tensor | None = None) -> list[Edit]:
        """Edits that put this there at the tokens that count, and an error beside it."""
        if len(self.parts) == 1:
            return [splice(self.own, counts, error)]
        where = None if bool(counts.all()) else counts
        beside = [Edit.latents(one, {}, error="beside", where=where) for one in self.parts]
        return [put(self.site, 0.0 if error is None else error, counts), *beside]


def places_of(weights: Weights, dictionaries: Sequence[Dictionary]) -> list[Place]:
    """The places that dictionaries write, in the order of the model.

    Raises:
        ValueError: A dictionary of another model, two that read and write one place, or
            parts of a cross-layer transcoder without the others.
    """
    for n, one in enumerate(dictionaries):
        check_given(weights, one, name=f"dictionaries[{n}]")
    firsts = [one.site for one in dictionaries]
    distinct("dictionaries", [site.label for site in firsts])
    for n, one in enumerate(dictionaries):
        alone = [site.label for site in one.sites if site not in firsts]
        if alone or one.ahead:
            lacking = f"and none of dictionaries reads {', '.join(alone)}" if alone else "alone"
            raise ValueError(
                f"dictionaries[{n}] reads layer {one.layer} and writes to "
                f"{', '.join(site.label for site in one.sites)}, {lacking}; wanted all of a "
                "cross-layer transcoder"
            )
    ordered = sorted(dictionaries, key=lambda one: (one.layer, one.writes))
    return [
        Place(tuple(one.towards(own.layer) for one in ordered if own.site in one.sites))
        for own in ordered
    ]
