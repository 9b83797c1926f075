"""Planted tasks in which a sentence is finished: names, facts, grammar, opinion, refusal."""

from mlp_interp.models.protocol import Model
from mlp_interp.prompts.contrast import Contrast
from mlp_interp.prompts.planted import Split, contrast_of_task

__all__ = [
    "agreement",
    "facts",
    "ioi",
    "refusal",
    "sentiment",
]


def ioi(
    model: Model,
    n: int = 16,
    seed: int = 0,
    *,
    split: Split = "heldout",
    prepend_bos: bool = True,
) -> Contrast:
    """Indirect objects: "When Mary and John went to the shop, John gave a ring to" → Mary.

    Who receives is the name that was said once. Corrupted exchanges the giver, so that the other
    name is right; both names stay in the prompt, and only their roles differ.

    Args:
        model: A model with a tokenizer, or a tokenizer.
        n: Number of pairs, all different and of one length in tokens.
        seed: Equal seeds give equal pairs in one tokenizer.
        split: "heldout" for combinations of words that nano was not trained on.
        prepend_bos: Whether prompts begin with BOS.

    Returns:
        A `Contrast` whose `subject` is the giver.

    Raises:
        ValueError: `n` is below 1 or more than there are, or too few of the task's words are single
            tokens of this tokenizer.

    References:
        Wang et al. (2022), Interpretability in the Wild: a Circuit for Indirect Object
        Identification in GPT-2 small, arXiv:2211.00593.

    Example:
        >>> from mlp_interp import load_model
        >>> contrast = ioi(load_model("nano"), n=4)
        >>> len(contrast), contrast.differs.sum(-1).tolist()
        (4, [1, 1, 1, 1])
    """
    return contrast_of_task("ioi", model, n, seed, split, prepend_bos)


def facts(
    model: Model,
    n: int = 16,
    seed: int = 0,
    *,
    split: Split = "heldout",
    prepend_bos: bool = True,
) -> Contrast:
    """Facts: "The capital of France is" → Paris; also languages, landmarks and countries.

    Corrupted names another country, landmark or city. For nano, held out is the combination of a
    fact with a way to say it: the fact itself it has seen in other words.

    Args:
        model: A model with a tokenizer, or a tokenizer.
        n: Number of pairs, all different and of one length in tokens.
        seed: Equal seeds give equal pairs in one tokenizer.
        split: "heldout" for combinations of words that nano was not trained on.
        prepend_bos: Whether prompts begin with BOS.

    Returns:
        A `Contrast` whose `subject` is the country, landmark or city.

    Raises:
        ValueError: As `ioi`.

    References:
        Meng et al. (2022), Locating and Editing Factual Associations in GPT, arXiv:2202.05262.

    Example:
        >>> from mlp_interp import load_model
        >>> contrast = facts(load_model("nano"), n=4)
        >>> contrast.answer_text[0] != contrast.foil_text[0]
        True
    """
    return contrast_of_task("facts", model, n, seed, split, prepend_bos)


def agreement(
    model: Model,
    n: int = 16,
    seed: int = 0,
    *,
    split: Split = "heldout",
    prepend_bos: bool = True,
) -> Contrast:
    """Subject-verb agreement across a distractor: "Today the keys near the table" → are.

    The noun nearest to the verb has the wrong number in the clean prompt. Corrupted has the subject
    in the other number.

    Args:
        model: A model with a tokenizer, or a tokenizer.
        n: Number of pairs, all different and of one length in tokens.
        seed: Equal seeds give equal pairs in one tokenizer.
        split: "heldout" for combinations of words that nano was not trained on.
        prepend_bos: Whether prompts begin with BOS.

    Returns:
        A `Contrast` whose `subject` is the noun that the verb must agree with.

    Raises:
        ValueError: As `ioi`.

    References:
        Linzen, Dupoux and Goldberg (2016), Assessing the Ability of LSTMs to Learn Syntax-Sensitive
        Dependencies, arXiv:1611.01368.

    Example:
        >>> from mlp_interp import load_model
        >>> contrast = agreement(load_model("nano"), n=4)
        >>> contrast.differs.sum(-1).tolist()
        [1, 1, 1, 1]
    """
    return contrast_of_task("agreement", model, n, seed, split, prepend_bos)


def sentiment(
    model: Model,
    n: int = 16,
    seed: int = 0,
    *,
    split: Split = "heldout",
    prepend_bos: bool = True,
) -> Contrast:
    """Sentiment: "The film was lovely … Overall, the film was" → great, not terrible.

    Corrupted exchanges the words of opinion for their opposites, so several tokens differ. Clean is
    the good review in half of the pairs.

    Args:
        model: A model with a tokenizer, or a tokenizer.
        n: Number of pairs, all different and of one length in tokens.
        seed: Equal seeds give equal pairs in one tokenizer.
        split: "heldout" for combinations of words that nano was not trained on.
        prepend_bos: Whether prompts begin with BOS.

    Returns:
        A `Contrast` whose `subject` is the first word of opinion.

    Raises:
        ValueError: As `ioi`.

    References:
        Tigges et al. (2023), Linear Representations of Sentiment in Large Language Models,
        arXiv:2310.15154.

    Example:
        >>> from mlp_interp import load_model
        >>> contrast = sentiment(load_model("nano"), n=4)
        >>> bool((contrast.differs.sum(-1) >= 1).all())
        True
    """
    return contrast_of_task("sentiment", model, n, seed, split, prepend_bos)


def refusal(
    model: Model,
    n: int = 16,
    seed: int = 0,
    *,
    split: Split = "heldout",
    prepend_bos: bool = True,
) -> Contrast:
    """Refusal: a harmful request is answered with "Sorry", a harmless one with "Sure".

    Corrupted exchanges the one word that makes the harm. Clean is the harmful request in half of
    the pairs: take those whose answer is " Sorry" for a refusal direction. A base model such as
    Pythia was not trained to refuse; there the pairs only show what it makes of harm.

    Args:
        model: A model with a tokenizer, or a tokenizer.
        n: Number of pairs, all different and of one length in tokens.
        seed: Equal seeds give equal pairs in one tokenizer.
        split: "heldout" for combinations of words that nano was not trained on.
        prepend_bos: Whether prompts begin with BOS.

    Returns:
        A `Contrast` whose `subject` is the word that decides.

    Raises:
        ValueError: As `ioi`.

    References:
        Arditi et al. (2024), Refusal in Language Models Is Mediated by a Single Direction,
        arXiv:2406.11717.

    Example:
        >>> from mlp_interp import load_model
        >>> contrast = refusal(load_model("nano"), n=4)
        >>> set(contrast.answer_text) <= {" Sorry", " Sure"}
        True
    """
    return contrast_of_task("refusal", model, n, seed, split, prepend_bos)
