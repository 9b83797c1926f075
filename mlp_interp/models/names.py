"""Whether two names are of one model, as far as names tell."""

from functools import cache

from mlp_interp.models.loading import LOCAL, PYTHIA

__all__ = ["differ"]


def differ(one: str, other: str) -> bool:
    """Whether two names are known, and of different models.

    Who published a model and how it is spelled do not matter. A name that nobody but its user knows
    is of any model.

    Example:
        >>> differ("EleutherAI/pythia-70m", "pythia-70m"), differ("gpt2-small", "gpt2")
        (False, False)
        >>> differ("pythia-70m", "pythia-70m-deduped"), differ("pythia-70m", "my-own")
        (True, False)
    """
    first, second = (_known().get(_short(name)) for name in (one, other))
    return None not in (first, second) and first != second


@cache
def _known() -> dict[str, str]:
    """Of each name: the model's."""
    from transformer_lens.supported_models import MODEL_ALIASES, OFFICIAL_MODEL_NAMES

    names = {name: name for name in (*OFFICIAL_MODEL_NAMES, *PYTHIA, *LOCAL)}
    aliases = {alias: name for name, listed in MODEL_ALIASES.items() for alias in listed}
    return {_short(alias): _short(name) for alias, name in (names | aliases).items()}


def _short(name: str) -> str:
    return name.rsplit("/", 1)[-1].lower()
