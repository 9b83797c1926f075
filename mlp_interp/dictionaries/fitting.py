"""Whether the parts of a dictionary fit each other, and a dictionary a model."""

import warnings
from collections.abc import Iterable, Mapping

from torch import Tensor

from mlp_interp.dictionaries.activations import Activation, GroupMax, JumpRelu, TopK
from mlp_interp.models import Weights
from mlp_interp.models.names import differ

__all__ = ["check_fit", "check_module", "warn_of_another"]

_said: set[tuple[str, str]] = set()


def check_fit(tensors: Mapping[str, Tensor], activation: Activation, spans: int) -> None:
    """Refuse parts that do not fit each other.

    Args:
        tensors: The parts by name.
        activation: Which latents are active.
        spans: How many layers are written to.

    Raises:
        ValueError: Two have other sizes or types, or there are too few latents.
    """
    for name in ("W_enc", "W_dec"):
        if tensors[name].ndim != 2:
            raise ValueError(f"{name}={tuple(tensors[name].shape)}; wanted a matrix")
    if not isinstance(activation, Activation):
        raise ValueError(f"activation={activation!r}; wanted TopK(32), JumpRelu(0.5) or Relu()")
    latents, d_out = tensors["W_dec"].shape
    d_in = tensors["W_enc"].shape[0]
    shapes = {
        "W_enc": (d_in, latents), "b_enc": (latents,), "b_dec": (d_out,), "b_in": (d_in,),
        "W_skip": (d_in, d_out),
    }  # fmt: skip
    for name, x in tensors.items():
        if name in shapes and tuple(x.shape) != shapes[name]:
            raise ValueError(
                f"{name}={tuple(x.shape)} with W_dec={latents, d_out}; wanted {shapes[name]}"
            )
        if x.dtype != tensors["W_enc"].dtype:
            raise ValueError(
                f"{name} is of {x.dtype} with W_enc of {tensors['W_enc'].dtype}; wanted one type"
            )
    if d_out % spans:
        raise ValueError(f"spans={spans} with W_dec={latents, d_out}; wanted a divisor of {d_out}")
    _check_latents(activation, latents)


def _check_latents(activation: Activation, latents: int) -> None:
    if isinstance(activation, JumpRelu) and activation.threshold.shape not in ((), (latents,)):
        raise ValueError(f"threshold={tuple(activation.threshold.shape)}; wanted one, or {latents}")
    if isinstance(activation, TopK) and activation.k > latents:
        raise ValueError(f"k={activation.k} with {latents} latents; wanted no more than these")
    if isinstance(activation, GroupMax) and latents % activation.k:
        raise ValueError(f"k={activation.k} with {latents} latents; wanted a divisor of these")


def check_module(weights: Weights, writes: str, layers: Iterable[int], *, name: str) -> None:
    """Refuse a model in which something follows a module before the stream.

    What is at ``mlp_out`` and ``attn_out`` is what the stream gets. The module's own output, which
    other packages' hooks on modules see, is another thing where a norm (Gemma 2, OLMo 2) or a
    multiplier (Granite) follows.

    Args:
        weights: The model's.
        writes: The place.
        layers: Its layers.
        name: What the caller calls the dictionary, for the error.

    Raises:
        ValueError: Something follows.
    """
    written_by = {"mlp_out": "post", "attn_out": "z"}
    if writes not in written_by:
        return
    for layer in layers:
        normed = weights.post_norm(layer, written_by[writes]) is not None
        if normed or weights.multiplier(layer) != 1:
            raise ValueError(
                f"{name} is of the output of a module, and model="
                f"{weights.model.cfg.model_name!r} {'normalises' if normed else 'multiplies'} that "
                f"before it becomes {writes} of layer {layer}; wanted a dictionary of what the "
                "stream gets"
            )


def warn_of_another(said: str, model: str, *, name: str) -> None:
    """Warn, once for the two, of a dictionary that says it is of another model than the one given.

    Models of one size may well have other features. Checkpoints of one have its name.

    Args:
        said: Name of the model that it was trained on.
        model: Name of the model given.
        name: What the caller calls the dictionary.
    """
    if (said, model) in _said or not differ(said, model):
        return
    warnings.warn(
        f"{name} says that it is of {said!r}, and model={model!r} is another one of its size: what "
        "it explains of that (latents.evaluate) may be little",
        stacklevel=2,
    )
    _said.add((said, model))
