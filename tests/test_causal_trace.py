import numpy as np
import pytest
import torch
from random_models import random_neox, tiny_tokenizer, unchecked

from mlp_interp import causal_trace, load_model
from mlp_interp.edits import Edit
from mlp_interp.models import engine
from mlp_interp.runs import run

PROMPT, SUBJECT = "The capital of France is", "France"


def by_hooks(model, trace, *, site, layer, position, window):
    """ROME's protocol with plain hooks: noise on the subject, one state restored."""
    tokens = torch.tensor([[model.tokenizer.eos_token_id, *model.tokenizer.encode(PROMPT)]])
    subject = trace.subject.values.nonzero()[0].tolist()
    samples = trace.sizes["sample"]
    generator = torch.Generator().manual_seed(trace.attrs["seed"])
    noise = torch.randn((samples, len(subject), model.cfg.d_model), generator=generator)
    noise = noise * 3.0 * model.W_E.std()
    first = layer - window // 2
    layers = range(max(0, first), min(model.cfg.n_layers, first + window))
    names = [f"blocks.{n}.hook_{site}" for n in layers]
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter=names)

        def corrupt(x, hook=None):
            x = x.clone()
            x[:, subject] += noise
            return x

        def restore(x, hook=None):
            x = x.clone()
            x[:, position] = cache[hook.name][:, position]
            return x

        hooks = [("hook_embed", corrupt), *((name, restore) for name in names)]
        logits = model.run_with_hooks(tokens.expand(samples, -1), fwd_hooks=hooks)
    [answer] = model.tokenizer.encode(trace.attrs["answer"])
    return logits[:, -1].softmax(-1)[:, answer].numpy()


def test_traces_are_what_plain_hooks_give(nano):
    trace = causal_trace(nano, PROMPT, SUBJECT, samples=3, window=2, seed=5)
    for site, window in (("resid_post", 1), ("mlp_out", 2), ("attn_out", 2)):
        for layer, position in ((0, 4), (1, 4), (2, 5), (3, 5), (3, 2)):
            expected = by_hooks(
                nano, trace, site=site, layer=layer, position=position, window=window
            )
            found = trace.indirect.sel(site=site, layer=layer, pos=position) + trace.corrupted
            np.testing.assert_allclose(found, expected, atol=2e-5)


def test_a_model_that_runs_through_hooks_is_traced_alike(nano, monkeypatch):
    fast = causal_trace(nano, PROMPT, SUBJECT, samples=2, sites=["mlp_out", "resid_pre"])

    monkeypatch.setattr(engine, "remembered", lambda model, work_out: None)
    slow = causal_trace(nano, PROMPT, SUBJECT, samples=2, sites=["mlp_out", "resid_pre"])
    assert (fast.engine, slow.engine) == ("lean", "hooks")
    np.testing.assert_allclose(fast.indirect, slow.indirect, atol=2e-5)


def test_self_checks(nano, monkeypatch):
    for engine_now in ("lean", "hooks"):
        trace = causal_trace(nano, PROMPT, SUBJECT, samples=2)
        assert trace.engine == engine_now
        assert trace.check_everything < 1e-5
        assert trace.check_nothing < 1e-5
        monkeypatch.setattr(engine, "remembered", lambda model, work_out: None)


def test_weights_that_are_not_numbers():
    model = load_model(random_neox(layers=2), tokenizer=tiny_tokenizer())
    model.blocks[0].mlp.b_out.data[3] = torch.nan
    with pytest.raises(ValueError, match="wanted a finite number: check_model says"):
        causal_trace(model, "the cat sat", "cat", samples=2, answer=5)


