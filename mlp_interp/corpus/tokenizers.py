"""Tell tokenizers apart, so that ids are not read with another one than wrote them."""

import hashlib
import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from mlp_interp.models.protocol import Model
from mlp_interp.prompts.tokenizing import encode, tokenizer_name, tokenizer_of, vocabulary_size

__all__ = ["check_tokenizer", "tokenizer_digest"]

# Merges and rules show in what becomes of a text; a vocabulary alone would not tell them.
_SAMPLE = "Hello, world!\n\n  It's 1234.5 of  THE   naïve (cat's) mats: été 世界\t<|endoftext|>\r\n"


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase | None) -> str:
    """SHA-256 of a vocabulary and of how a sample of text is tokenised; empty for None.

    Models of one family share it, and so do releases of the library that write a tokenizer's file
    in different ways.
    """
    if tokenizer is None:
        return ""
    facts = [
        sorted(tokenizer.get_vocab().items()),
        encode(tokenizer, _SAMPLE, special_tokens=False),
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def check_tokenizer(model: Model, path: Path, facts: dict[str, Any]) -> None:
    """Refuse a token file that was written with another tokenizer than a model's.

    Raises:
        ValueError: It was, or an id is outside the model's vocabulary.
    """
    name, known = tokenizer_name(model), facts.get("tokenizer_sha256", "")
    if known and known != tokenizer_digest(tokenizer_of(model)):
        wrote = facts["attrs"].get("tokenizer", "another one")
        raise ValueError(
            f"model={name!r} has another tokenizer than {str(path)!r} was written with ({wrote!r})"
        )
    highest, size = facts["highest"], vocabulary_size(model)
    if highest >= size:
        raise ValueError(
            f"model={name!r}: {str(path)!r} holds token {highest}, outside its vocabulary of {size}"
        )
