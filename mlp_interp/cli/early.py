"""What can be refused without a model is refused here, in a moment, before torch is loaded."""

import os
import re
from collections.abc import Collection, Sequence
from glob import glob, has_magic
from pathlib import Path

from mlp_interp.sites import FAMILIES, did_you_mean

__all__ = [
    "METRICS",
    "TASKS",
    "check_corpus",
    "check_known",
    "check_model",
    "check_sites",
    "check_text",
]

# These are named by modules that load torch; a test holds them against those.
TASKS = (
    *("agreement", "antonyms", "counting", "facts", "greater_than", "induction", "ioi"),
    *("refusal", "sentiment"),
)
METRICS = (
    *("logit_difference", "logit", "log_probability", "answer_log_probability", "probability"),
    *("probability_difference", "kl"),
)
_FILE = re.compile(r"\.(txt|jsonl|parquet|zst|gz)$", re.IGNORECASE)


def check_known(option: str, given: str, known: Collection[str]) -> None:
    """Refuse a name that is none of those there are.

    Raises:
        ValueError: With the nearest of them.
    """
    if given not in known:
        near = did_you_mean(given, known)
        raise ValueError(f"{option} {given!r}{near}; wanted one of {', '.join(known)}")


def check_text(option: str, given: str) -> None:
    """Refuse a text without a letter, or of bytes that are no Unicode.

    Raises:
        ValueError: It is one.
    """
    if not given.strip():
        raise ValueError(f"{option} must hold some text, got {given!r}")
    wrong = next((n for n, x in enumerate(given) if "\ud800" <= x <= "\udfff"), None)
    if wrong is not None:
        raise ValueError(f"{option} {given!r} is no valid Unicode at {wrong}; wanted UTF-8")


def check_sites(given: Sequence[str]) -> None:
    """Refuse sites that cannot be patched, and none at all.

    Raises:
        ValueError: There is one, or none.
    """
    known = [name for members in FAMILIES.values() for name in members]
    wrong = [name for name in given if name not in known]
    if wrong or not given:
        near = did_you_mean(wrong[0], known) if wrong else ""
        raise ValueError(f"--sites {','.join(given)!r}{near}; wanted some of {', '.join(known)}")


def check_model(name: str) -> None:
    """Refuse a directory that is not there, or is not one of a model.

    Raises:
        ValueError: It is one. A name that may be on the hub passes.
    """
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        if not (path / "config.json").exists():
            raise ValueError(
                f"--model {name!r} has no config.json; wanted a Hugging Face directory"
            )
    elif _is_path(name):
        raise ValueError(f"--model {name!r} is no directory here; wanted one, or a name")


def check_corpus(names: Sequence[str]) -> None:
    """Refuse files and folders that are not there.

    Raises:
        ValueError: There is one. A name that may be a data set on the hub passes.
    """
    for name in names:
        path = os.path.expanduser(name)
        if has_magic(name):
            if not glob(path, recursive=True):
                raise ValueError(f"--corpus {name!r} stands for no file here")
        elif _is_path(name) and not os.path.exists(path):
            raise ValueError(f"--corpus {name!r} is no file here; wanted one, or a data set")


def _is_path(name: str) -> bool:
    """Whether a name can be no data set's on the hub."""
    return bool(_FILE.search(name)) or name.startswith((".", "/", "~")) or name.count("/") > 1