def test_what_adds_up(nano):
    trace = causal_trace(nano, PROMPT, SUBJECT, samples=4)
    np.testing.assert_allclose(trace.total, trace.clean - trace.corrupted)
    np.testing.assert_allclose(trace.average_indirect, trace.indirect.mean("sample"), atol=1e-6)
    error = trace.indirect.std("sample", ddof=1) / 2
    np.testing.assert_allclose(trace.average_indirect_se, error, atol=1e-6)
    np.testing.assert_allclose(
        trace.restored, (trace.indirect + trace.corrupted).mean("sample"), atol=1e-6
    )


def test_the_last_state_restores_everything_and_the_subject_decides_early(nano):
    trace = causal_trace(nano, PROMPT, SUBJECT, samples=4)
    assert trace.attrs["answer"] == " Paris"
    states = trace.average_indirect.sel(site="resid_post")
    end = states.isel(layer=-1, pos=-1)
    np.testing.assert_allclose(end, trace.total_mean, atol=1e-5)
    early = states.sel(layer=0)
    assert trace.subject[int(early.values.argmax())]


def test_noise_is_seeded_and_scaled(nano):
    first, again, other = (
        causal_trace(nano, PROMPT, SUBJECT, samples=2, seed=seed) for seed in (1, 1, 2)
    )
    assert (first.corrupted == again.corrupted).all()
    assert (first.corrupted != other.corrupted).all()
    quiet = causal_trace(nano, PROMPT, SUBJECT, samples=2, noise=1e-4)
    assert abs(quiet.total).max() < 1e-3


def test_runs_made_before_are_traced(nano):
    """Caches and runs, of the same noise or of one's own."""
    drawn = causal_trace(nano, PROMPT, SUBJECT, samples=3, seed=5, window=2)
    tokens = torch.tensor([[nano.tokenizer.eos_token_id, *nano.tokenizer.encode(PROMPT)]])
    subject = drawn.subject.values.nonzero()[0].tolist()
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn((3, len(subject), nano.cfg.d_model), generator=generator)

    def corrupt(x, hook=None):
        x = x.clone()
        x[:, subject] += noise * 3.0 * nano.W_E.std()
        return x

    with torch.no_grad():
        _, clean = nano.run_with_cache(tokens)
        with nano.hooks(fwd_hooks=[("hook_embed", corrupt)]):
            _, corrupted = nano.run_with_cache(tokens.expand(3, -1))
    given = causal_trace(nano, PROMPT, SUBJECT, runs=(clean, corrupted), window=2)
    np.testing.assert_allclose(given.indirect, drawn.indirect, atol=1e-5)
    assert given.check_nothing < 1e-5

    zeroed = run(nano, tokens, edits=[Edit.set("embed", 0.0, positions=subject)])
    own = causal_trace(nano, PROMPT, SUBJECT, runs=(run(nano, tokens), zeroed))
    assert own.sizes["sample"] == 1
    np.testing.assert_allclose(
        own.corrupted, zeroed.logits(-1).softmax(-1)[0, 0, answer_of(own, nano)]
    )


def answer_of(trace, model):
    [token] = model.tokenizer.encode(trace.attrs["answer"])
    return token


def test_runs_that_do_not_fit_are_refused(nano):
    tokens = torch.tensor([[nano.tokenizer.eos_token_id, *nano.tokenizer.encode(PROMPT)]])
    clean = run(nano, tokens)
    edited = clean.edited([Edit.set("1.mlp", 0.0)])
    lean = run(nano, tokens, sites=[])
    with torch.no_grad():
        _, italy = nano.run_with_cache(nano.to_tokens("The capital of Italy is"))
        with nano.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", lambda x, hook=None: 0 * x)]):
            _, hooked = nano.run_with_cache(tokens)
    for runs, message in (
        ((run(nano, tokens[:, :-1]), clean), "wanted the"),
        ((italy, clean), "is of other tokens"),
        ((clean, hooked), "ends elsewhere than the model"),
        ((clean, edited), "edits in force"),
        ((clean, lean), "the corrupted run lacks"),
    ):
        with pytest.raises(ValueError, match=message):
            causal_trace(nano, PROMPT, SUBJECT, runs=runs)


