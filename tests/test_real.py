"""A trained language model, SmolLM2-135M-Instruct: `make real` puts it there and runs these.

Expected numbers were measured with transformers' own forward pass on the same weights, and with
hand-written code for patching.
"""

import json
from itertools import product

import numpy as np
import pytest
import torch
from random_models import BACKENDS, PROCESSINGS
from real_figures import PART, first_and_gates, sizes, text_of
from real_page import FIGURES
from transformers import AutoModelForCausalLM, AutoTokenizer

import mlp_interp as mi
from mlp_interp.gradients import as_grid, compare
from mlp_interp.models.smollm2 import smollm2_place

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        not (smollm2_place() / "config.json").exists(), reason="SmolLM2 is put there by `make real`"
    ),
]

TEXT = (
    "The river rises in the mountains and flows north for about two hundred miles before it "
    "reaches the sea. In spring, when the snow melts, it often floods the fields along its lower "
    "course, and the farmers there have built their houses on small hills since the Middle Ages."
)
PROMPTS = {
    "The capital of France is": (" Paris", 0.773),
    "The capital of Japan is": (" Tokyo", 0.704),
    "Then, Mary and John went to the store. John gave a bottle of milk to": (" Mary", 0.946),
    "The Eiffel Tower is located in the city of": (" Paris", 0.701),
    "The opposite of hot is": (" cold", 0.685),
}


@pytest.fixture(scope="module")
def source():
    """The model as transformers reads it."""
    return AutoModelForCausalLM.from_pretrained(
        smollm2_place(), dtype=torch.float32, local_files_only=True
    ).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(smollm2_place(), local_files_only=True)


@pytest.fixture(scope="module", params=[*product(BACKENDS, PROCESSINGS)], ids="-".join)
def real(request):
    """The model in every class and processing, one in memory at a time."""
    backend, processing = request.param
    return mi.load_model("smollm2", device="cpu", backend=backend, processing=processing)


@pytest.fixture(scope="module")
def folded():
    return mi.load_model("smollm2", device="cpu")


@pytest.fixture(scope="module")
def text(tokenizer):
    return tokenizer(TEXT, return_tensors="pt").input_ids


@pytest.fixture(scope="module")
def repeats(tokenizer):
    """Four sequences of 50 random tokens, each twice, after BOS."""
    size, generator = (4, 50), torch.Generator().manual_seed(0)
    half = torch.randint(100, len(tokenizer), size, generator=generator)
    return torch.cat([torch.full((4, 1), tokenizer.bos_token_id), half, half], 1)


# The weights are those that they should be.


@torch.no_grad()
@pytest.mark.parametrize("prompt", PROMPTS)
def test_transformers_knows_the_answer(source, tokenizer, prompt):
    answer, expected = PROMPTS[prompt]
    (token,) = tokenizer(answer).input_ids
    logits = source(tokenizer(prompt, return_tensors="pt").input_ids).logits[0, -1]
    assert float(logits.softmax(-1)[token]) == pytest.approx(expected, abs=2e-3)
    assert int(logits.argmax()) == token


