"""The architectures that the documentation lists, smallest models of each, and what comes of them.

`docs/models.md` has `table()` between two markers; a test compares the two.
"""

import copy
from dataclasses import dataclass, field
from typing import Any

import transformers
from random_models import HAS_HOOKED, VOCABULARY, quiet, randomise

_SHARED = {"intermediate_size": 48, "num_key_value_heads": 2}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4}


@dataclass(frozen=True)
class Architecture:
    """A family of models.

    Attributes:
        name: What it is called.
        family: How its classes in transformers begin.
        options: Of a small config, besides the usual sizes.
        engine: What its analyses run on, where they run.
        refused: Part of the error, where they do not.
        why: What the documentation says of that.
        before_4: Whether that is so with TransformerLens 3 alone.
        causal: The end of its class's name.
        config: The end of its config's.
        cap: What its logits are bounded by.
        written: Whether there is a module that gives what an MLP writes, and no more.
    """

    name: str
    family: str
    options: dict[str, Any] = field(default_factory=dict)
    engine: str = "lean"
    refused: str = ""
    why: str = ""
    before_4: bool = False
    causal: str = "ForCausalLM"
    config: str = "Config"
    cap: float | None = None
    written: bool = True

    @property
    def refusal(self) -> str:
        """Part of the error with the installed library; empty where there is none."""
        return "" if self.before_4 and not HAS_HOOKED else self.refused

    def source(self, seed: int = 0) -> Any:
        """A random Hugging Face model."""
        sizes = {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 64,
            "pad_token_id": None,
            "bos_token_id": 0,
            "eos_token_id": 0,
        }
        make = getattr(transformers, f"{self.family}{self.causal}")
        config = getattr(transformers, f"{self.family}{self.config}")
        with quiet(seed):
            model = make(config(**{**sizes, **copy.deepcopy(self.options)})).eval()
            randomise(model)
        return model


_AFTER = "adds to its stream other vectors than its embeddings, heads and neurons write"
_LOGITS = "has other logits than its final norm and unembedding give"
ARCHITECTURES = [
    Architecture("GPT-NeoX (Pythia)", "GPTNeoX", {"intermediate_size": 48}),
    Architecture("Llama, SmolLM2", "Llama", _SHARED),
    Architecture("Mistral", "Mistral", _SHARED),
    Architecture("Qwen 2", "Qwen2", _SHARED),
    Architecture("Qwen 3", "Qwen3", {**_SHARED, "head_dim": 12}),
    Architecture("Phi 3", "Phi3", {**_SHARED, "pad_token_id": 0}),
    Architecture("GPT-2", "GPT2", _GPT, causal="LMHeadModel"),
    Architecture("OLMo", "Olmo", {"intermediate_size": 48}),
    Architecture("Phi", "Phi", {"intermediate_size": 48}),
    Architecture("Starcoder 2", "Starcoder2", _SHARED),
    Architecture("StableLM", "StableLm", _SHARED),
    Architecture(
        "GPT-Neo",
        "GPTNeo",
        {
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 8,
        },
        "hooks",
    ),
    Architecture("GPT-J", "GPTJ", {**_GPT, "rotary_dim": 4}, "hooks"),
    Architecture("CodeGen", "CodeGen", {**_GPT, "rotary_dim": 4}, "hooks"),
    Architecture("Falcon", "Falcon", {}, "hooks"),
    Architecture("OPT", "OPT", {"ffn_dim": 48, "word_embed_proj_dim": 32}, "hooks", written=False),
    Architecture("BLOOM", "Bloom", {"n_layer": 2, "n_head": 4}, "hooks", written=False),
    Architecture("Gemma", "Gemma", {**_SHARED, "head_dim": 12}, "hooks"),
    Architecture(
        "Gemma 3",
        "Gemma3",
        {
            **_SHARED,
            "head_dim": 12,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        "hooks",
        config="TextConfig",
    ),
    Architecture("OLMo 2", "Olmo2", _SHARED, "hooks"),
    Architecture(
        "Granite",
        "Granite",
        {
            **_SHARED,
            "residual_multiplier": 0.5,
            "embedding_multiplier": 2.0,
            "attention_multiplier": 0.3,
            "logits_scaling": 4.0,
        },
        "hooks",
        _AFTER,
        "TransformerLens 3 hides what its embedding writes; with TransformerLens 4 as Gemma",
        before_4=True,
    ),
    Architecture(
        "Gemma 2",
        "Gemma2",
        {**_SHARED, "head_dim": 12, "final_logit_softcapping": 3.0, "sliding_window": 4},
        "hooks",
        cap=3.0,
    ),
    Architecture(
        "Cohere",
        "Cohere",
        _SHARED,
        refused="is a 'cohere' model",
        why="TransformerLens computes something else than Hugging Face",
    ),
    Architecture(
        "Nemotron",
        "Nemotron",
        _SHARED,
        "hooks",
        _LOGITS,
        "TransformerLens 3 lacks its LayerNorm; with TransformerLens 4 as Gemma",
        before_4=True,
    ),
]


def table() -> str:
    """The table of the documentation."""
    runs = {"lean": "the lean forward pass", "hooks": "the model's own forward pass, with hooks"}
    rows = [
        f"| {a.name} | {'refused: ' + a.why if a.refused else runs[a.engine]} |"
        for a in ARCHITECTURES
    ]
    return "\n".join(["| architecture | analyses run on |", "|---|---|", *rows])
