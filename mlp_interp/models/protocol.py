"""What is asked of a model and of a cache, whichever library class they are of."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

__all__ = ["Cache", "Model"]


if TYPE_CHECKING:

    class Model(Protocol):
        """A `HookedTransformer` or a `TransformerBridge`, as far as the package asks for it."""

        tokenizer: Any

        @property
        def cfg(self) -> Any:
            """Sizes and options: ``n_layers``, ``d_model`` and so on."""

        @property
        def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
            """Token embedding."""
            ...

        @property
        def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
            """Unembedding."""
            ...

        @property
        def b_U(self) -> Float[Tensor, " d_vocab"]:
            """Unembedding bias."""
            ...

        def __getattr__(self, name: str, /) -> Any:
            """Its modules (``blocks``, ``ln_final``), which the bridge finds when asked for."""

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            """Run tokens or text through the model."""

        def run_with_cache(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
            """Run, and keep activations."""
            ...

        def run_with_hooks(self, *args: Any, **kwargs: Any) -> Any:
            """Run with hooks that see activations and may replace them."""

else:
    # A check at run time would read every weight: the bridge makes some of them anew each time.
    Model = Any


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
