"""What cannot be measured of a model is left out of a section, and the page says why."""

from collections.abc import Callable
from typing import TypeVar

from mlp_interp.report.section import Work

__all__ = ["attempt"]

T = TypeVar("T")


def attempt(work: Work, what: str, measure: Callable[[], T]) -> T | None:
    """What an analysis gives; None, and a note on the page, where it refuses the model.

    Args:
        work: Its notes say what was left out.
        what: What is left out then; the beginning of a sentence.
        measure: The analysis.
    """
    try:
        return measure()
    except ValueError as error:
        note = f"{what} is left out: {error}."
        if note not in work.notes:
            work.notes.append(note)
        return None
