"""Small random models of every kind that the package must serve, and what tests ask of them."""

import contextlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from itertools import combinations, product
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from mlp_interp import load_model

HAS_HOOKED = find_spec("transformer_lens.HookedTransformer") is not None
BACKENDS = ("hooked", "bridge") if HAS_HOOKED else ("bridge",)
VOCABULARY = 300

ARCHITECTURES, PROCESSINGS = ("parallel", "sequential", "gpt2", "llama"), ("folded", "raw")

SLOW = pytest.mark.slow


def pairwise(*axes: Sequence[str], together: int = 2) -> list[Any]:
    """Parameters of a test: every combination of some axes' values, most of them slow.

    Those that are not hold every value of each axis together with every value of each other axis:
    that is where things go wrong. Three values that are wrong only together are for `test-all`.
    With `together` 1 they hold every value of each axis, for what takes long and is made of what is
    tested of all pairs elsewhere.
    """
    every = [*product(*axes)]
    missing = {part for values in every for part in _parts(values, together)}
    always = set()
    while missing:
        best = max(every, key=lambda values: len(missing & _parts(values, together)))
        missing -= _parts(best, together)
        always.add(best)
    return [
        pytest.param(*values, id="-".join(values), marks=[] if values in always else [SLOW])
        for values in every
    ]


def _parts(values: Sequence[str], together: int) -> set[Any]:
    return set(combinations(enumerate(values), together))


KINDS = pairwise(ARCHITECTURES, BACKENDS, PROCESSINGS)
"""Every kind of model: (architecture, class, processing)."""

FEW = pairwise(ARCHITECTURES, BACKENDS, PROCESSINGS, together=1)
"""The same, more of them slow."""


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with 300 entries; id 0 is ``<|endoftext|>``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat; hello world"] * 10, trainer)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=end
    )


def random_neox(
    *,
    parallel: bool = True,
    layers: int = 3,
    d_model: int = 32,
    heads: int = 4,
    d_mlp: int = 64,
    vocabulary: int = VOCABULARY,
    context: int = 64,
    seed: int = 0,
    spread: float = 0.3,
) -> GPTNeoXForCausalLM:
    """A random GPT-NeoX model whose biases and LayerNorm parameters are far from trivial."""
    config = GPTNeoXConfig(
        hidden_size=d_model,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=d_mlp,
        vocab_size=vocabulary,
        rotary_pct=0.5,
        use_parallel_residual=parallel,
        tie_word_embeddings=False,
        max_position_embeddings=context,
        bos_token_id=0,
        eos_token_id=0,
    )
    return _drawn(GPTNeoXForCausalLM, config, seed, spread)


