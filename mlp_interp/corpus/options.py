"""What `load_corpus` was asked for, as one object."""

from dataclasses import asdict, dataclass
from typing import Any

from mlp_interp.corpus.packing import Bos
from mlp_interp.corpus.tally import Errors

__all__ = ["Options"]


@dataclass(frozen=True)
class Options:
    """The options of `load_corpus` that decide which tokens come out.

    Raises:
        ValueError: One of them is not among those that are known.
    """

    sequences: int | None
    length: int | None
    seed: int | None
    bos: Bos
    field: str
    split: str | None
    subset: str | None
    errors: Errors

    def __post_init__(self) -> None:
        if self.bos not in ("each", "documents", "none"):
            raise ValueError(f"bos={self.bos!r}; wanted 'each', 'documents' or 'none'")
        if self.errors not in ("raise", "skip"):
            raise ValueError(f"errors={self.errors!r}; wanted 'raise' or 'skip'")
        if self.sequences is not None and self.sequences < 1:
            raise ValueError(f"sequences={self.sequences}; wanted at least 1, or None for all")
        if self.length is not None and self.length < 2:
            raise ValueError(
                f"length={self.length}; wanted at least 2, so that there is a next token"
            )

    def as_dict(self) -> dict[str, Any]:
        """All of them by name."""
        return asdict(self)
