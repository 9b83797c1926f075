"""The one Dataset that exchanges between two runs are reported in."""

from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr
from torch import Tensor

from mlp_interp.interchange.lengths import in_order
from mlp_interp.interchange.measuring import Outcome
from mlp_interp.interchange.pair import Pair, Reading
from mlp_interp.interchange.question import Question
from mlp_interp.results import described, to_numpy

__all__ = ["both_runs", "outcome_dataset"]

Variable = tuple[Any, ...]


def both_runs(readings: Sequence[Reading]) -> dict[str, Variable]:
    """The metric of both runs, by prompt in their order, from readings of some prompts each."""
    unit = readings[0].metric.unit
    numbers = [reading.numbers for reading in readings]
    values = {
        "clean": [to_numpy(reading.clean) for reading in readings],
        "corrupted": [to_numpy(reading.corrupted) for reading in readings],
    }
    return {
        name: (
            "prompt",
            in_order(numbers, pieces),
            {"unit": unit, "long_name": f"metric of the {name} run"},
        )
        for name, pieces in values.items()
    }


def outcome_dataset(
    question: Question,
    pair: Pair,
    outcome: Outcome,
    dims: Sequence[str],
    *,
    coords: Mapping[str, Any],
    attrs: Mapping[str, Any],
    whole: Tensor | None = None,
) -> xr.Dataset:
    """What exchanges gave, by cell and prompt, beside both runs and the self-checks.

    Args:
        question: What was asked.
        pair: The two runs.
        outcome: What came of it.
        dims: Names of the cells' axes.
        coords: Coordinates, those of prompts among them.
        attrs: What the analysis says of itself.
        whole: What exchanging everything should give, where that is not the source run.
    """
    unit = {"unit": question.metric.unit}
    other = pair.source_value if whole is None else whole
    cells = (*dims, "prompt")
    result = xr.Dataset(
        {
            "raw": (cells, to_numpy(outcome.values), unit),
            "normalized": (
                cells,
                to_numpy(pair.reading.normalized(outcome.values)),
                {"unit": "0 corrupted, 1 clean"},
            ),
            "changed": (cells, to_numpy(outcome.changed)),
            **both_runs([pair.reading]),
            "check_everything": ((), _largest(outcome.everything - other), unit),
            "check_nothing": ((), _largest(outcome.nothing - pair.base_value), unit),
        },
        coords=coords,
        attrs={**question.attrs(), **attrs},
    )
    return described(result, _ABOUT)


_ABOUT = {
    "raw": "metric after the exchange",
    "normalized": "metric after the exchange, 0 as in the corrupted run and 1 as in the clean one",
    "changed": "whether the exchange put in anything new",
    "check_everything": "largest error where everything is exchanged",
    "check_nothing": "largest error where nothing is exchanged",
}


def _largest(error: Tensor) -> float:
    return float(error.abs().max())
