"""Account for every document that is read: used, or left out and why."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

__all__ = ["DocumentTally", "Errors"]

Errors = Literal["raise", "skip"]
Item = TypeVar("Item")

# Why a document is left out, and the words that a warning has for it.
_KINDS = {
    "empty": "empty",
    "broken_utf8": "not valid UTF-8",
    "bad_json": "not JSON",
    "not_objects": "not objects",
    "without_field": "without the field",
    "not_text": "not text",
}
# Damage to single documents, of which a large corpus nearly always has some; the rest says that the
# file is not what the caller takes it for.
_NEVER_RAISED = ("empty", "broken_utf8")


@dataclass
class DocumentTally:
    """What was met while reading one source.

    Args:
        name: Of the source, for messages.
        errors: ``"raise"``: a document that is not what was asked for is an error; ``"skip"``: it
            is counted and left out.
    """

    name: str
    errors: Errors = "raise"
    read: int = 0
    of_one_token: int = 0
    file: str = ""
    """The one of several files that is being read, for messages."""
    _left_out: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_KINDS, 0))
    _first: dict[str, str] = field(default_factory=dict)

    def counted(self, documents: Iterable[Item]) -> Iterator[Item]:
        """Count documents as they go by, whatever becomes of them."""
        for document in documents:
            self.read += 1
            yield document

    def leave_out(self, kind: str, place: str, why: str = "") -> None:
        """Count a document that gives no text.

        Args:
            kind: A key of the counts.
            place: Where it is, e.g. ``"line 3"``.
            why: What was found and what was wanted.

        Raises:
            ValueError: Such documents are errors here.
        """
        place = f"{self.file}, {place}" if self.file else place
        if self.errors == "raise" and kind not in _NEVER_RAISED:
            raise ValueError(
                f"{self.name}, {place}: {why}; errors='skip' leaves such documents out"
            )
        self._left_out[kind] += 1
        self._first.setdefault(kind, place)

    def note_tokens(self, tokens: int) -> None:
        """Count one document that was tokenised; without a single token it is empty after all."""
        if tokens == 0:
            self._left_out["empty"] += 1
        self.of_one_token += tokens == 1

    @property
    def skipped(self) -> int:
        """Documents that gave no text."""
        return sum(self._left_out.values())

    @property
    def attrs(self) -> dict[str, Any]:
        """All counts, by the names that they have in `Corpus.attrs`."""
        return {
            "documents_read": self.read,
            "documents_skipped": self.skipped,
            **{f"documents_{kind}": count for kind, count in self._left_out.items()},
            "documents_of_one_token": self.of_one_token,
        }

    def kinds(self) -> str:
        """What was left out, in words."""
        first = {k: f" (first: {place})" for k, place in self._first.items() if k != "empty"}
        found = {kind: count for kind, count in self._left_out.items() if count}
        return ", ".join(f"{n} {_KINDS[kind]}{first.get(kind, '')}" for kind, n in found.items())

    def warning(self) -> str | None:
        """What to tell of documents that were left out; None if all of them were just empty."""
        if self.skipped == self._left_out["empty"]:
            return None
        return f"{self.name}: left out {self.skipped} of {self.read} documents: {self.kinds()}"
