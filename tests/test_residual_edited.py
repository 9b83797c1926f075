"""What edits of the stream write is a component of its own, or what does not add up is refused."""

from typing import Any

import numpy as np
import pytest
import reference
import torch
from random_models import random_neox, tiny_tokenizer

from mlp_interp import attribute_logits, load_model, run
from mlp_interp.ablation import ablate_direct, subupdate_importance
from mlp_interp.edits import Edit
from mlp_interp.residual import LEVELS, cache_for, components, decompose, needed
from mlp_interp.sites import Site
from mlp_interp.steering import steer

DIRECTION = torch.randn(32, generator=torch.Generator().manual_seed(3))
STREAM = {
    "edit:1.resid_post": Edit.add("1.resid_post", DIRECTION),
    "edit:2.resid_pre": Edit.project_out("2.resid_pre", DIRECTION),
    "edit:0.resid_pre": Edit.scale("0.resid_pre", 1.5),
    "edit:2.resid_post": Edit.add("2.resid_post", DIRECTION, positions=[-1]),
}


def by_hand(model: Any, tokens: torch.Tensor, label: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What one of the edits writes, and the final logits, by a plain hook."""
    name, written = Site.parse(label.removeprefix("edit:")).hook_name, []
    unit = DIRECTION / DIRECTION.norm()

    def hook(x: torch.Tensor, hook: Any = None) -> torch.Tensor:
        changed = x.clone()
        if label == "edit:1.resid_post":
            changed += DIRECTION
        elif label == "edit:2.resid_pre":
            changed -= (x @ unit)[..., None] * unit
        elif label == "edit:0.resid_pre":
            changed *= 1.5
        else:
            changed[:, -1] += DIRECTION
        written.append(changed - x)
        return changed

    with torch.no_grad():
        logits = model.run_with_hooks(tokens, fwd_hooks=[(name, hook)])
    return written[0], logits


@pytest.mark.parametrize(
    ("architecture", "processing", "label"),
    [
        ("parallel", "folded", "edit:1.resid_post"),
        ("sequential", "raw", "edit:2.resid_pre"),
        ("gpt2", "raw", "edit:0.resid_pre"),
        ("gpt2", "folded", "edit:2.resid_post"),
    ],
)
def test_what_an_edit_of_the_stream_writes_is_a_component(
    kind, backend, tokens, architecture, processing, label
):
    model, tokens = kind(architecture, backend, processing), tokens[:2]
    written, logits = by_hand(model, tokens, label)
    for level in LEVELS:
        with steer(model, STREAM[label]):
            cache = cache_for(model, tokens, level=level)
            inside = decompose(model, cache, level=level)
        residual = decompose(model, cache, level=level)  # a cache goes on telling it
        assert residual.labels == inside.labels
        assert [site.label for site in residual.edits] == [label]
        assert residual.error() < 1e-4
        torch.testing.assert_close(
            residual.vectors()[:, :, residual.labels.index(label)], written, atol=1e-4, rtol=1e-4
        )
        shares = attribute_logits(model, cache, 5, 6, level=level, positions=None)
        assert label in shares.component.values
        sums = shares.sum("component").values
        np.testing.assert_allclose(sums, (logits[..., 5] - logits[..., 6]).numpy(), atol=2e-4)


def test_edits_stand_where_they_write(kind, tokens):
    model = kind("gpt2")
    with steer(model, STREAM.values()):
        cache = reference.full_cache(model, tokens)
    labels = "embed pos_embed edit:0.resid_pre 0.attn 0.mlp 1.attn 1.mlp edit:1.resid_post"
    labels += " edit:2.resid_pre 2.attn 2.mlp edit:2.resid_post"
    assert decompose(model, cache).labels == labels.split()
    early = decompose(model, cache, layer=2, positions=[0, 3])
    assert early.labels[-2:] == ["edit:1.resid_post", "edit:2.resid_pre"]
    assert early.error() < 1e-4


def test_a_run_with_edits_tells_of_them(kind, backend, tokens):
    model = kind("parallel", backend)
    written, _ = by_hand(model, tokens, "edit:2.resid_pre")
    clean = run(model, tokens, sites=["attn_out", "mlp_out", "z", "post"])
    edited = clean.edited([STREAM["edit:2.resid_pre"]])
    for level in LEVELS:
        residual = decompose(model, edited, level=level)
        vectors = residual.vectors()[:, :, residual.labels.index("edit:2.resid_pre")]
        torch.testing.assert_close(vectors, written, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("edit", "levels", "unit", "named"),
    [
        (Edit.scale("0.mlp", 3.0), ["neuron"], "L0N3", "neurons of block 0 do not sum to '0.mlp'"),
        (Edit.add("1.attn", DIRECTION), ["head", "neuron"], "L1H1", "heads of block 1 do not sum"),
    ],
)
def test_parts_that_do_not_add_up_are_refused_by_name(
    kind, backend, tokens, edit, levels, unit, named
):
    model, tokens = kind("sequential", backend, "raw"), tokens[:2]
    with steer(model, edit):
        caches = {level: cache_for(model, tokens, level=level) for level in LEVELS}
        refusing: list[Any] = [
            *(lambda x=x: decompose(model, caches[x], level=x) for x in levels),
            lambda: components(model, caches["neuron"], [unit]),
            lambda: ablate_direct(model, caches["neuron"], [unit]),
        ]
        if "head" in levels:
            refusing.append(lambda: subupdate_importance(model, tokens, level="head"))
        for refuses in refusing:
            with pytest.raises(ValueError, match=named):
                refuses()
        for level in {*LEVELS} - {*levels}:
            residual = decompose(model, caches[level], level=level)
            assert residual.edits == ()
            assert residual.error() < 1e-4


def test_a_cache_that_cannot_tell_says_what_it_lacks(kind, backend, tokens):
    model = kind("parallel", backend)
    names = needed(model)
    with steer(model, STREAM["edit:1.resid_post"]):
        _, cache = model.run_with_cache(tokens, names_filter=names)
        _, finer = model.run_with_cache(tokens, names_filter=needed(model, level="head"))
        del finer.cache_dict["blocks.0.hook_attn_out"]
        with pytest.raises(ValueError, match=r"cache lacks blocks\.0\.hook_attn_out"):
            components(model, finer, ["L0H1"])
    with pytest.raises(ValueError, match=r"cache lacks blocks\.0\.hook_resid_pre.*names_filter="):
        decompose(model, cache)


def test_a_cache_of_another_model_does_not_add_up(kind, tokens):
    other = load_model(random_neox(seed=5), tokenizer=tiny_tokenizer())
    cache = dict(reference.full_cache(other, tokens).items())  # which does not say who made it
    with pytest.raises(ValueError, match=r"not sum to '0\.attn'.*or the cache is of another"):
        decompose(kind("parallel"), cache, level="neuron")
