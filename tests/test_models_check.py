"""What check_model finds on sound and on damaged models."""

import math

import pytest
import torch
from random_models import build, random_neox, tiny_tokenizer
from reference import is_rms

from mlp_interp.models import check_model, load_model


def test_processing_is_read_off_the_weights(model, request):
    folded = "folded" in request.node.callspec.id
    found = check_model(model)
    # Llama's norms subtract no mean, so nothing is centred for them; and it has no value biases.
    llama = is_rms(model)
    assert bool(found.ln_folded) == bool(found.unembed_centred) == folded
    assert bool(found.writing_centred) == (folded and not llama)
    assert bool(found.value_biases_folded) == (folded or llama)
    assert bool(found.ok)
    assert bool(found.finite)
    assert float(found.residual_error) < 1e-5
    assert found.attrs["n_layers"] == 3
    assert found.attrs["d_vocab"] == 300
    assert found.attrs["parallel"] == int(model.cfg.parallel_attn_mlp)


def test_the_difference_from_hugging_face_is_measured(backend, neox_directory):
    for source, options in (
        (neox_directory, {}),
        (random_neox(), {"tokenizer": tiny_tokenizer()}),
    ):
        found = check_model(load_model(source, backend=backend, **options))
        assert 0 <= float(found.log_prob_error) < 1e-4
        assert found.log_prob_error.attrs["unit"] == "nats"


def test_an_unknown_source_leaves_the_difference_open(kind):
    found = check_model(kind("gpt2", processing="raw"))
    assert math.isnan(float(found.log_prob_error))
    assert bool(found.ok)


DAMAGES = {
    "value": lambda m: m.blocks[1].mlp.W_out.data.mul_(1.05),
    "key": lambda m: m.blocks[0].mlp.W_in.data.mul_(1.05),
    "readout": lambda m: m.W_U.data[0, :50].add_(0.1),
    "nan": lambda m: m.blocks[2].mlp.W_in.data.fill_(torch.nan),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_model_damaged_after_loading_is_not_ok(damage, backend):
    source = random_neox()
    model = load_model(source, tokenizer=tiny_tokenizer(), backend=backend, processing="raw")
    assert bool(check_model(model).ok)
    with torch.no_grad():
        DAMAGES[damage](model)
    found = check_model(model)
    assert not bool(found.ok)
    assert bool(found.finite) == (damage != "nan")
    assert not float(found.log_prob_error) < 1e-3


def test_a_stream_that_its_parts_do_not_sum_to_is_not_ok(backend):
    """A hook that the user left on the model shows as a residual error."""
    model = build("parallel", backend, "folded")
    model.add_hook("blocks.1.hook_mlp_out", lambda x, hook: x * 1.1)
    found = check_model(model)
    assert not bool(found.ok)
    assert float(found.residual_error) > 1e-3


def test_only_models_are_checked():
    with pytest.raises(ValueError, match="str has no cfg"):
        check_model("nano")
