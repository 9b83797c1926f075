"""How an input is searched for."""

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["AscentOptions"]


@dataclass(frozen=True)
class AscentOptions:
    """The options of `maximize` that need no model to be checked.

    Raises:
        ValueError: One is out of range or does not go with another.
    """

    method: str
    sign: int
    length: int
    position: int | None
    steps: int | None
    restarts: int
    near_tokens: float | int
    rate: float | int
    candidates: int | None
    max_new_tokens: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if self.method not in ("gradient", "coordinate"):
            raise ValueError(f"method={self.method!r}; wanted 'gradient' or 'coordinate'")
        if self.sign not in (1, -1):
            raise ValueError(f"sign={self.sign}; wanted 1 (highest) or -1 (lowest)")
        self._check_counts()
        self._check_strengths()
        if self.position not in (None, -1, self.length - 1):
            raise ValueError(
                f"position={self.position} of length={self.length} free positions; wanted -1, the "
                "last (those after it would be idle: take a smaller length), or None, their mean"
            )

    def _check_counts(self) -> None:
        least = {"length": 1, "restarts": 1, "batch_size": 1, "candidates": 1}
        for name, lowest in {**least, "steps": 0, "max_new_tokens": 0, "seed": 0}.items():
            value = getattr(self, name)
            if value is None and name in ("steps", "candidates"):
                continue
            if type(value) is not int or value < lowest:
                raise ValueError(f"{name}={value!r}; wanted an integer from {lowest}")

    def _check_strengths(self) -> None:
        if not 0 <= self.near_tokens < float("inf"):
            raise ValueError(f"near_tokens={self.near_tokens}; wanted a number from 0")
        if not 0 < self.rate < float("inf"):
            raise ValueError(f"rate={self.rate}; wanted a number above 0")
        if self.near_tokens and self.method == "coordinate":
            raise ValueError(
                f"near_tokens={self.near_tokens} with method='coordinate', which finds tokens; "
                "wanted 0, or method='gradient'"
            )

    @property
    def max_steps(self) -> int:
        """How many steps to take."""
        if self.steps is not None:
            return self.steps
        return 200 if self.method == "gradient" else 12 * self.length

    def attrs(self) -> dict[str, Any]:
        """The options that this method heeds, as netCDF can hold them."""
        unused = {
            "gradient": ("candidates", "batch_size"),
            "coordinate": ("near_tokens", "rate", "batch_size"),
        }
        given = asdict(self) | {"steps": self.max_steps}
        return {
            name: "none" if value is None else value
            for name, value in given.items()
            if name not in unused[self.method]
        }
