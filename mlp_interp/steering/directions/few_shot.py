"""Prompts that show a task by examples."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from mlp_interp.models.indices import count
from mlp_interp.models.options import checked_seed

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

        In an uninformative prompt no example has its right answer. The answers are those of the
        same examples, each as often; only an answer that more than half of the examples share
        gives way to answers of other pairs.

        Args:
            pairs: Question and answer, without leading spaces.
            n: How many prompts. Each draws its examples and its question anew, all different.
            shots: How many examples stand before the question, at least 2.
            line: How a pair is written, ``{x}`` before ``{y}``.
            seed: Equal seeds give equal prompts.

        Raises:
            ValueError: Fewer than ``shots + 1`` pairs, or all with one answer, or a line that does
                not end in ``{y}`` and blanks, or an option out of range.
        """
        for name, number in (("n", n), ("shots", shots)):
            count(name, number, least=0)
        checked_seed(seed)
        if n < 1 or shots < 2 or len(pairs) <= shots:
            raise ValueError(
                f"n={n}, shots={shots} with {len(pairs)} pairs; wanted n from 1, shots from 2 (a "
                "single answer cannot be shuffled) and more pairs than shots"
            )
        known = sorted({y for _, y in pairs})
        if len(known) < 2:
            raise ValueError(f"pairs all have the answer {known[0]!r}; wanted different ones")
        head, found, tail = line.partition("{y}")
        if not found or "{x}" not in head or tail.strip():
            raise ValueError(f"line={line!r}; wanted {{x}}, then {{y}}, then nothing but blanks")
        asked, rng = head.rstrip(), Random(seed)
        gap = head[len(asked) :]
        prompts, answers, shuffled = [], [], []
        for _ in range(n):
            *shown, (question, answer) = rng.sample(list(pairs), shots + 1)
            words = [y for _, y in shown]
            for kind, ys in ((prompts, words), (shuffled, _misplaced(words, known, rng))):
                examples = "".join(
                    line.replace("{x}", x).replace("{y}", y)
                    for (x, _), y in zip(shown, ys, strict=True)
                )
                kind.append(examples + asked.replace("{x}", question))
            answers.append(gap + answer)
        return cls(tuple(prompts), tuple(answers), tuple(shuffled))


def _misplaced(words: Sequence[str], known: Sequence[str], rng: Random) -> list[str]:
    """The same words, none where it was; of one that more than half are, some become others."""
    groups: dict[str, list[int]] = {}
    for place in rng.sample(range(len(words)), len(words)):
        groups.setdefault(words[place], []).append(place)
    order = [place for group in groups.values() for place in group]
    # With equal words in a row, going on by the longest row takes each out of its own.
    step = max(map(len, groups.values()))
    found = list(words)
    for n, place in enumerate(order):
        word = words[order[(n + step) % len(order)]]
        others = [other for other in known if other != words[place]]
        found[place] = rng.choice(others) if word == words[place] else word
    return found
