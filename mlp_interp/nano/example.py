"""One clean/corrupted pair of prompts, as text."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Example"]


@dataclass(frozen=True)
class Example:
    """A prompt, the same prompt with words exchanged, and what should follow each.

    ``answer``, ``foil`` and the words of ``answers`` and ``foils`` stand exactly as they
    would follow the prompt: with their leading space where they have one.

    Attributes:
        clean: The prompt after which ``answer`` is right.
        corrupted: ``clean`` with words exchanged one for one; after it ``foil`` is right.
        answer: One right continuation of ``clean``.
        foil: One right continuation of ``corrupted`` that is wrong after ``clean``.
        subject: What ``clean`` says where ``corrupted`` differs, when that is a phrase
            worth tracing.
        answers: All right continuations of ``clean``; ``(answer,)`` unless the task has
            several (greater-than).
        foils: All wrong continuations of ``clean`` of the same kind; ``(foil,)`` unless
            the task has several.
    """

    clean: str
    corrupted: str
    answer: str
    foil: str
    subject: str | None = None
    answers: tuple[str, ...] = ()
    foils: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.answers:
            object.__setattr__(self, "answers", (self.answer,))
        if not self.foils:
            object.__setattr__(self, "foils", (self.foil,))
