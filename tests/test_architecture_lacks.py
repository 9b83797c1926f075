"""Models whose blocks are not attention and one MLP: refused by what they have."""

import pytest
import torch
from architectures import Architecture
from random_models import HAS_HOOKED, hooked, tiny_tokenizer

import mlp_interp as mi

TOKENS = torch.tensor([[0, 5, 6]])
KINDS = {
    "Mixtral": (
        {"num_local_experts": 2, "num_experts_per_tok": 1, "num_key_value_heads": 2},
        "several experts for one MLP in block 0",
    ),
    "Mamba": ({"state_size": 8}, "no attention in block 0"),
    "XGLM": (
        {"d_model": 32, "attention_heads": 4, "num_layers": 2, "ffn_dim": 48},
        "positions that are added without an embedding of them",
    ),
}


def refused(model, words):
    for analysis in (
        lambda: mi.run(model, TOKENS),
        lambda: mi.ablate_total(model, TOKENS, ["1.mlp"]),
        lambda: mi.neurons.activity(model, TOKENS),
        lambda: mi.check_model(model),
    ):
        with pytest.raises(ValueError, match=f"model=.* has {words}.*; wanted a decoder whose"):
            analysis()


@pytest.mark.parametrize("family", KINDS)
def test_other_blocks_are_refused_by_name(family):
    from transformer_lens.model_bridge import TransformerBridge

    options, words = KINDS[family]
    source, tokenizer = Architecture(family, family, options).source(), tiny_tokenizer()
    source.config.architectures = [f"{family}ForCausalLM"]
    tokenizer.bos_token = None  # else the library reloads it from its path
    refused(
        TransformerBridge.boot_transformers(family, hf_model=source, tokenizer=tokenizer), words
    )


@pytest.mark.skipif(not HAS_HOOKED, reason="a class of TransformerLens 3")
def test_experts_of_the_other_class_are_refused():
    refused(hooked(num_experts=2, experts_per_token=1), "several experts for one MLP in block 0")


def test_dropout_in_training_mode_is_refused(kind):
    model = kind("gpt2", "bridge", "raw")
    expected = mi.run(model, TOKENS).final
    state = torch.random.get_rng_state()
    model.train()
    try:
        for analysis in (lambda: mi.run(model, TOKENS), lambda: mi.check_model(model)):
            with pytest.raises(
                ValueError, match=r"in training mode and has dropout.*wanted model\.eval"
            ):
                analysis()
    finally:
        model.eval()
    assert torch.equal(state, torch.random.get_rng_state())
    torch.testing.assert_close(mi.run(model, TOKENS).final, expected)


def test_training_mode_without_dropout_changes_nothing(kind):
    model = kind("parallel", "bridge", "raw")
    expected = mi.run(model, TOKENS).final
    model.train()
    try:
        torch.testing.assert_close(mi.run(model, TOKENS).final, expected)
    finally:
        model.eval()
