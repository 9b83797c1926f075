import gc
import weakref

import pytest
import torch
from random_models import BACKENDS, build, random_neox, tiny_tokenizer

from mlp_interp import load_model
from mlp_interp.models import Forward, HookForward, fingerprint, forward_of
from mlp_interp.models import engine as engine_module

TOKENS = torch.tensor([[0, 5, 6]])


@pytest.fixture
def fresh(backend):
    """A model that a test may change."""
    return build("parallel", backend, "folded")


@pytest.fixture
def worked_out(monkeypatch):
    """Counts how often a model is worked out anew."""
    times, real = [], engine_module._lean_blocks

    def counted(model):
        times.append(1)
        return real(model)

    monkeypatch.setattr(engine_module, "_lean_blocks", counted)
    return times


def final(model):
    forward = forward_of(model)
    return forward.run(forward.embed(TOKENS))


def test_an_unchanged_model_is_worked_out_once(fresh, worked_out):
    first = forward_of(fresh)
    assert isinstance(first, Forward)
    assert forward_of(fresh).blocks is first.blocks
    assert len(worked_out) == 1


@pytest.mark.parametrize("through_data", [False, True])
def test_one_changed_entry_is_seen(fresh, worked_out, through_data):
    before = final(fresh)
    name, weight = next(
        (n, p) for n, p in fresh.named_parameters() if p.shape == (64, 32) or p.shape == (32, 64)
    )
    with torch.no_grad():
        (weight.data if through_data else weight)[17, 3] += 1e-3
    after = final(fresh)
    assert len(worked_out) == 2, name
    assert (before != after).any()


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("which", ["mlp.W_in", "mlp.W_out", "attn.W_Q", "attn.W_V", "attn.W_O"])
def test_weights_that_change_places_are_seen(which, axis):
    model = build("parallel", BACKENDS[0], "folded")
    before, known = final(model), fingerprint(model, TOKENS)
    part, name = which.split(".")
    weight = getattr(getattr(model.blocks[1], part), name).data
    matrix = weight[0] if part == "attn" else weight  # of a head; a view: it changes the model
    rows = matrix.transpose(0, axis)
    rows[[3, 5]] = rows[[5, 3]].clone()
    wanted = model.run_with_cache(TOKENS)[1]["blocks.2.hook_resid_post"]
    assert (wanted - before).abs().max() > 1e-3
    torch.testing.assert_close(final(model), wanted, atol=1e-4, rtol=0)
    assert fingerprint(model, TOKENS) != known


def test_a_hook_left_on_the_model_is_seen(fresh):
    clean = final(fresh)
    fresh.add_hook("blocks.1.hook_mlp_out", lambda x, hook: torch.zeros_like(x))
    try:
        assert isinstance(forward_of(fresh), HookForward)
        assert (final(fresh) - clean).abs().max() > 1e-3
    finally:
        fresh.reset_hooks()
    assert torch.equal(final(fresh), clean)


def test_remembering_keeps_no_model_alive():
    model = build("parallel", BACKENDS[0], "folded")
    forward_of(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_hooks_that_take_each_others_place_are_seen(fresh):
    seen = []
    for factor in (1.0, 0.5):
        fresh.add_hook("blocks.1.hook_mlp_out", lambda x, hook, factor=factor: x * factor)
        seen.append(final(fresh))
        fresh.reset_hooks()
    assert (seen[0] - seen[1]).abs().max() > 1e-3


def test_a_vocabulary_as_large_as_the_model_is_wide_hides_no_weight(backend):
    source = random_neox(d_model=60, heads=5, d_mlp=300, vocabulary=300, layers=2)
    model = load_model(source, tokenizer=tiny_tokenizer(), backend=backend)
    before = final(model)
    for parameter in model.parameters():
        if parameter.shape in ((300, 60), (60, 300)) and parameter.data_ptr() not in (
            model.W_E.data_ptr(),
            model.W_U.data_ptr(),
        ):
            parameter.data.zero_()
    assert (final(model) - before).abs().max() > 1e-3
