"""Kept numbers are found again by a run that would compute the same, and by no other."""

import pytest
import torch

from mlp_interp.models import fingerprint

TOKENS = torch.arange(12).reshape(3, 4)


def test_it_is_a_name_that_stays(kind, backend):
    name = fingerprint(kind("parallel", backend), TOKENS, {"seed": 1})
    assert name == fingerprint(kind("parallel", backend), TOKENS.int(), {"seed": 1})
    assert len(name) == 16
    assert int(name, 16) >= 0


def test_models_tokens_and_options_have_names_of_their_own(kind, backend):
    model = kind("parallel", backend)
    names = [
        fingerprint(model, TOKENS),
        fingerprint(model, TOKENS.flip(0)),
        fingerprint(model, TOKENS[:, :-1]),
        fingerprint(model, TOKENS.reshape(4, 3)),
        fingerprint(model, TOKENS, {"version": 2}),
        fingerprint(kind("parallel", backend, "raw"), TOKENS),
        fingerprint(kind("sequential", backend), TOKENS),
        fingerprint(kind("gpt2", backend), TOKENS),
    ]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("which", ["W_in", "W_out"])
def test_one_changed_entry_changes_it(kind, backend, which):
    model = kind("parallel", backend)
    before = fingerprint(model, TOKENS)
    weight = getattr(model.blocks[1].mlp, which).data
    kept = weight[5, 7].clone()
    try:
        weight[5, 7] += 1e-3
        assert fingerprint(model, TOKENS) != before
    finally:
        weight[5, 7] = kept
    assert fingerprint(model, TOKENS) == before
