"""The one place where text becomes tokens and tokens become text.

TransformerLens' own `to_tokens` pads prompts of unequal length and adds BOS by a global setting;
here nothing is padded, and BOS is added by the caller who asked for it.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

__all__ = [
    "bos_token_id",
    "check_text",
    "decode",
    "encode",
    "encode_all",
    "ids_in_text",
    "is_single_token",
    "ordinary_ids",
    "single_token",
    "token_strings",
    "tokenizer_if_any",
    "tokenizer_name",
    "tokenizer_of",
    "vocabulary_size",
    "warn_of_unknown",
    "word_tokens",
]


def tokenizer_of(model: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, or the tokenizer itself if that is what was given.

    Raises:
        ValueError: The model has none.
    """
    tokenizer = getattr(model, "tokenizer", model)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ValueError(
            f"model={type(model).__name__} has no tokenizer; wanted a model with one in "
            "model.tokenizer, or a Hugging Face tokenizer"
        )
    return tokenizer


def tokenizer_if_any(model: Any) -> PreTrainedTokenizerBase | None:
    """As `tokenizer_of`; None for a model that works on ids alone."""
    alone = getattr(model, "cfg", None) is not None and getattr(model, "tokenizer", None) is None
    return None if alone else tokenizer_of(model)


def tokenizer_name(model: Any) -> str:
    """Name for provenance: of the model, or the tokenizer's hub name or directory."""
    tokenizer, cfg = tokenizer_if_any(model), getattr(model, "cfg", None)
    name = str(getattr(cfg, "model_name", None) or getattr(tokenizer, "name_or_path", ""))
    if not name:
        return "none" if tokenizer is None else type(tokenizer).__name__
    return Path(name).name if Path(name).is_absolute() else name


def vocabulary_size(model: Any) -> int:
    """Number of logits of a model (it may be padded), or of entries of a tokenizer."""
    cfg = getattr(model, "cfg", None)
    return int(cfg.d_vocab) if cfg is not None else len(tokenizer_of(model))


def ids_in_text(model: Any) -> int:
    """How many ids can stand in text: a padded vocabulary has more; all, without a tokenizer."""
    tokenizer, size = getattr(model, "tokenizer", None), int(model.cfg.d_vocab)
    return size if tokenizer is None else min(size, len(tokenizer))


def ordinary_ids(model: Any) -> list[int]:
    """Ids to draw random text from: all that `ids_in_text` counts, without special tokens."""
    special = {*getattr(getattr(model, "tokenizer", None), "all_special_ids", ())}
    return [i for i in range(ids_in_text(model)) if i not in special]


def encode(
    tokenizer: PreTrainedTokenizerBase, text: str, *, special_tokens: bool = True
) -> list[int]:
    """Token ids of a text, with nothing added to it.

    Args:
        tokenizer: A Hugging Face tokenizer.
        text: Any text.
        special_tokens: Whether ``<|endoftext|>`` written in the text means that token, as in a
            prompt, or is nothing but 13 characters, as in a corpus.
    """
    return tokenizer(
        text, add_special_tokens=False, split_special_tokens=not special_tokens, verbose=False
    )["input_ids"]


