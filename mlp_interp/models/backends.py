"""The two TransformerLens classes a Hugging Face model can be put into."""

import contextlib
import copy
import io
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from transformers import GPTNeoXForCausalLM, PreTrainedTokenizerBase

from mlp_interp.models.protocol import Model

__all__ = ["beyond_hooked", "boot_bridge", "boot_hooked"]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the library's deprecation notes and prints, and keep torch's random state.

    The choice of class is ours, and loading weights is no reason to change what comes next from a
    seed: the library initialises modules at random before it fills them.
    """
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        torch.random.fork_rng(devices=[]),
    ):
        warnings.simplefilter("ignore")
        yield


def beyond_hooked(config: Any) -> str | None:
    """What a config asks for and `HookedTransformer` does not compute; None if there is nothing."""
    from transformer_lens.utilities.activation_functions import SUPPORTED_ACTIVATIONS

    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        return f"rope_type={kind!r} in its config, which HookedTransformer ignores"
    if config.hidden_act not in SUPPORTED_ACTIVATIONS:
        return f"hidden_act={config.hidden_act!r} in its config, which HookedTransformer lacks"
    if (rotated := _rotary_dimensions(config)) % 2:
        return f"{rotated} rotary dimensions, an odd number, which HookedTransformer cannot rotate"
    return None


def _rope(config: Any) -> dict[str, Any]:
    """How positions are rotated."""
    # transformers 5 moved both from attributes of their own into one mapping.
    return getattr(config, "rope_parameters", None) or {
        "partial_rotary_factor": getattr(config, "rotary_pct", 0.25),
        "rope_theta": getattr(config, "rotary_emb_base", 10_000),
    }


def _rotary_dimensions(config: Any) -> int:
    """Cut off, as transformers does it."""
    d_head = config.hidden_size // config.num_attention_heads
    return int(_rope(config)["partial_rotary_factor"] * d_head)


def boot_hooked(
    hf_model: GPTNeoXForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    *,
    device: torch.device,
    dtype: torch.dtype,
    folded: bool,
) -> Any:
    """A `HookedTransformer` with the weights of `hf_model`.

    `HookedTransformer.from_pretrained` asks the hub for a config even when it is given a model, so
    the config is built here; the weights go through the library's own converter and processing.
    """
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions.neox import convert_neox_weights

    hf = hf_model.config
    with _quiet():
        cfg = HookedTransformerConfig(
            model_name="gpt_neox",
            original_architecture="GPTNeoXForCausalLM",
            d_model=hf.hidden_size,
            d_head=hf.hidden_size // hf.num_attention_heads,
            n_heads=hf.num_attention_heads,
            d_mlp=hf.intermediate_size,
            n_layers=hf.num_hidden_layers,
            n_ctx=hf.max_position_embeddings,
            d_vocab=hf.vocab_size,
            eps=hf.layer_norm_eps,
            act_fn=hf.hidden_act,
            parallel_attn_mlp=hf.use_parallel_residual,
            positional_embedding_type="rotary",
            rotary_dim=_rotary_dimensions(hf),
            rotary_base=_rope(hf)["rope_theta"],
            rotary_adjacent_pairs=False,
            normalization_type="LNPre" if folded else "LN",
            default_prepend_bos=True,
            dtype=dtype,
            device=str(device),
            init_weights=False,
        )
        model = HookedTransformer(cfg, tokenizer=None, move_to_device=False)
        _attach(model, copy.deepcopy(tokenizer))
        model.load_and_process_state_dict(
            convert_neox_weights(hf_model, cfg),
            fold_ln=folded,
            center_writing_weights=folded,
            center_unembed=folded,
            fold_value_biases=folded,
        )
        return model.to(device)


def boot_bridge(
    hf_model: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    device: torch.device,
    dtype: torch.dtype,
    folded: bool,
) -> Any:
    """A `TransformerBridge` around `hf_model`, in compatibility mode when `folded`."""
    from transformer_lens.model_bridge import TransformerBridge

    hf_model = hf_model.to(device=device, dtype=dtype)
    hf_model.set_attn_implementation("eager")  # the only one whose scores the bridge can hook
    # The library reloads, perhaps from the hub, any tokenizer that has a BOS token and does not
    # prepend it. So it gets a copy without one, which is given back afterwards.
    without_bos = copy.deepcopy(tokenizer)
    without_bos.bos_token = None
    with _quiet():
        model = TransformerBridge.boot_transformers(
            "gpt_neox", hf_model=hf_model, tokenizer=without_bos, dtype=dtype, device=device
        )
        if folded:
            model.enable_compatibility_mode()
    if tokenizer.bos_token is not None:
        model.tokenizer.bos_token = tokenizer.bos_token
        model.cfg.default_prepend_bos = True  # as HookedTransformer has it, and all of this package
    return model


def _attach(model: Model, tokenizer: PreTrainedTokenizerBase) -> None:
    """What the library does to a tokenizer it is given, less its second load from the hub."""
    tokenizer.eos_token = tokenizer.eos_token or "<|endoftext|>"
    tokenizer.bos_token = tokenizer.bos_token or tokenizer.eos_token
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = tokenizer.padding_side or "right"
    model.tokenizer = tokenizer
    model.cfg.tokenizer_prepends_bos = len(tokenizer.encode("")) > 0
