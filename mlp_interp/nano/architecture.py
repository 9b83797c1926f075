"""The nano model's shape: Pythia's architecture, small."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlp_interp.nano.tokenizer import VOCABULARY

if TYPE_CHECKING:
    from transformers import GPTNeoXForCausalLM

__all__ = ["CONTEXT", "config_dict", "new_model"]

CONTEXT = 512
_EMBEDDING_STD = 0.08


def config_dict() -> dict[str, Any]:
    """Return the contents of ``config.json``.

    Written out by hand, with the rotary settings under their old and new names, so that
    every release of ``transformers`` that the package supports reads the same model. The
    dtype is float32 although the file holds float16: that is what analyses need.
    """
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "vocab_size": VOCABULARY,
        "hidden_size": 192,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "intermediate_size": 768,
        "hidden_act": "gelu",
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.25,
        },
        "attention_bias": True,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-5,
        "use_parallel_residual": True,
        "tie_word_embeddings": False,
        "use_cache": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "dtype": "float32",
        "torch_dtype": "float32",
    }


def new_model(seed: int) -> GPTNeoXForCausalLM:
    """Return the model with random weights.

    The unembedding starts as a rotated copy of the embedding (they are not tied: both then
    learn on their own). A head that copies a token then has one map to learn for the whole
    vocabulary, the rotation, instead of one token after another. Both start larger than
    usual: the embedding so that the optimizer's steps do not blur who is who, the
    unembedding so that a copied token is soon a likely one. Head 0 of layer 0 starts as a
    previous-token head.
    """
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    # A copy of torch's random state, so that the caller's is left alone.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPTNeoXForCausalLM(GPTNeoXConfig(**config_dict()))
        with torch.no_grad():
            embedding = model.get_parameter("gpt_neox.embed_in.weight").normal_(std=_EMBEDDING_STD)
            d_model = embedding.shape[1]
            rotation, _ = torch.linalg.qr(torch.randn(d_model, d_model, dtype=torch.float32))
            model.get_output_embeddings().get_parameter("weight").copy_(embedding @ rotation)
        _start_previous_token_head(model)
    return model


def _start_previous_token_head(model: GPTNeoXForCausalLM) -> None:
    """Let head 0 of layer 0 attend one token back, by its query and key biases alone.

    Induction needs such a head and the head that uses it at once, and neither pays before
    the other is there: a plateau that would take most of a short training run. Started like
    this, the head is as free to change as any other.

    The biases turn with the rotary angle ``theta`` of their pair of dimensions, so their share of
    the attention score is ``r**2 * cos(theta * (distance - 1))``, largest at distance 1.
    """
    import torch

    bias = model.get_parameter("gpt_neox.layers.0.attention.query_key_value.bias")
    angles = model.get_buffer("gpt_neox.rotary_emb.inv_freq").float().cpu()
    pairs = len(angles)
    d_head = model.config.hidden_size // model.config.num_attention_heads
    radii = torch.zeros(pairs)
    # Score 8 from the fast pair, whose peaks come back every 2 pi tokens, and 24 from the
    # next, ten times slower, which tells them apart.
    radii[:2] = (torch.tensor([8.0, 24.0]) * d_head**0.5).sqrt()
    with torch.no_grad():
        # Rows of the packed matrix: for each head its queries, then keys, then values.
        query, key, _ = bias.view(-1, 3, d_head)[0]
        query[:pairs], query[pairs : 2 * pairs] = radii * angles.cos(), -radii * angles.sin()
        key[:pairs] = radii