def test_subject_by_position_and_answer_by_word(nano):
    by_name = causal_trace(nano, PROMPT, SUBJECT, samples=2, answer=" Paris")
    where = by_name.subject.values.nonzero()[0].tolist()
    by_place = causal_trace(nano, PROMPT, where, samples=2)
    np.testing.assert_array_equal(by_name.corrupted, by_place.corrupted)


@pytest.mark.parametrize(
    ("prompt", "subject", "words", "said"),
    [
        ("Johnson met John at the", "John", [(12, 16)], "'John'"),
        ("John and Johnson met John", "John", [(0, 4), (21, 25)], "'John', all 2 times that it"),
        ("The art of Paris is art", "art", [(4, 7), (20, 23)], "'art', all 2 times"),
        ("a Paris-based man's hat", "man", [(14, 17)], "'man'"),
        ("in 2013 and 13 of", "13", [(12, 14)], "'13'"),
        ("im Büro, Bürotür, the Büro", "Büro", [(3, 7), (22, 26)], "'Büro', all 2 times"),
        ("in 東京都 now", "東京", [(3, 5)], "'東京'"),
    ],
)
def test_the_subject_is_a_word_of_its_own_wherever_it_stands(nano, prompt, subject, words, said):
    assert all(prompt[a:b] == subject for a, b in words)
    trace = causal_trace(nano, prompt, subject, samples=1, sites=["resid_post"])
    ids, end, expected = nano.tokenizer.encode(prompt), 0, [False]
    places = [(len(prompt[:a].encode()), len(prompt[:b].encode())) for a, b in words]
    for token in nano.tokenizer.convert_ids_to_tokens(ids):  # a letter of these stands for a byte
        start, end = end, end + len(token)
        expected.append(any(start < b and end > a for a, b in places))
    assert trace.subject.values.tolist() == expected
    assert trace.attrs["subject"].startswith(said)


@pytest.mark.parametrize("subject", ["John", "son", "ohn"])
def test_a_subject_inside_of_another_word_is_none(nano, subject):
    with pytest.raises(ValueError, match=f"subject='{subject}' stands only inside of other words"):
        causal_trace(nano, "Johnson met Mary at the", subject)


def test_the_noise_of_a_seed_is_the_same_whatever_the_default_type(nano):
    first = causal_trace(nano, PROMPT, SUBJECT, samples=2, sites=["resid_post"])
    torch.set_default_dtype(torch.float64)
    try:
        again = causal_trace(nano, PROMPT, SUBJECT, samples=2, sites=["resid_post"])
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_array_equal(first.corrupted, again.corrupted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": np.inf}, r"noise=inf; wanted a number above 0, and finite"),
        ({"noise": np.nan}, r"noise=nan; wanted"),
        ({"subject": [3, 3]}, r"subject=\[3, 3\]; wanted integers from -6 to 5, each once"),
        ({"subject": "Italy"}, "subject='Italy' is not in the prompt"),
        ({"subject": [17]}, r"subject=\[17\]; wanted integers from -6 to 5, each once"),
        ({"samples": 0}, "samples=0"),
        ({"noise": 0.0}, r"noise=0\.0"),
        ({"noise": "x"}, "noise='x'; wanted a number above 0"),
        ({"noise": True}, "noise=True; wanted a number above 0"),
        ({"sites": []}, r"sites=\[\]"),
        ({"sites": ["z"]}, r"sites=\['z'\]; wanted some of resid_pre"),
        ({"answer": " Paris Rome"}, "answer=' Paris Rome' is 2 tokens"),
        ({"answer": 10**6}, "answer=1000000"),
        ({"window": 0}, "window=0"),
    ],
    ids=str,
)
def test_bad_input(nano, options, message):
    with pytest.raises(ValueError, match=message):
        unchecked(causal_trace)(nano, PROMPT, **{"subject": SUBJECT, "samples": 2, **options})