def random_llama(*, layers: int = 3, seed: int = 0, spread: float = 0.3) -> LlamaForCausalLM:
    """A random Llama model: RMSNorm, gated MLPs, two keys and values for four heads, no biases."""
    config = LlamaConfig(
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        vocab_size=VOCABULARY,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    return _drawn(LlamaForCausalLM, config, seed, spread)


def random_gpt2(*, layers: int = 3, seed: int = 0, spread: float = 0.3) -> GPT2LMHeadModel:
    """A random GPT-2 model: sequential residual, added positions, tied embeddings."""
    config = GPT2Config(
        n_embd=32,
        n_layer=layers,
        n_head=4,
        vocab_size=VOCABULARY,
        n_positions=64,
        bos_token_id=0,
        eos_token_id=0,
    )
    return _drawn(GPT2LMHeadModel, config, seed, spread)


def _drawn(kind: Any, config: Any, seed: int, spread: float) -> Any:
    """A model of a class, its weights from a seed; torch's own random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config)
        _randomise(model, spread)
    return model.eval()


def _randomise(model: torch.nn.Module, spread: float) -> None:
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            is_scale = name.endswith("weight")
            parameter.data.normal_(1.0 if is_scale else 0.0, spread)
        else:
            parameter.data.normal_(0.0, spread / 2)


def build(
    architecture: str, backend: str, processing: str, dtype: torch.dtype = torch.float32
) -> Any:
    """A random model of one of `KINDS`."""
    if architecture == "gpt2":
        return _gpt2(backend, processing, dtype)
    llama = architecture == "llama"
    source = random_llama() if llama else random_neox(parallel=architecture == "parallel")
    return load_model(
        source, tokenizer=tiny_tokenizer(), backend=backend, processing=processing, dtype=dtype
    )


def parallel() -> Any:
    """The model that `kind()` gives."""
    return build("parallel", BACKENDS[0], "folded")


def _gpt2(backend: str, processing: str, dtype: torch.dtype) -> Any:
    with quiet():
        if backend == "bridge":
            from transformer_lens.model_bridge import TransformerBridge

            hf_model = random_gpt2().to(dtype)
            hf_model.set_attn_implementation("eager")
            tokenizer = tiny_tokenizer()
            tokenizer.bos_token = None  # else the library reloads it from its path
            model = TransformerBridge.boot_transformers(
                "gpt2", hf_model=hf_model, tokenizer=tokenizer, dtype=dtype
            )
            if processing == "folded":
                model.enable_compatibility_mode()
            return model.eval()
        from transformer_lens import HookedTransformer, HookedTransformerConfig
        from transformer_lens.pretrained.weight_conversions.gpt2 import convert_gpt2_weights

        cfg = HookedTransformerConfig(
            n_layers=3,
            d_model=32,
            d_head=8,
            n_heads=4,
            d_mlp=128,
            n_ctx=64,
            d_vocab=VOCABULARY,
            act_fn="gelu_new",
            normalization_type="LN" if processing == "raw" else "LNPre",
            dtype=dtype,
            device="cpu",
        )
        model = HookedTransformer(cfg)
        folded = processing == "folded"
        model.load_and_process_state_dict(
            convert_gpt2_weights(random_gpt2().to(dtype), cfg),
            fold_ln=folded,
            center_writing_weights=folded,
            center_unembed=folded,
            fold_value_biases=folded,
        )
        model.tokenizer = tiny_tokenizer()
        return model.eval()


SIZES = {
    "d_model": 32,
    "d_head": 8,
    "n_heads": 4,
    "n_layers": 2,
    "n_ctx": 64,
    "d_vocab": VOCABULARY,
    "act_fn": "gelu",
    "normalization_type": "LN",
    "init_weights": False,
}


def hooked(seed: int = 0, **options: Any) -> Any:
    """A random `HookedTransformer` of any configuration."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    with quiet(seed):
        model = HookedTransformer(HookedTransformerConfig(**{**SIZES, **options}))
        randomise(model)
    model.tokenizer = tiny_tokenizer()
    return model.eval()


@contextlib.contextmanager
def quiet(seed: int = 0) -> Iterator[None]:
    """Without the library's notes and prints; random numbers from a seed, and back afterwards."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(None),
        torch.random.fork_rng(devices=[]),
    ):
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        yield


def randomise(model: torch.nn.Module) -> None:
    """Weights of every kind that are far from trivial, scales around 1."""
    for name, parameter in model.named_parameters():
        scale = parameter.ndim == 1 and name.endswith(("weight", ".w"))
        parameter.data.normal_(1.0 if scale else 0.0, 0.2)


def state_of(model: Any) -> dict[str, Any]:
    """Everything about a model that an analysis could leave changed."""
    modules = dict(model.named_modules())
    return {
        "weights": {name: value.detach().clone() for name, value in model.named_parameters()},
        "buffers": {name: value.detach().clone() for name, value in model.named_buffers()},
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "grad": {name: p.grad is None for name, p in model.named_parameters()},
        "training": {name: module.training for name, module in modules.items()},
        "hooks": {
            name: (
                len(module._forward_hooks),
                len(module._forward_pre_hooks),
                len(module._backward_hooks),
                len(getattr(module, "fwd_hooks", ())),
                len(getattr(module, "bwd_hooks", ())),
            )
            for name, module in modules.items()
        },
        "flags": {
            k: v for k, v in vars(model.cfg).items() if isinstance(v, bool | int | float | str)
        },
    }


def assert_same_state(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Two `state_of` agree to the last bit."""
    for what in ("weights", "buffers"):
        assert before[what].keys() == after[what].keys()
        for name, value in before[what].items():
            assert torch.equal(value.nan_to_num(), after[what][name].nan_to_num()), name
    for what in ("requires_grad", "grad", "training", "hooks", "flags"):
        assert before[what] == after[what], what


def unchecked(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function without the runtime type checks of the tests, as users call it."""
    return inspect.unwrap(function)
