"""What dictionaries read, taken from what a forward pass shows on its way."""

from collections.abc import Collection, Iterable
from typing import Any

from jaxtyping import Float
from torch import Tensor

from mlp_interp.dictionaries.dictionary import AFTER_NORM, Dictionary
from mlp_interp.models import Weights
from mlp_interp.models.weights import Affine

__all__ = ["Reading", "check_dictionary", "check_given", "one_or_more"]

Place = tuple[str, int]


def check_given(weights: Weights, given: Any, *, name: str = "dictionary") -> None:
    """Refuse what is no dictionary for a model.

    Args:
        weights: The model's.
        given: What was given.
        name: What the caller calls it.

    Raises:
        ValueError: It is none, or is of another model.
    """
    check_dictionary(given, name=name)
    given.check(weights, name=name)


def check_dictionary(given: Any, *, name: str = "dictionary") -> None:
    """Refuse what is no dictionary; a text, such as a path to one, is shown.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(given, Dictionary):
        shown = repr(given) if isinstance(given, str | int | float) else type(given).__name__
        raise ValueError(f"{name}={shown}; wanted a Dictionary")


def one_or_more(given: Any, *, name: str = "dictionaries") -> list[Any]:
    """A dictionary by itself, or several, as a list; what is in the list is not checked.

    Raises:
        ValueError: It is neither, or there are none.
    """
    if isinstance(given, Dictionary | str):  # a path is no list of letters
        return [given]
    if not isinstance(given, Collection) or not given:
        raise ValueError(f"{name}={given!r}; wanted a list of one or more, or a Dictionary")
    return list(given)


class Reading:
    """Keeps what some dictionaries read, of the part of the text that is being run.

    What the MLP reads has no place of its own: it is made of the stream before it, by the block's
    norm, with that norm's scale and shift where the weights still have them; or without them.

    Attributes:
        wanted: The places that must be shown.
    """

    def __init__(self, weights: Weights, dictionaries: Iterable[Dictionary]) -> None:
        """Note what is to be kept; nothing is read yet but norms.

        Raises:
            ValueError: A dictionary of another model.
        """
        self._weights = weights
        self.wanted: set[Place] = set()
        self._affines: dict[int, Affine] = {}
        self._kept: dict[Place, Tensor] = {}
        for one in dictionaries:
            check_given(weights, one)
            if one.is_sae:
                continue
            if one.reads not in AFTER_NORM:
                self.wanted.add((one.reads, one.layer))
                continue
            self.wanted |= {(name, one.layer) for name in self._before_mlp}
            if one.reads == "mlp_in" and one.layer not in self._affines:
                self._affines[one.layer] = weights.block(one.layer).ln2

    @property
    def _before_mlp(self) -> tuple[str, ...]:
        return ("resid_pre",) if self._weights.parallel else ("resid_pre", "attn_out")

    def note(self, name: str, layer: int, x: Tensor) -> None:
        """Keep an activation, if a dictionary reads it."""
        if (name, layer) in self.wanted:
            self._kept[name, layer] = x

    def read(
        self, dictionary: Dictionary, written: Float[Tensor, "batch pos d_out"]
    ) -> Float[Tensor, "batch pos d_in"]:
        """What a dictionary reads, once its places were shown.

        Args:
            dictionary: The dictionary.
            written: What is at the place that it writes, which is what an SAE reads.
        """
        layer = dictionary.layer
        if dictionary.is_sae:
            return written
        if dictionary.reads not in AFTER_NORM:
            return self._kept[dictionary.reads, layer]
        stream = self._kept["resid_pre", layer]
        for name in self._before_mlp[1:]:
            stream = stream + self._kept[name, layer]
        normalized = self._weights.norm.standardize(stream)
        if dictionary.reads == "mlp_normalized":
            return normalized
        affine = self._affines[layer]
        return normalized * affine.w + affine.b
