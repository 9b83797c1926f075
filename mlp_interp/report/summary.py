"""The answer at a glance: three computed sentences, a small table, and the numbers behind them."""

from dataclasses import dataclass
from typing import Any

from mlp_interp.report.content import Content
from mlp_interp.report.sections.importance import Row, rows
from mlp_interp.report.sections.importance.told import sentences

ROWS = 8


@dataclass(frozen=True)
class Summary:
    """The answer at a glance.

    Attributes:
        sentences: What to know first, in order; plain text.
        rows: The sub-updates with the largest total effect; none where that was not measured.
        left_out: How many sub-updates the table leaves out.
        numbers: What each section says in plain numbers, for the JSON file.
    """

    sentences: list[str]
    rows: list[Row]
    left_out: int
    numbers: dict[str, Any]


def summarise(content: Content) -> Summary:
    """Put the results of a report into three sentences and one small table.

    They are about the importance of sub-updates; without it, the first that sections have to say.
    """
    numbers = {section.name: section.numbers(found) for section, found in content.sections()}
    numbers = {name: dict(told) for name, told in numbers.items() if told}
    if "importance" in content.found:
        importance = content.found["importance"]
        everything = rows(importance)
        left_out = max(0, len(everything) - ROWS)
        return Summary(sentences(importance)[:3], everything[:ROWS], left_out, numbers)
    said = [text for section, found in content.sections() for text in section.sentences(found)]
    return Summary(said[:3], [], 0, numbers)