def test_the_directory_says_what_it_is_and_whose():
    card = (smollm2_place() / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct" in card
    assert "Apache License" in (smollm2_place() / "LICENSE").read_text()


# The package computes what transformers does, and its sums come out.


def test_it_computes_what_its_source_says(real):
    check = mi.check_model(real)
    assert bool(check.ok)
    for error in ("log_prob_error", "readout_error", "residual_error"):
        assert float(check[error]) < 2e-4, error


@torch.no_grad()
def test_log_probabilities_at_every_position(real, source, text, repeats):
    for tokens in (text, repeats[:1]):
        found, expected = (
            logits.log_softmax(-1) for logits in (real(tokens), source(tokens).logits)
        )
        worst = (found - expected).abs().amax((0, 2))
        assert float(worst.max()) < 3e-4, worst


@torch.no_grad()
@pytest.mark.parametrize("level", ["component", "head", "neuron"])
def test_components_sum_to_the_stream(real, text, level):
    tokens = text[:, :16]
    cache = mi.cache_for(real, tokens, level=level)
    residual = mi.decompose(real, cache, level=level)
    off = (residual.sum() - residual.total).norm(dim=-1) / residual.total.norm(dim=-1)
    assert float(off.max()) < 1e-4


@torch.no_grad()
def test_shares_sum_to_the_logit(real, text):
    run = mi.run(real, text[:, :16])
    logits = mi.Unembed.of(real).logits(run.final)[0, -1]
    answer = int(logits.argmax())
    shares = mi.attribute_logits(real, mi.cache_for(real, run.tokens), answer, positions=-1)
    assert shares.sum("component").item() == pytest.approx(float(logits[answer]), abs=2e-3)


# It does what language models do.


@torch.no_grad()
def test_it_knows_the_answers(real, tokenizer):
    for prompt, (answer, expected) in PROMPTS.items():
        (token,) = tokenizer(answer).input_ids
        logits = real(tokenizer(prompt, return_tensors="pt").input_ids)[0, -1]
        assert float(logits.softmax(-1)[token]) == pytest.approx(expected, abs=2e-3), prompt


@pytest.mark.parametrize(("task", "bar"), [("ioi", 3.0), ("facts", 3.0)])
def test_planted_tasks_are_understood(folded, task, bar):
    """Mean logit difference of answer and foil on clean prompts; less than none on corrupted."""
    contrast = getattr(mi.prompts, task)(folded, n=8, seed=0)
    found = mi.patch(folded, contrast, sites="mlp_out", layers=[29])
    assert float(found.clean.mean()) > bar
    assert float(found.corrupted.mean()) < 0


@torch.no_grad()
def test_random_tokens_are_copied(folded, repeats):
    log_probs = folded(repeats)[:, :-1].log_softmax(-1)
    loss = -log_probs.gather(2, repeats[:, 1:, None])[..., 0].mean(0)
    assert float(loss[:50].mean()) > 12
    assert float(loss[51:].mean()) < 4


@torch.no_grad()
def test_induction_heads(folded, repeats):
    """Attention from a token's second occurrence to the one after its first: L18H6 leads."""
    run = mi.run(folded, repeats, sites=[mi.Site("pattern", layer) for layer in range(30)])
    scores = torch.stack(
        [
            run.at(mi.Site("pattern", layer)).diagonal(-49, 2, 3)[..., 2:].mean((0, 2))
            for layer in range(30)
        ]
    )
    assert divmod(int(scores.argmax()), 9) == (18, 6)
    assert float(scores.max()) > 0.8
    assert 5 <= int((scores > 0.4).sum()) <= 12


# Estimates against exact patching: good for late outputs, and noise for the first MLP.


@pytest.fixture(scope="module")
def ioi(folded):
    return mi.prompts.ioi(folded, n=2, seed=0)


@pytest.fixture(scope="module")
def exact(folded, ioi):
    return mi.patch(folded, ioi, sites=["attn_out", "mlp_out"])


def compared(model, contrast, exact, site, **options):
    estimates = mi.attribution_patch(model, contrast, sites=[site], **options)
    return compare(exact.sel(site=[site]), as_grid(estimates, site)).sel(site=site)


def correlation(found):
    return np.corrcoef(found.exact.values.ravel(), found.estimate.values.ravel())[0, 1]


def test_estimates_for_attention_are_right(folded, ioi, exact):
    assert correlation(compared(folded, ioi, exact, "attn_out")) > 0.8


def test_estimates_for_later_mlps_are_right(folded, ioi, exact):
    found = compared(folded, ioi, exact, "mlp_out")
    assert correlation(found.sel(layer=slice(20, None))) > 0.8


def test_one_step_fails_at_the_first_mlp_and_four_do_not(folded, ioi, exact):
    """At the position whose patch does most, the second subject's: 4.65 logits exact, -0.40 of one
    step, 3.55 of four."""
    one, four = (
        compared(folded, ioi, exact, "mlp_out", steps=n).sel(layer=0).mean("prompt") for n in (1, 4)
    )
    place = {"pos": int(one.exact.argmax("pos"))}
    effect = float(one.exact[place])
    assert effect > 4
    assert float(one.estimate[place]) < 0.1 * effect
    assert 0.6 * effect < float(four.estimate[place]) < effect


# Its first position is an attention sink, and the figures of the page are those of the model.


@pytest.fixture(scope="module")
def figures():
    return json.loads(FIGURES.read_text())["smollm2"]


@pytest.fixture(scope="module")
def english(folded):
    return text_of("smollm2", folded)[:PART]


@pytest.fixture(scope="module")
def found_sizes(folded, english):
    return sizes(folded, english)


@pytest.mark.parametrize("name", ["stream", "attn", "mlp"])
def test_norms_by_layer(found_sizes, figures, name):
    """Medians of a twentieth of the text, and at the first position the same numbers."""
    np.testing.assert_allclose(found_sizes[name], figures[name], rtol=0.15)
    np.testing.assert_allclose(found_sizes[f"{name}_first"], figures[f"{name}_first"], rtol=1e-3)


def test_the_first_mlp_writes_far_more_than_there_is(found_sizes):
    assert found_sizes["mlp"][0] > 10 * found_sizes["stream"][0]


def test_the_first_position_is_a_sink(folded, english, figures):
    found = first_and_gates(folded, english)
    assert (found["massive"]["layer"], found["massive"]["dimension"]) == (11, 507)
    assert found["massive"]["entry"] > 1000 * found["massive"]["elsewhere"]
    looked = np.array(found["looked_at"])
    assert looked[:12].max() < 0.35
    assert looked[12:].min() > 0.25
    assert looked[12:].mean() > 0.5
    assert max(found["heads_over_half"]) == 9
    np.testing.assert_allclose(looked, figures["looked_at"], rtol=0.02)


def test_one_mlp_writes_the_sink_and_the_last_two_take_it_away(found_sizes):
    first, ordinary = (np.array(found_sizes[f"stream{end}"]) for end in ("_first", ""))
    assert found_sizes["mlp_first"][11] > 500 * found_sizes["mlp"][11]
    assert (first[12:28] > 30 * ordinary[12:28]).all()
    assert first[30] < 10 * ordinary[30]


def test_a_word_is_as_good_a_sink_as_bos(folded, text):
    site = mi.Site("resid_post", 11)
    norms = mi.run(folded, text, sites=[site]).at(site)[0].norm(dim=-1)
    assert int(text[0, 0]) != folded.tokenizer.bos_token_id
    assert float(norms[0]) > 20_000 > 10 * float(norms[1:].max())
