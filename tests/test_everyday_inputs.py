"""What users have at hand: texts, arrays, functions, vectors, hook names, one cache for all."""

import numpy as np
import pytest
import torch
from contrasts import contrast_of

import mlp_interp as mi
from mlp_interp import Edit, steering
from mlp_interp.metrics import Custom

TEXT = "The capital of France is"


@pytest.fixture(scope="module")
def ids(nano):
    return torch.tensor([[0, *nano.tokenizer(TEXT).input_ids]])


@pytest.mark.parametrize(
    "analysis",
    [
        lambda model, given: mi.cache_for(model, given)["blocks.1.hook_mlp_out"].numpy(),
        lambda model, given: mi.run(model, given).final.numpy(),
        lambda model, given: mi.ablate_total(model, given, ["0.mlp"]).kl.values,
        lambda model, given: mi.subupdate_importance(model, given).kl_total.values,
        lambda model, given: mi.norms(model, given).norm.values,
        lambda model, given: mi.neurons.activity(model, given, histogram=False).fraction.values,
    ],
    ids=["cache", "run", "total", "importance", "norms", "activity"],
)
def test_a_text_is_its_tokens(nano, ids, analysis):
    expected = analysis(nano, ids)
    for given in (TEXT, [TEXT], ids.numpy(), ids[0], ids[0].numpy()):
        np.testing.assert_array_equal(analysis(nano, given), expected)


def test_results_say_that_texts_were_begun(nano, ids):
    assert mi.ablate_total(nano, TEXT, ["0.mlp"]).attrs["bos"] == "each"
    assert "bos" not in mi.ablate_total(nano, ids, ["0.mlp"]).attrs
    assert "bos" not in mi.ablate_total(nano, ids.tolist(), ["0.mlp"]).attrs


def test_a_mask_of_one_text(nano, ids):
    row = torch.cat([ids[0], torch.tensor([7, 7])])
    mask = torch.tensor([1] * ids.shape[1] + [0, 0])
    found = mi.ablate_total(nano, row, ["0.mlp"], attention_mask=mask)
    expected = mi.ablate_total(nano, ids, ["0.mlp"])
    np.testing.assert_allclose(found.kl_mean, expected.kl_mean, rtol=1e-5)


def test_texts_of_several_lengths_are_not_run_together(nano):
    assert mi.run(nano, [TEXT, "The capital of Italy is"]).batch == 2
    with pytest.raises(ValueError, match="wanted texts of one length, or cache_for"):
        mi.run(nano, [TEXT, "The capital"])


def test_a_function_is_a_metric(kind):
    model, contrast = kind(), contrast_of(3)
    chosen = contrast.answers

    def entropy(logits):
        return -(logits.softmax(-1) * logits.log_softmax(-1)).sum((-1, -2))

    def answer(logits, prompts):
        return logits[:, -1].gather(-1, chosen[prompts][:, None])[:, 0]

    found = mi.patch(model, contrast, entropy, sites="z")
    whole = Custom(name="entropy", unit="", function=lambda logits, prompts: entropy(logits))
    np.testing.assert_array_equal(found.raw, mi.patch(model, contrast, whole, sites="z").raw)
    assert found.attrs["metric"] == "entropy"
    logits = model(contrast.clean_tokens)[:, -1:].detach()
    np.testing.assert_allclose(found.clean, entropy(logits), rtol=1e-4)
    by_name, own = (mi.patch(model, contrast, m, sites="z") for m in ("logit", answer))
    np.testing.assert_allclose(own.raw, by_name.raw, rtol=1e-4, atol=1e-5)
    estimate = mi.attribution_patch(model, contrast, entropy, sites=["z"])
    assert bool((estimate.z != 0).any())


def test_a_function_of_logits_that_goes_by_the_prompts_order_is_refused(kind):
    model, contrast = kind(), contrast_of(2)
    rows = torch.arange(2)
    for wrong in (
        lambda logits: logits[rows[: len(logits)], -1, contrast.answers[: len(logits)]],
        lambda logits: logits[:, -1, 3] - logits[:, -1, 3].mean(),
        lambda logits: logits[rows, -1, contrast.answers],
    ):
        with pytest.raises(ValueError, match=r"number alone than among others|one number an"):
            mi.patch(model, contrast, wrong, sites="z")


@pytest.mark.parametrize("given", [torch.tensor, np.array, list])
def test_a_vector_is_a_direction(kind, tokens, given):
    model = kind()
    vector = torch.linspace(-1, 1, model.cfg.d_model)
    (edit,) = steering.add(given(vector.tolist()), 2.0, layers=1)
    found = mi.run(model, tokens, edits=edit)
    expected = mi.run(model, tokens, edits=Edit.add("1.resid_post", 2 * vector))
    torch.testing.assert_close(found.final, expected.final)
    assert len(steering.project_out(given(vector.tolist()), layers=[0, 2])) == 2


def test_hook_names_are_sites(kind, tokens):
    model = kind()
    for name, label in (("blocks.1.hook_mlp_out", "1.mlp"), ("blocks.1.attn.hook_z", "1.z")):
        one, other = (Edit.scale(place, 0.5) for place in (name, label))
        assert one.site == other.site
    assert list(mi.ablate_total(model, tokens, ["blocks.1.hook_mlp_out"]).component) == ["1.mlp"]
    with pytest.raises(ValueError, match=r"'blocks.1.hook_mlp_uot' is not a component label"):
        Edit.scale("blocks.1.hook_mlp_uot", 0.5)


def test_the_finest_cache_serves_all_levels(kind, backend, tokens):
    model = kind("parallel", backend)
    finest = mi.cache_for(model, tokens, level="neuron")
    for level in ("component", "head"):
        own = mi.attribute_logits(model, mi.cache_for(model, tokens, level=level), 3, level=level)
        np.testing.assert_array_equal(mi.attribute_logits(model, finest, 3, level=level), own)


def test_a_dtype_by_name(neox_directory):
    assert mi.load_model(neox_directory, dtype="float64").W_U.dtype == torch.float64
    assert mi.load_model(neox_directory, dtype="torch.float64").W_U.dtype == torch.float64
    for wrong in ("float12", "int64", "nn"):
        with pytest.raises(ValueError, match="wanted a floating torch dtype"):
            mi.load_model(neox_directory, dtype=wrong)
