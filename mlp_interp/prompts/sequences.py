"""Planted tasks in which a series is continued: years, word lists, repetition, counting."""

from mlp_interp.models.protocol import Model
from mlp_interp.prompts.contrast import Contrast
from mlp_interp.prompts.planted import Split, contrast_of_task

__all__ = [
    "antonyms",
    "counting",
    "greater_than",
    "induction",
]


def greater_than(
    model: Model,
    n: int = 16,
    seed: int = 0,
    *,
    split: Split = "heldout",
    prepend_bos: bool = True,
) -> Contrast:
    """Years: "The war lasted from the year 1732 to the year 17" → any of 33 to 99.

    Corrupted starts in year 01 of the century, after which nearly every year is right.
    `all_answers` holds every year that is right after the clean prompt and `all_foils` every one
    that is wrong, which is what the paper sums probabilities over; `answers` and `foils` hold one
    of each.

    Args:
        model: A model with a tokenizer, or a tokenizer.
        n: Number of pairs, all different and of one length in tokens.
        seed: Equal seeds give equal pairs in one tokenizer.
        split: "heldout" for combinations of words that nano was not trained on.
        prepend_bos: Whether prompts begin with BOS.

    Returns:
        A `Contrast` whose `subject` is the two digits of the first year.

    Raises:
        ValueError: As `ioi`.

    References:
        Hanna, Liu and Variengien (2023), How does GPT-2 compute greater-than?, arXiv:2305.00586.

    Example:
        >>> from mlp_interp import load_model
        >>> contrast = greater_than(load_model("nano"), n=4)
        >>> len(contrast.all_answers[0]) + len(contrast.all_foils[0])
        100
    """
    return contrast_of_task("greater_than", model, n, seed, split, prepend_bos)


def antonyms(
    model: Model,
    n: int = 16,
    seed: int = 0,
    *,
    split: Split = "heldout",
    prepend_bos: bool = True,
) -> Contrast:
    """Antonyms after three examples: "Q: hot⏎A: cold⏎ … Q: big⏎A:" → small.

    Corrupted asks for another word after the same examples. The model has to take the rule from the
    examples, which is what a function vector carries.

    Args:
        model: A model with a tokenizer, or a tokenizer.
        n: Number of pairs, all different and of one length in tokens.
        seed: Equal seeds give equal pairs in one tokenizer.
        split: "heldout" for combinations of words that nano was not trained on.
        prepend_bos: Whether prompts begin with BOS.

    Returns:
        A `Contrast` whose `subject` is the word that is asked for.

    Raises:
        ValueError: As `ioi`.

    References:
        Todd et al. (2023), Function Vectors in Large Language Models, arXiv:2310.15213.

    Example:
        >>> from mlp_interp import load_model
        >>> contrast = antonyms(load_model("nano"), n=4)
        >>> contrast.clean_text[0].count("Q:")
        4
    """
    return contrast_of_task("antonyms", model, n, seed, split, prepend_bos)


def induction(
    model: Model,
    n: int = 16,
    seed: int = 0,
    *,
    split: Split = "heldout",
    prepend_bos: bool = True,
) -> Contrast:
    """Induction: a list of random words, three of them again; the next is known.

    Corrupted repeats another part of the same list. Nothing but the list says what comes next.

    Args:
        model: A model with a tokenizer, or a tokenizer.
        n: Number of pairs, all different and of one length in tokens.
        seed: Equal seeds give equal pairs in one tokenizer.
        split: "heldout" for combinations of words that nano was not trained on.
        prepend_bos: Whether prompts begin with BOS.

    Returns:
        A `Contrast` whose `subject` is the repeated words.

    Raises:
        ValueError: As `ioi`.

    References:
        Olsson et al. (2022), In-context Learning and Induction Heads, arXiv:2209.11895.

    Example:
        >>> from mlp_interp import load_model
        >>> contrast = induction(load_model("nano"), n=4)
        >>> all(c.answer_text[0] in c.clean_text[0] for c in contrast)
        True
    """
    return contrast_of_task("induction", model, n, seed, split, prepend_bos)


def counting(
    model: Model,
    n: int = 16,
    seed: int = 0,
    *,
    split: Split = "heldout",
    prepend_bos: bool = True,
) -> Contrast:
    """Counting: "Count: 4 6 8 10" → 12.

    Corrupted starts elsewhere and rises by the same step.

    Args:
        model: A model with a tokenizer, or a tokenizer.
        n: Number of pairs, all different and of one length in tokens.
        seed: Equal seeds give equal pairs in one tokenizer.
        split: "heldout" for combinations of words that nano was not trained on.
        prepend_bos: Whether prompts begin with BOS.

    Returns:
        A `Contrast` whose `subject` is the numbers shown.

    Raises:
        ValueError: As `ioi`.

    References:
        Gould et al. (2023), Successor Heads: Recurring, Interpretable Attention Heads In The Wild,
        arXiv:2312.09230.

    Example:
        >>> from mlp_interp import load_model
        >>> contrast = counting(load_model("nano"), n=4)
        >>> contrast.clean_text[0].split()[0].removeprefix("<|endoftext|>")
        'Count:'
    """
    return contrast_of_task("counting", model, n, seed, split, prepend_bos)
