"""What `load_corpus` and `sweep` were asked for, each as one object."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from mlp_interp.corpus.packing import Bos
from mlp_interp.corpus.tally import Errors
from mlp_interp.models.indices import count
from mlp_interp.models.options import check_choice

__all__ = ["ReadingOptions", "SweepOptions", "check_options"]

Backend = Literal["local", "ray"]


@dataclass(frozen=True)
class ReadingOptions:
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
        check_choice("bos", self.bos, ("each", "documents", "none"))
        check_choice("errors", self.errors, ("raise", "skip"))
        if self.sequences is not None:
            count("sequences", self.sequences, hint=", or None for all")
        if self.length is not None:
            count("length", self.length, least=2, hint=", so that there is a next token")

    def as_dict(self) -> dict[str, Any]:
        """All of them by name."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """How a corpus is run through a model, whatever is summed up on the way.

    Only `batch_size` and `shard` have a part in the numbers, and only as rounding does.

    Args:
        batch_size: Sequences per forward pass, at most `shard`.
        shard: Sequences per shard: how much is lost, and done again, when a run is interrupted.
        checkpoint: A directory in which finished shards are kept. Run again with the same one,
            model, corpus and options, the sweep goes on where it stopped.
        backend: ``"local"``: in this process. ``"ray"``: on the Ray cluster that this process is
            connected to, or on a local one that is started for it (``pip install
            'mlp-interp[ray]'``). Every worker gets the model once, shards are its tasks, and those
            of a worker that dies are done by another.
        workers: With Ray: how many shards are worked on at a time; None for as many as the cluster
            has processors (or GPUs, where `resources` ask for one).
        resources: With Ray: what a worker needs, as ``{"num_cpus": 8}`` or ``{"num_gpus": 1}``, and
            other options of its tasks, as ``{"max_retries": 0}``.
        progress: Show a bar with tokens per second and the time left. A function instead is told
            the share of the corpus that is done, again and again.

    Raises:
        ValueError: An unknown backend, a number below 1, or `workers` or `resources` without Ray.

    Example:
        >>> SweepOptions(batch_size=16).shard
        64
        >>> SweepOptions(workers=2)
        Traceback (most recent call last):
        ValueError: workers=2, resources=None with backend='local'; wanted backend='ray'
    """

    batch_size: int = 8
    shard: int = 64
    checkpoint: str | Path | None = None
    backend: Backend = "local"
    workers: int | None = None
    resources: Mapping[str, Any] | None = None
    progress: bool | Callable[[float], object] = False

    def __post_init__(self) -> None:
        check_choice("backend", self.backend, get_args(Backend))
        for name in ("batch_size", "shard", "workers"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, count(name, value))
        if self.backend == "local" and (self.workers is not None or self.resources is not None):
            raise ValueError(
                f"workers={self.workers}, resources={self.resources} with backend='local'; wanted "
                "backend='ray'"
            )

    @property
    def gpus(self) -> bool:
        """Whether workers compute on GPUs, which round differently."""
        return bool((self.resources or {}).get("num_gpus"))


def check_options(given: Any, *, name: str = "options") -> None:
    """Refuse what does not say how a sweep is run.

    Args:
        given: What was given.
        name: What the caller calls it.

    Raises:
        ValueError: It is none of `SweepOptions`.
    """
    if not isinstance(given, SweepOptions):
        raise ValueError(f"{name}={given!r}; wanted mlp_interp.SweepOptions(...)")
