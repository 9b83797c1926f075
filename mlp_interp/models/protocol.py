"""What is asked of a model and of a cache, whichever library class they are of."""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

__all__ = ["Cache"]


@runtime_checkable
class Cache(Protocol):
    """Activations by hook name: an `ActivationCache`, a `Run`, a dict of tensors.

    The library's class is no `Mapping`, so this asks for what the three have in common.
    """

    def __getitem__(self, name: str, /) -> Any:
        """The activation at a hook."""
        ...

    def __iter__(self) -> Iterator[str]:
        """The hooks that were kept."""
        ...