def encode_all(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """`encode` for many texts in one call, which for a fast tokenizer is many times faster."""
    if not texts:
        return []
    return tokenizer(
        list(texts), add_special_tokens=False, split_special_tokens=False, verbose=False
    )["input_ids"]


def check_text(text: str, *, what: str) -> None:
    """Refuse a prompt that no file of results can hold: with a NUL, or not Unicode.

    Raises:
        ValueError: It is one; `what` names the prompt in the text.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:  # bytes that a terminal could not decode end up so
        raise ValueError(
            f"{what}={text!r} is no valid Unicode at {error.start}; wanted text, in UTF-8 where it "
            "comes as bytes"
        ) from None
    if "\0" in text:
        raise ValueError(
            f"{what}={text!r} holds a NUL at {text.index(chr(0))}; wanted a text without, which "
            "results can be saved with"
        )


def warn_of_unknown(tokenizer: PreTrainedTokenizerBase, text: str, ids: Sequence[int]) -> None:
    """Warn of words in a prompt that the tokenizer does not know: the model does not see them.

    Args:
        tokenizer: A Hugging Face tokenizer.
        text: The prompt.
        ids: Its tokens, without any that were added.

    Warns:
        UserWarning: There are some; they are named.
    """
    unknown = getattr(tokenizer, "unk_token_id", None)
    # Where one token is both, it may be written out as the one that ends a text.
    if unknown is None or ids.count(unknown) <= text.count(str(tokenizer.unk_token)):
        return
    lost = [word for word in text.split() if unknown in encode(tokenizer, word)]
    named = ", ".join(map(repr, dict.fromkeys(lost))) or repr(text)
    warnings.warn(
        f"tokenizer={tokenizer_name(tokenizer)!r} does not know {named}, which the model reads as "
        f"{tokenizer.unk_token!r}",
        stacklevel=2,
    )


def bos_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the token that begins a document; Pythia has one for begin and end.

    Raises:
        ValueError: The tokenizer has neither a BOS nor an EOS token.
    """
    ids: list[Any] = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    for token in ids:
        if token is not None:
            return int(token)
    raise ValueError(
        f"tokenizer={tokenizer_name(tokenizer)!r} has neither a BOS nor an EOS token; wanted one, "
        "or no BOS asked for"
    )


def is_single_token(tokenizer: PreTrainedTokenizerBase, word: str) -> bool:
    """Whether a word, with its leading space if it has one, is one known token."""
    return _known(tokenizer, word, encode(tokenizer, word))


def single_token(tokenizer: PreTrainedTokenizerBase, word: str, *, what: str) -> int:
    """Id of a word that is one token.

    Raises:
        ValueError: It is several tokens, none, or unknown; `what` names it in the text.
    """
    ids = encode(tokenizer, word)
    if _known(tokenizer, word, ids):
        return ids[0]
    raise _not_known(tokenizer, word, ids, what=what, wanted="one known token")


def word_tokens(tokenizer: PreTrainedTokenizerBase, word: str, *, what: str) -> list[int]:
    """Ids of what follows a prompt: of one token or several, all of them known.

    Raises:
        ValueError: There are none, one is unknown, or the word is one token only behind a space,
            which is then what was meant; `what` names it in the text.
    """
    ids = encode(tokenizer, word)
    if _known(tokenizer, word, ids):
        return ids
    unknown = getattr(tokenizer, "unk_token_id", None)
    if not ids or unknown in ids or _is_one_behind_a_space(tokenizer, word):
        raise _not_known(tokenizer, word, ids, what=what, wanted="one known token, or several")
    return ids


def _is_one_behind_a_space(tokenizer: PreTrainedTokenizerBase, word: str) -> bool:
    return bool(word) and not word.startswith(" ") and is_single_token(tokenizer, f" {word}")


def _not_known(
    tokenizer: PreTrainedTokenizerBase, word: str, ids: list[int], *, what: str, wanted: str
) -> ValueError:
    parts = ", ".join(map(repr, token_strings(tokenizer, ids)))
    spaced = f" {word}"
    is_one = _is_one_behind_a_space(tokenizer, word)
    hint = f"; {spaced!r}, with a leading space, is one" if is_one else ""
    return ValueError(f"{what}={word!r} is {len(ids)} tokens [{parts}]; wanted {wanted}{hint}")


def _known(tokenizer: PreTrainedTokenizerBase, word: str, ids: list[int]) -> bool:
    # An unknown word is one token too, but says nothing.
    unknown = getattr(tokenizer, "unk_token_id", None)
    return len(ids) == 1 and (ids[0] != unknown or word == tokenizer.unk_token)


def decode(tokenizer: PreTrainedTokenizerBase | None, ids: list[int]) -> str:
    """Tokens as text, as they are; ``#17 #4`` where there is no tokenizer."""
    if tokenizer is None:
        return " ".join(token_strings(None, ids))
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def token_strings(tokenizer: PreTrainedTokenizerBase | None, ids: list[int]) -> list[str]:
    """How each token reads by itself; ``#17`` for token 17 where there is no tokenizer.

    A character that spans several tokens reads as ``�`` in each of them.
    """
    if tokenizer is None:
        return [f"#{token}" for token in ids]
    return [str(tokenizer.decode([token], clean_up_tokenization_spaces=False)) for token in ids]
