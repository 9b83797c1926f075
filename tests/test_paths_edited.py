"""Paths and edges of a model on which edits are held: what these write is a sender, or refused."""

from typing import Any

import numpy as np
import pytest
import torch

from mlp_interp import edge_attribution, evaluate_hypothesis, path_patch
from mlp_interp.circuits import faithfulness
from mlp_interp.edits import Edit
from mlp_interp.prompts import Contrast
from mlp_interp.sites import Site
from mlp_interp.steering import steer

DIRECTION = torch.randn(32, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def contrast(tokens):
    other = tokens.clone()
    other[:, 3] = (other[:, 3] + 7) % 300
    return Contrast(tokens[:2], other[:2], torch.tensor([5, 6]), torch.tensor([7, 8]))


def differences(model: Any, contrast: Contrast, streams: list[Any]) -> torch.Tensor:
    answers, foils = contrast.answers, contrast.foils
    with torch.no_grad():
        logits = model.unembed(model.ln_final(torch.stack(streams)[:, :, -1]))
    rows = torch.arange(len(answers))
    return logits[:, rows, answers] - logits[:, rows, foils]


@pytest.mark.parametrize(
    ("architecture", "processing", "place"),
    [
        ("parallel", "folded", "1.resid_post"),
        ("sequential", "raw", "2.resid_pre"),
        ("gpt2", "folded", "2.resid_post"),
        ("parallel", "raw", "0.resid_pre"),
    ],
)
def test_edits_are_senders(kind, backend, contrast, architecture, processing, place):
    """All senders together give the other run; each write's direct effect is by plain hooks."""
    model = kind(architecture, backend, processing)
    edit, seen = Edit.project_out(place, DIRECTION), []
    unit, label = DIRECTION / DIRECTION.norm(), f"edit:{place}"

    def by_hand(x: torch.Tensor, hook: Any = None) -> torch.Tensor:
        seen.append(-(x @ unit)[..., None] * unit)
        return x + seen[-1]

    finals = []
    name = Site("resid_post", 2).hook_name
    for tokens in (contrast.clean_tokens, contrast.corrupted_tokens):
        with torch.no_grad():
            hooks: list[Any] = [(Site.parse(place).hook_name, by_hand)]
            hooks.append((name, lambda x, hook=None: finals.append(x.clone())))
            model.run_with_hooks(tokens, fwd_hooks=hooks)
    exchanged = finals[1] + seen[0] - seen[1]
    clean, corrupted, expected = differences(model, contrast, [*finals, exchanged])
    with steer(model, edit):
        result = path_patch(model, contrast, senders="component")
        alone = path_patch(model, contrast, senders=[label])
        held = path_patch(model, contrast, senders="component", freeze="attention")
        with pytest.raises(ValueError, match="freeze='attention', which lets edits"):
            path_patch(model, contrast, senders=[label], freeze="attention")
    for found in (result, alone, held):
        assert float(found.check_everything) < 1e-3
        assert float(found.check_nothing) < 1e-3
        np.testing.assert_allclose(found.clean, clean, atol=1e-4)
        np.testing.assert_allclose(found.corrupted, corrupted, atol=1e-4)
    np.testing.assert_allclose(result.raw.sel(sender=label)[0], expected, atol=1e-4)
    np.testing.assert_allclose(alone.raw[0, 0], expected, atol=1e-4)
    assert label not in held.sender.values


def test_receivers_of_one_level_hear_what_edits_say(kind, backend, contrast):
    model = kind("parallel", backend)
    with steer(model, Edit.scale("0.resid_post", 1.5)):
        result = path_patch(model, contrast, senders="head", receivers="component")
    assert "edit:0.resid_post" in result.sender.values
    assert "edit:0.resid_post" not in result.receiver.values
    later = result.changed.sel(sender="edit:0.resid_post")
    assert later.sel(receiver="1.mlp").all()
    assert not later.sel(receiver="0.mlp").any()
    assert float(result.check_everything) < 1e-3


def test_what_adds_the_same_to_both_runs_changes_no_difference(kind, backend, contrast):
    model = kind("sequential", backend)
    with steer(model, Edit.add("1.resid_post", DIRECTION)):
        result = path_patch(model, contrast, senders="component")
        edges = edge_attribution(model, contrast)
        paths = evaluate_hypothesis(model, contrast, nodes=[["0.mlp", "2.mlp"]], draws=0)
    assert not result.changed.sel(sender="edit:1.resid_post").any()
    assert float(paths.check_everything) < 1e-3
    assert float(result.check_everything) < 1e-3
    assert np.isfinite(edges.estimate.sel(receiver="logits")).all()


@pytest.mark.parametrize(
    "edit",
    [
        Edit.project_out("1.resid_post", DIRECTION),
        Edit.project_out("2.resid_post", DIRECTION),
        Edit.scale("1.attn", 3.0),
    ],
)
def test_what_a_graph_has_no_node_for_is_refused(kind, backend, contrast, edit):
    model = kind("sequential", backend)
    edges = edge_attribution(model, contrast)
    with steer(model, edit):
        with pytest.raises(ValueError, match="edge_attribution: hooks on the model"):
            edge_attribution(model, contrast)
        with pytest.raises(ValueError, match=r"no node of its graph|heads of block 1 do not sum"):
            evaluate_hypothesis(model, contrast, nodes=[["L0H1", "L1H1"]], draws=0)
        with pytest.raises(ValueError, match="takes the lean forward"):
            faithfulness(model, contrast, edges=edges, fractions=[1.0])


def test_parts_that_are_not_what_their_block_wrote_cannot_send(kind, backend, contrast):
    model = kind("sequential", backend)
    with steer(model, Edit.scale("0.mlp", 3.0)):
        with pytest.raises(ValueError, match=r"neurons of block 0 do not sum to '0.mlp'"):
            path_patch(model, contrast, senders=["L0N3"])
        whole = path_patch(model, contrast, senders="component")
    assert float(whole.check_everything) < 1e-3
    held, refused = (
        steer(model, Edit.scale("1.attn", 3.0)),
        "heads of block 1 do not sum to '1.attn'",
    )
    with held, pytest.raises(ValueError, match=refused):
        path_patch(model, contrast, senders=["L1H2"])


def test_an_edit_that_is_not_held_sends_nothing(kind, contrast):
    with pytest.raises(ValueError, match="no edit is held on the model there"):
        path_patch(kind(), contrast, senders=["edit:1.resid_post"])
