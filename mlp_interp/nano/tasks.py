"""The planted tasks as pairs of prompts: the one door through which others ask for them."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from mlp_interp.nano.example import Example
from mlp_interp.nano.planted import (
    agreement,
    copying,
    counting,
    facts,
    ioi,
    lists,
    refusal,
    sentiment,
    years,
)
from mlp_interp.nano.pools import Pool, any_word
from mlp_interp.nano.splits import check_split

__all__ = ["Example", "examples", "task_names"]

_TASKS = {
    "ioi": ioi,
    "facts": facts,
    "agreement": agreement,
    "sentiment": sentiment,
    "refusal": refusal,
    "greater_than": years,
    "antonyms": lists,
    "counting": counting,
    "induction": copying,
}

# Draws without a new example after which the task counts as exhausted.
_PATIENCE = 2_000


def task_names() -> tuple[str, ...]:
    """Return the names that ``examples`` knows."""
    return tuple(_TASKS)


def examples(
    task: str,
    *,
    n: int,
    seed: int,
    accept: Callable[[str], bool] = any_word,
    split: str = "heldout",
) -> list[Example]:
    """Write ``n`` different clean/corrupted pairs of one task.

    Clean and corrupted come from one template with words exchanged one for one, so they
    tokenise to equal length in every tokenizer for which ``accept`` says which words are
    single tokens.

    Args:
        task: One of ``task_names()``.
        n: How many pairs.
        seed: Equal seeds give equal pairs.
        accept: Says whether a word may be exchanged or be an answer. It gets the word as
            it stands in the text, with its leading space (pieces of years have none);
            pass "is a single token of this tokenizer".
        split: ``"heldout"`` for combinations of words never shown in training,
            ``"train"`` for those of the training text.

    Returns:
        The pairs, in the order drawn.

    Raises:
        ValueError: If the task or split is unknown, ``n`` is below 1 or beyond what the
            task can give, or ``accept`` leaves too few words.

    Example:
        >>> pair = examples("ioi", n=1, seed=0)[0]
        >>> pair.clean.endswith(("to", "for")), pair.answer != pair.foil
        (True, True)
    """
    if task not in _TASKS:
        raise ValueError(f"task is {task!r}, expected one of {', '.join(_TASKS)}")
    if n < 1:
        raise ValueError(f"n is {n}, expected at least 1")
    rng = Random(f"{task} {split} {seed}")
    draws = _TASKS[task].draws(rng, check_split(split), Pool(task, accept))
    # One example a pair of texts, whatever answer of several right ones was drawn with it.
    found: dict[tuple[str, str], Example] = {}
    in_vain = 0
    while in_vain < _PATIENCE:
        drawn = next(draws)
        if drawn is None or (drawn.clean, drawn.corrupted) in found:
            in_vain += 1
            continue
        in_vain = 0
        found[drawn.clean, drawn.corrupted] = drawn
        if len(found) == n:
            return list(found.values())
    raise ValueError(
        f"n is {n}, expected at most {len(found)}: task {task!r} has no more different "
        f"{split} examples"
    )
