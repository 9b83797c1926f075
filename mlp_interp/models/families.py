"""The families of models that `load_model` takes, and what each is to TransformerLens."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

__all__ = ["FAMILIES", "HOOKED", "Family", "beyond_hooked", "refuse_config", "rotary_base"]

_CONVERTERS = "transformer_lens.pretrained.weight_conversions"


@dataclass(frozen=True)
class Family:
    """How `HookedTransformer` is to be made of a family's models.

    Attributes:
        options: From a Hugging Face config to the options of its config that other families do not
            have alike.
        converter: The library's own, as ``module.function``.
        centred: Whether its norms take the mean over ``d_model`` out, so that what writes to the
            stream can be centred.
    """

    options: Callable[[Any], dict[str, Any]]
    converter: str
    centred: bool = False

    def convert(self, hf_model: Any, cfg: Any) -> dict[str, Any]:
        """The weights as `HookedTransformer` names them."""
        module, name = self.converter.split(".")
        return getattr(import_module(f"{_CONVERTERS}.{module}"), name)(hf_model, cfg)


def _neox(hf: Any) -> dict[str, Any]:
    return {
        "original_architecture": "GPTNeoXForCausalLM",
        "d_head": hf.hidden_size // hf.num_attention_heads,
        "eps": hf.layer_norm_eps,
        "parallel_attn_mlp": hf.use_parallel_residual,
        "rotary_dim": _rotary_dimensions(hf),
        "normalization_type": "LN",
    }


def _llama(hf: Any) -> dict[str, Any]:
    d_head = getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads
    return {
        "original_architecture": hf.architectures[0],
        "d_head": d_head,
        "eps": hf.rms_norm_eps,
        # The library's converters expect shared keys and values, be it one a head.
        "n_key_value_heads": hf.num_key_value_heads,
        "gated_mlp": True,
        "final_rms": True,
        "rotary_dim": d_head,
        "normalization_type": "RMS",
    }


HOOKED = {
    "gpt_neox": Family(_neox, "neox.convert_neox_weights", centred=True),
    "llama": Family(_llama, "llama.convert_llama_weights"),
    "mistral": Family(_llama, "mistral.convert_mistral_weights"),
    "qwen2": Family(_llama, "qwen2.convert_qwen2_weights"),
}
"""What `HookedTransformer` can be made of, by the ``model_type`` of a config."""

# What the bridge computes as Hugging Face does, or what is refused by name once it is read.
_BRIDGED = (
    *("qwen3", "gpt2", "olmo", "phi", "phi3", "starcoder2", "stablelm", "gpt_neo", "gptj"),
    *("codegen", "falcon", "opt", "bloom", "gemma", "gemma2", "gemma3_text", "olmo2", "granite"),
    "nemotron",
)
FAMILIES = (*HOOKED, *_BRIDGED)
"""All that `load_model` takes, by the same names."""


def refuse_config(config: Any, label: str) -> None:
    """Refuse a model that neither class computes as its config says.

    Raises:
        ValueError: It is of another family, or has attention without biases where the library
            expects some: one class would be silently wrong, the other fail somewhere inside.
    """
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"name={label!r} is a {config.model_type!r} model; wanted Pythia's architecture "
            f"('gpt_neox') or one of {', '.join(map(repr, FAMILIES[1:]))}"
        )
    if config.model_type == "gpt_neox" and not getattr(config, "attention_bias", True):
        raise ValueError(
            f"name={label!r} has attention_bias=False in its config; wanted attention with biases, "
            "as TransformerLens expects it of GPT-NeoX"
        )


def beyond_hooked(config: Any) -> str | None:
    """What a config asks for and `HookedTransformer` does not compute; None if there is nothing."""
    from transformer_lens.utilities.activation_functions import SUPPORTED_ACTIVATIONS

    if config.model_type not in HOOKED:
        return f"model_type={config.model_type!r}, which the library's HookedTransformer lacks"
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        return f"rope_type={kind!r} in its config, which HookedTransformer ignores"
    if config.hidden_act not in SUPPORTED_ACTIVATIONS:
        return f"hidden_act={config.hidden_act!r} in its config, which HookedTransformer lacks"
    if config.model_type == "gpt_neox" and (rotated := _rotary_dimensions(config)) % 2:
        return f"{rotated} rotary dimensions, an odd number, which HookedTransformer cannot rotate"
    # None where a family has windows and this model has none.
    window = getattr(config, "sliding_window", None)
    if window is not None and window < config.max_position_embeddings:
        return f"sliding_window={window} in its config, which HookedTransformer ignores here"
    biased = [name for name in ("attention_bias", "mlp_bias") if getattr(config, name, False)]
    if config.model_type == "llama" and biased:
        return f"{biased[0]}=True in its config, which the library's converter leaves out"
    return None


def rotary_base(config: Any) -> float:
    """The base of the rotary embedding's wavelengths."""
    return _rope(config)["rope_theta"]


def _rope(config: Any) -> dict[str, Any]:
    """How positions are rotated."""
    # transformers 5 moved both from attributes of their own into one mapping.
    return getattr(config, "rope_parameters", None) or {
        "partial_rotary_factor": getattr(config, "rotary_pct", 0.25),
        "rope_theta": getattr(config, "rope_theta", getattr(config, "rotary_emb_base", 10_000)),
    }


def _rotary_dimensions(config: Any) -> int:
    """Cut off, as transformers does it."""
    d_head = config.hidden_size // config.num_attention_heads
    return int(_rope(config)["partial_rotary_factor"] * d_head)
