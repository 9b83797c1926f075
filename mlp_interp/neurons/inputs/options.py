"""How an input is searched for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mlp_interp.models.options import check_choice, check_counts, checked_seed

__all__ = ["AscentOptions"]

_OF = {"gradient": ("near_tokens", "rate"), "coordinate": ("candidates",)}
"""Options that one method alone heeds."""


@dataclass(frozen=True, kw_only=True)
class AscentOptions:
    """How `maximize` searches: by which method, how long, among which tokens.

    Args:
        method: ``"gradient"``, which needs a model that the lean forward serves, or
            ``"coordinate"``.
        steps: How many; None for 200 (gradient) or 12 for each position (coordinate).
        restarts: Searches from different random tokens or vectors.
        near_tokens: Gradient only. What it costs, in units of the activation, if the squared
            distance to the nearest token's embedding is on average the squared mean norm of the
            tokens. The cost rises over the first half of the steps. 0 leaves the vectors free.
        rate: Gradient only. Length of the first steps, over the length of the vectors.
        candidates: Coordinate only. How many tokens to try at a step: three quarters those whose
            gain is largest to first order, the others random (all random where there is no
            gradient, on models that the lean forward does not serve). None tries the whole
            vocabulary, and ends where no change of a single token could help.
        vocabulary: Token ids to choose among (or to be near to); None for all that the tokenizer
            has.
        batch_size: Texts in a forward pass.
        seed: Of the random starts and candidates. torch's own random state is neither read nor
            changed.

    Raises:
        ValueError: One is out of range or does not go with another.

    Example:
        >>> AscentOptions(method="coordinate", near_tokens=1.0)
        Traceback (most recent call last):
        ValueError: near_tokens=1.0 is for method='gradient'; wanted 0.0 with method='coordinate'
    """

    method: Any = "gradient"
    steps: int | None = None
    restarts: int = 4
    near_tokens: float | int = 0.0
    rate: float | int = 0.1
    candidates: int | None = 64
    vocabulary: Sequence[int] | Tensor | None = None
    batch_size: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("method", self.method, ("gradient", "coordinate"))
        check_counts(restarts=self.restarts, batch_size=self.batch_size)
        if self.candidates is not None:
            check_counts(candidates=self.candidates)
        check_counts(steps=self.max_steps(1))
        checked_seed(self.seed)
        if not 0 <= self.near_tokens < float("inf"):
            raise ValueError(f"near_tokens={self.near_tokens}; wanted a number from 0")
        if not 0 < self.rate < float("inf"):
            raise ValueError(f"rate={self.rate}; wanted a number above 0")
        self._refuse_other_methods()

    def _refuse_other_methods(self) -> None:
        (other,) = _OF.keys() - {self.method}
        for name in _OF[other]:
            usual, given = getattr(AscentOptions, name), getattr(self, name)
            if given != usual:
                raise ValueError(
                    f"{name}={given!r} is for method={other!r}; wanted {usual!r} with "
                    f"method={self.method!r}"
                )

    def max_steps(self, length: int) -> int:
        """How many steps to take with so many free positions."""
        if self.steps is not None:
            return self.steps
        return 200 if self.method == "gradient" else 12 * length

    def attrs(self, length: int) -> dict[str, Any]:
        """The options that this method heeds, as netCDF can hold them."""
        names = ("method", "restarts", "seed", *_OF[self.method])
        given = {name: getattr(self, name) for name in names}
        if given.get("candidates", 0) is None:
            given["candidates"] = "none"
        return {**given, "steps": self.max_steps(length)}
