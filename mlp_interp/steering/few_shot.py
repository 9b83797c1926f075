"""Prompts that show a task by examples."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

__all__ = ["FewShot"]


@dataclass(frozen=True)
class FewShot:
    """Prompts that show a task by examples, and ones that ask the same without showing it.

    Attributes:
        prompts: Examples, then a question.
        answers: What should follow each, with its leading space; of several tokens the first is
            what counts.
        uninformative: For each prompt one that asks for the same answer, from which the task cannot
            be told: its examples have shuffled answers, are of another task, or are missing. None
            where heads are given, not searched for.

    Raises:
        ValueError: None, or unequal numbers.

    Example:
        >>> task = FewShot.of([("hot", "cold"), ("big", "small"), ("old", "young")], n=1, shots=2)
        >>> print(task.prompts[0])
        Q: big
        A: small
        <BLANKLINE>
        Q: old
        A: young
        <BLANKLINE>
        Q: hot
        A:
        >>> task.answers[0]
        ' cold'
    """

    prompts: Sequence[str]
    answers: Sequence[str]
    uninformative: Sequence[str] | None = None

    def __post_init__(self) -> None:
        given = {"prompts": self.prompts, "answers": self.answers}
        if self.uninformative is not None:
            given["uninformative"] = self.uninformative
        for name, texts in given.items():
            object.__setattr__(self, name, tuple(texts))
            if not texts or len(texts) != len(self.prompts):
                raise ValueError(
                    f"{name} has {len(texts)} texts for {len(self.prompts)} prompts; wanted one "
                    "for each, and at least one"
                )

    @classmethod
    def of(
        cls,
        pairs: Sequence[tuple[str, str]],
        *,
        n: int = 32,
        shots: int = 5,
        line: str = "Q: {x}\nA: {y}\n\n",
        seed: int = 0,
    ) -> "FewShot":
        """Few-shot prompts from pairs of question and answer; uninformative ones are shuffled.

        Args:
            pairs: Question and answer, without leading spaces.
            n: How many prompts. Each draws its examples and its question anew, all different.
            shots: How many examples stand before the question.
            line: How a pair is written, ``{x}`` before ``{y}``.
            seed: Equal seeds give equal prompts.

        Raises:
            ValueError: Fewer than ``shots + 1`` pairs, or a line that does not end in ``{y}`` and
                blanks, or an option out of range.
        """
        if n < 1 or shots < 1 or len(pairs) <= shots:
            raise ValueError(
                f"n={n}, shots={shots} with {len(pairs)} pairs; wanted at least 1 of each and more "
                "pairs than shots"
            )
        head, found, tail = line.partition("{y}")
        if not found or "{x}" not in head or tail.strip():
            raise ValueError(f"line={line!r}; wanted {{x}}, then {{y}}, then nothing but blanks")
        asked, rng = head.rstrip(), Random(seed)
        gap = head[len(asked) :]
        prompts, answers, shuffled = [], [], []
        for _ in range(n):
            *shown, (question, answer) = rng.sample(list(pairs), shots + 1)
            words = [y for _, y in shown]
            rng.shuffle(words)
            for kind, ys in ((prompts, [y for _, y in shown]), (shuffled, words)):
                examples = "".join(
                    line.replace("{x}", x).replace("{y}", y)
                    for (x, _), y in zip(shown, ys, strict=True)
                )
                kind.append(examples + asked.replace("{x}", question))
            answers.append(gap + answer)
        return cls(tuple(prompts), tuple(answers), tuple(shuffled))
