"""How far a report is, and how long the rest takes, from what its sections are expected to cost."""

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from tqdm.auto import tqdm

from mlp_interp.models import Weights
from mlp_interp.models.protocol import Model

__all__ = ["Forecast", "passes", "peak_memory"]

_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left{postfix}"


class Forecast:
    """One bar for a whole report; the time left is known after the first batch.

    Args:
        costs: What each section costs, in units of any size.
        shown: Whether there is a bar.
    """

    def __init__(self, costs: Mapping[str, float], shown: bool) -> None:
        self.costs, self.before, self.name = costs, 0.0, ""
        # The first pieces tell little of the others: the mean speed, not that of the last piece.
        self.bar = tqdm(
            total=sum(costs.values()),
            desc="report",
            bar_format=_FORMAT,
            smoothing=0,
            disable=not shown,
        )

    def begin(self, name: str) -> None:
        """A section begins, and what was before it is done."""
        if self.name:
            self.before += self.costs[self.name]
        self.name = name
        self.bar.set_postfix_str(name, refresh=False)
        self._at(0.0)

    def part(self, start: float = 0.0, end: float = 1.0) -> Callable[[float], None]:
        """To be told the share that is done of a part of the present section."""
        return partial(self._within, start, end)

    def __enter__(self) -> "Forecast":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """All is done, or what interrupts it has come."""
        if self.name and error is None:
            self._at(1.0)
        self.bar.close()

    def _within(self, start: float, end: float, share: float) -> None:
        self._at(start + share * (end - start))

    def _at(self, share: float) -> None:
        self.bar.update(self.before + share * self.costs.get(self.name, 0.0) - self.bar.n)


def passes(model: Model, groups: int, readouts: int) -> float:
    """What it costs to remove each of some groups, in forward passes with a readout.

    Groups begin at any layer, so that half of a pass is run for each on average.

    Args:
        model: The model.
        groups: How many are removed, one after the other.
        readouts: How often the logits are computed for each.
    """
    body, readout = _sizes(model)
    return groups * (0.5 * body + readouts * readout) / (body + readout)


def _sizes(model: Model) -> tuple[float, float]:
    """Multiplications a token: of all layers, and of the readout."""
    weights: Any = Weights.of(model)
    layer = 4 * weights.d_model**2 + 2 * weights.d_model * (weights.d_mlp or 0)
    return float(weights.n_layers * layer), float(weights.d_model * weights.d_vocab)


def peak_memory() -> int:
    """The most memory that this process has had, in bytes; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
