"""The last blocks as the decoder, among the streams of one layer or of the clean run."""

from typing import Any

import numpy as np
import pytest
import torch
from test_lens import plain_streams

from mlp_interp.lens import decoder, load, logit, read, save
from mlp_interp.sites import Site


def test_decoders_run_the_last_blocks(some_model: Any, tokens: torch.Tensor) -> None:
    found = read(some_model, tokens, {str(n): decoder(some_model, n) for n in range(3)})
    same = read(some_model, tokens, logit(some_model))
    np.testing.assert_array_equal(found["kl_output"].sel(lens="0"), same["kl_output"])
    for n in (1, 2):
        assert float(found["kl_output"].sel(lens=str(n), layer=3 - n).max()) < 1e-5
        assert found["entropy"].sel(lens=str(n), layer=range(4 - n, 3)).isnull().all()
    # By plain hooks: the last block's input replaced by the first one's.
    streams = plain_streams(some_model, tokens)
    put = (Site("resid_pre", 2).hook_name, lambda x, hook=None: streams[0].clone())
    with torch.no_grad():
        logits = some_model.run_with_hooks(tokens, fwd_hooks=[put]).double()
        clean = some_model(tokens).double().log_softmax(-1)
    kl = (clean.exp() * (clean - logits.log_softmax(-1))).sum(-1)
    np.testing.assert_allclose(found["kl_output"].sel(lens="1", layer=0), kl, atol=1e-4)


@pytest.mark.parametrize("part", ["attn", "mlp"])
def test_halves_of_the_last_block(some_model: Any, tokens: torch.Tensor, part: Any) -> None:
    found = read(some_model, tokens, decoder(some_model, 1, part=part))
    streams = plain_streams(some_model, tokens)
    names = {"attn": "mlp_out", "mlp": "attn_out"}
    hooks = [
        (Site("resid_pre", 2).hook_name, lambda x, hook=None: streams[1].clone()),
        (Site(names[part], 2).hook_name, lambda x, hook=None: torch.zeros_like(x)),
    ]
    with torch.no_grad():
        logits = some_model.run_with_hooks(tokens, fwd_hooks=hooks).double().log_softmax(-1)
        clean = some_model(tokens).double().log_softmax(-1)
    kl = (clean.exp() * (clean - logits)).sum(-1)
    np.testing.assert_allclose(found["kl_output"].sel(layer=1), kl, atol=1e-4)


def test_decoders_in_a_clean_context(some_model: Any, tokens: torch.Tensor) -> None:
    """By plain hooks, a pass for each position: all others are the clean run's."""
    lens = decoder(some_model, 2, context="clean")
    found = read(some_model, tokens, lens)
    same = read(some_model, tokens, decoder(some_model, 2))
    assert float(found["kl_output"].sel(layer=1).max()) < 1e-5
    np.testing.assert_allclose(found["entropy"][:, :, 0], same["entropy"][:, :, 0], atol=1e-5)
    stream = plain_streams(some_model, tokens)[0]
    with torch.no_grad():
        clean = some_model(tokens).double().log_softmax(-1)
        for pos in (0, 3, 8):

            def put(x: torch.Tensor, hook: Any = None, pos: int = pos) -> torch.Tensor:
                return x.index_copy(1, torch.tensor([pos]), stream[:, [pos]])

            hooks = [(Site("resid_pre", 1).hook_name, put)]
            logp = some_model.run_with_hooks(tokens, fwd_hooks=hooks).double().log_softmax(-1)
            kl = (clean.exp() * (clean - logp)).sum(-1)[:, pos]
            np.testing.assert_allclose(found["kl_output"].sel(layer=0, pos=pos), kl, atol=1e-4)


def test_a_clean_context_takes_a_pass_for_each_position_where_hooks_are(
    kind: Any, tokens: torch.Tensor
) -> None:
    model = kind()
    lens = decoder(model, 1, part="attn", context="clean")
    lean = read(model, tokens, lens)
    model.add_hook(Site("resid_pre", 0).hook_name, lambda x, hook=None: x)
    hooked = read(model, tokens, lens)
    model.reset_hooks()
    np.testing.assert_allclose(lean["kl_output"], hooked["kl_output"], atol=1e-5)
    assert lean.attrs["context"] == "clean"


def test_decoders_that_cannot_be(kind: Any, without_type_checks: None) -> None:
    with pytest.raises(ValueError, match="blocks=3; wanted at most 2"):
        decoder(kind(), 3)
    other: Any = "both"
    with pytest.raises(ValueError, match="part='both'"):
        decoder(kind(), 1, part=other)
    with pytest.raises(ValueError, match="context='both'"):
        decoder(kind(), 1, context=other)
    with pytest.raises(ValueError, match="reads no context"):
        decoder(kind(), 1, part="mlp", context="clean")


def test_a_decoder_keeps_its_context_in_a_file(kind: Any, tmp_path: Any) -> None:
    lens = decoder(kind(), 2, part="attn", context="clean")
    back = load(save(lens, tmp_path / "lens.safetensors"), kind())
    assert repr(back) == repr(lens)
    assert (back.blocks, back.part, back.context) == (2, "attn", "clean")
