"""Stream documents from a Hugging Face dataset."""

from collections.abc import Iterator
from typing import Any

from mlp_interp.corpus.files import Document, documents_of_rows
from mlp_interp.corpus.tally import DocumentTally

__all__ = ["ALIASES", "read_hub"]

ALIASES = {"pile-10k": "NeelNanda/pile-10k", "pile": "monology/pile-uncopyrighted"}
"""Short names for the datasets that Pythia's notes use."""


def read_hub(
    name: str, field: str, tally: DocumentTally, *, split: str, subset: str | None
) -> Iterator[Document]:
    """Stream a dataset's documents in its own order; nothing is asked of the hub before the first.

    Raises:
        ValueError: There is no such dataset, subset, split or field.
        ConnectionError: The hub could not be reached, or the connection broke.
    """
    rows = tally.counted(_rows(name, subset, split))
    numbered = ((f"row {number}", row) for number, row in enumerate(rows))
    yield from documents_of_rows(numbered, field, tally)


def _rows(name: str, subset: str | None, split: str) -> Iterator[Any]:
    # Takes most of a second to import, which nobody else should pay.
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        yield from load_dataset(name, subset, split=split, streaming=True)
    except DatasetNotFoundError as error:
        raise ValueError(
            f"source={name!r} is not a dataset on the Hugging Face hub that you may read, nor a "
            f"file, nor one of 'nano', {', '.join(map(repr, ALIASES))} ({_first_line(error)})"
        ) from error
    except OSError as error:
        raise ConnectionError(
            f"could not get dataset {name!r} from the Hugging Face hub ({_first_line(error)}). "
            "Check the connection; or download the data where there is one and pass a .jsonl, "
            ".jsonl.zst, .parquet or .txt file; or use load_corpus('nano', …), which needs no "
            "network"
        ) from error
    except ValueError as error:  # what `datasets` says of a wrong subset or split
        raise ValueError(
            f"source={name!r}, subset={subset!r}, split={split!r}: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
