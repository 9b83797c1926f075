"""The two TransformerLens classes a Hugging Face model can be put into."""

import contextlib
import copy
import io
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mlp_interp.models.families import HOOKED, rotary_base
from mlp_interp.models.protocol import Model

__all__ = ["boot_bridge", "boot_hooked"]


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


def boot_hooked(
    hf_model: Any,
    tokenizer: PreTrainedTokenizerBase | None,
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

    hf = hf_model.config
    family = HOOKED[hf.model_type]
    with _quiet():
        options = family.options(hf)
        options["normalization_type"] += "Pre" if folded else ""
        cfg = HookedTransformerConfig(
            model_name=hf.model_type,
            d_model=hf.hidden_size,
            n_heads=hf.num_attention_heads,
            d_mlp=hf.intermediate_size,
            n_layers=hf.num_hidden_layers,
            n_ctx=hf.max_position_embeddings,
            d_vocab=hf.vocab_size,
            act_fn=hf.hidden_act,
            positional_embedding_type="rotary",
            rotary_base=rotary_base(hf),
            rotary_adjacent_pairs=False,
            default_prepend_bos=True,
            dtype=dtype,
            device=str(device),
            init_weights=False,
            **options,
        )
        model = HookedTransformer(cfg, tokenizer=None, move_to_device=False)
        if tokenizer is not None:
            _attach(model, copy.deepcopy(tokenizer))
        model.load_and_process_state_dict(
            family.convert(hf_model, cfg),
            fold_ln=folded,
            center_writing_weights=folded and family.centred,
            center_unembed=folded,
            fold_value_biases=folded,
        )
        return model.to(device)


def boot_bridge(
    hf_model: Any,
    tokenizer: PreTrainedTokenizerBase | None,
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
    without_bos = _of_nothing() if tokenizer is None else copy.deepcopy(tokenizer)
    without_bos.bos_token = None
    with _quiet():
        model = TransformerBridge.boot_transformers(
            hf_model.config.model_type,
            hf_model=hf_model,
            tokenizer=without_bos,
            dtype=dtype,
            device=device,
        )
        if folded:
            model.enable_compatibility_mode()
    if tokenizer is None:
        model.tokenizer = None
    elif tokenizer.bos_token is not None:
        model.tokenizer.bos_token = tokenizer.bos_token
        model.cfg.default_prepend_bos = True  # as HookedTransformer has it, and all of this package
    return model


def _of_nothing() -> PreTrainedTokenizerBase:
    """A tokenizer without words, for a library that would else ask the hub for one."""
    nothing = Tokenizer(WordLevel({"": 0}, unk_token=""))
    return PreTrainedTokenizerFast(tokenizer_object=nothing, eos_token="")


def _attach(model: Model, tokenizer: PreTrainedTokenizerBase) -> None:
    """What the library does to a tokenizer it is given, less its second load from the hub."""
    tokenizer.eos_token = tokenizer.eos_token or "<|endoftext|>"
    tokenizer.bos_token = tokenizer.bos_token or tokenizer.eos_token
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = tokenizer.padding_side or "right"
    model.tokenizer = tokenizer
    model.cfg.tokenizer_prepends_bos = len(tokenizer.encode("")) > 0
