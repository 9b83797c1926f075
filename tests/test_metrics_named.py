import pytest
import torch
from contrasts import contrast_of
from random_models import unchecked

from mlp_interp import metrics
from mlp_interp.metrics import metric as metric_module
from mlp_interp.models import forward_of


def by_hand(name, logits, contrast, clean_logits):
    rows = torch.arange(len(contrast))
    logits, clean_logits = logits[:, -1].double(), clean_logits[:, -1].double()
    answers, foils = contrast.answers, contrast.foils
    p, log_p = logits.softmax(-1), logits.log_softmax(-1)
    clean = clean_logits.log_softmax(-1)
    return {
        "logit_difference": logits[rows, answers] - logits[rows, foils],
        "logit": logits[rows, answers],
        "log_probability": log_p[rows, answers],
        "answer_log_probability": log_p[rows, answers],
        "probability": p[rows, answers],
        "probability_difference": p[rows, answers] - p[rows, foils],
        "kl": (clean.exp() * (clean - log_p)).sum(-1),
    }[name]


@pytest.mark.parametrize("name", metrics.METRICS)
def test_metrics_are_what_the_models_logits_give(model, name):
    contrast = contrast_of(3)
    forward = forward_of(model)
    clean, corrupted = (
        forward.run(forward.embed(tokens))[:, -1:]
        for tokens in (contrast.clean_tokens, contrast.corrupted_tokens)
    )
    reader = metrics.metric_for(name, contrast).reader(model, clean)
    with torch.no_grad():
        logits = model(contrast.corrupted_tokens)
        expected = by_hand(name, logits, contrast, model(contrast.clean_tokens))
    if name == "logit":  # a centred unembedding shifts all logits of a position alike
        assert torch.allclose(reader(corrupted, torch.arange(3)).double(), expected, atol=1e-3)
        return
    assert torch.allclose(reader(corrupted, torch.arange(3)).double(), expected, atol=1e-4)


@pytest.mark.parametrize("name", metrics.METRICS)
def test_items_are_read_by_their_prompt_and_in_pieces(kind, name, monkeypatch):
    model, contrast = kind(dtype=torch.float64), contrast_of(3)
    generator = torch.Generator().manual_seed(0)
    streams = torch.randn(5, 1, 32, generator=generator, dtype=torch.float64)
    prompts = torch.tensor([2, 0, 0, 1, 2])
    reference = torch.randn(3, 1, 32, generator=generator, dtype=torch.float64)
    whole = metrics.metric_for(name, contrast).reader(model, reference)(streams, prompts)
    monkeypatch.setattr(metric_module, "rows_for", lambda unembed: 2)
    reader = metrics.metric_for(name, contrast).reader(model, reference)
    assert torch.allclose(reader(streams, prompts), whole, atol=1e-12)
    alone = [reader(streams[i, None], prompts[i, None]) for i in range(5)]
    assert torch.allclose(torch.cat(alone), whole, atol=1e-12)


@pytest.mark.parametrize("name", metrics.METRICS)
def test_gradients_pass(kind, name):
    model, contrast = kind(dtype=torch.float64), contrast_of(2)
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(2, 1, 32, generator=generator, dtype=torch.float64)
    reader = metrics.metric_for(name, contrast).reader(model, reference)
    streams = torch.randn(2, 1, 32, generator=generator, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: reader(x, torch.arange(2)), streams, atol=1e-6)


@pytest.mark.parametrize("size", [1e-4, 0.1, 30.0, 3000.0])
def test_kl_is_the_same_with_gradients_and_without(kind, size, monkeypatch):
    """Without it walks over the vocabulary once, in blocks, for all items."""
    monkeypatch.setattr("mlp_interp.models.scan._ROWS", 3)
    model, generator = kind(), torch.Generator().manual_seed(0)
    reference = torch.randn(3, 2, 32, generator=generator)
    prompts = torch.tensor([2, 0, 0, 1, 2])
    streams = reference[prompts] + size * torch.randn(5, 2, 32, generator=generator)
    reader = metrics.kl(positions=(2, 4)).reader(model, reference)
    with_gradients = reader(streams.clone().requires_grad_(), prompts)
    assert with_gradients.requires_grad
    found = reader(streams, prompts)
    torch.testing.assert_close(found, with_gradients.detach(), rtol=1e-4, atol=1e-12)


def test_kl_of_the_clean_run_is_zero_and_over_several_positions_their_mean(kind):
    model = kind(dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    reference, other = torch.randn(2, 2, 3, 32, generator=generator, dtype=torch.float64)
    prompts = torch.arange(2)
    reader = metrics.kl(positions=(1, 3, -1)).reader(model, reference)
    assert (reader(reference, prompts) == 0).all()
    single = [
        metrics.kl().reader(model, reference[:, i, None])(other[:, i, None], prompts)
        for i in range(3)
    ]
    assert torch.allclose(reader(other, prompts), torch.stack(single).mean(0))


def test_a_custom_metric_sees_logits_and_prompts(kind):
    model = kind()
    seen = []

    def entropy(logits, prompts):
        seen.append((tuple(logits.shape), prompts.tolist()))
        return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)[:, 0]

    metric = metrics.Custom(name="entropy", unit="nats", function=entropy)
    reader = metric.reader(model, torch.zeros(2, 1, 32))
    assert reader(torch.ones(2, 1, 32), torch.tensor([1, 0])).shape == (2,)
    assert seen == [((2, 1, model.cfg.d_vocab), [1, 0])]


def test_bad_metrics(kind):
    model, contrast = kind(), contrast_of()
    wrong = metrics.Custom(name="wrong", unit="nats", function=lambda logits, prompts: logits)
    with pytest.raises(ValueError, match=r"'wrong' gave shape .* wanted one number an item"):
        wrong.reader(model, torch.zeros(2, 1, 32))(torch.zeros(2, 1, 32), torch.arange(2))
    with pytest.raises(ValueError, match=r"answers=.* and foils="):
        unchecked(metrics.logit_difference)(torch.tensor([1, 2]), torch.tensor([3]))
    with pytest.raises(ValueError, match="answers for 1 prompts and foils for 2"):
        metrics.probability_difference([(1,)], [(2,), (3,)])
    with pytest.raises(ValueError, match="names tokens for 1 prompts; wanted 2"):
        metrics.metric_for(metrics.logit(torch.tensor([1])), contrast)
    with pytest.raises(ValueError, match="ids outside the vocabulary"):
        metrics.logit(torch.tensor([10**6, 1])).reader(model, torch.zeros(2, 1, 32))
    with pytest.raises(ValueError, match="metric='loss'; wanted"):
        unchecked(metrics.metric_for)("loss", contrast)
    with pytest.raises(TypeError, match="no metric by itself"):
        metrics.Metric(name="x", unit="x").reader(model, torch.zeros(2, 1, 32))
