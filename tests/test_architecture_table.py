"""Every architecture that the documentation lists, against Hugging Face."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, table
from contrasts import contrast_of
from random_models import SLOW, VOCABULARY, tiny_tokenizer

import mlp_interp as mi
from mlp_interp.models import check_model, forward_of
from mlp_interp.residual import decompose

pytestmark = pytest.mark.filterwarnings("ignore")
TOKENS = torch.randint(VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(0))


# Each in both processings; one of them, in turn, is for `make test-all`.
CASES = [
    pytest.param((a, processing), id=f"{a.family}-{processing}", marks=[SLOW] if i % 2 else [])
    for number, a in enumerate(ARCHITECTURES)
    for i, processing in enumerate(("raw", "folded"), start=number)
]


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """An architecture, a random model of it, and that model loaded."""
    architecture, processing = request.param
    source = architecture.source()
    load = partial(mi.load_model, source, tokenizer=tiny_tokenizer(), backend="bridge")
    return architecture, source, partial(load, processing=processing)


@torch.no_grad()
def without_mlp(source, model):
    """Hugging Face's logits with the first MLP silenced."""
    end = f".0.{model.blocks[0].mlp.name}"
    module = next(module for name, module in source.named_modules() if name.endswith(end))
    handle = module.register_forward_hook(lambda _m, _x, out: 0 * out)
    try:
        return source(TOKENS).logits
    finally:
        handle.remove()


def test_all_levels_are_hugging_faces(case):
    architecture, source, load = case
    if architecture.refusal:
        with pytest.raises(ValueError, match=architecture.refusal):
            mi.ablate_total(load(), TOKENS, ["0.mlp"])
        return
    loaded = load()
    assert forward_of(loaded).engine == architecture.engine
    assert bool(check_model(loaded).ok)
    with torch.no_grad():
        clean = source(TOKENS).logits.log_softmax(-1)
        _, cache = loaded.run_with_cache(TOKENS)
    for level in ("component", "head", "neuron"):
        assert decompose(loaded, cache, level=level).error() < 1e-4
    readout = mi.Unembed.of(loaded).logits(cache["blocks.1.hook_resid_post"]).log_softmax(-1)
    torch.testing.assert_close(readout, clean, atol=1e-4, rtol=0)
    with torch.no_grad():
        logits = source(TOKENS).logits[:, -1]
    if architecture.cap is not None:  # shares are of what is capped
        logits = architecture.cap * torch.atanh(logits / architecture.cap)
    gap = logits[:, 5] - logits[:, 6]
    shares = mi.attribute_logits(loaded, cache, 5, 6, level="head")
    np.testing.assert_allclose(shares.sum("component").isel(pos=-1), gap, atol=1e-4)
    if architecture.written:
        changed = without_mlp(source, loaded).log_softmax(-1)
        kl = (clean.exp() * (clean - changed)).sum(-1)
        assert kl.min() > 1e-4
        found = mi.ablate_total(loaded, TOKENS, ["0.mlp"], first=0)
        np.testing.assert_allclose(found.kl.squeeze("component"), kl, rtol=1e-3, atol=1e-5)
    if architecture.cap is not None:
        assert "before the cap" in shares.long_name
        with pytest.raises(ValueError, match="capped at 3"):
            mi.ablate_direct(loaded, cache, "neuron", method="second_order")


def test_patches_and_gradients_are_the_same_by_hooks(case):
    architecture, _, load = case
    if architecture.engine != "lean" or architecture.refusal:
        pytest.skip("there is no lean forward pass to compare")
    loaded, contrast = load(), contrast_of(length=5)
    for sites in (["resid_pre", "mlp_out"], ["v"]):
        fast, slow = (
            mi.patch(loaded, contrast, sites=sites, positions=[2, -1], engine=engine)
            for engine in ("auto", "hooks")
        )
        assert (fast.engine, slow.engine) == ("lean", "hooks")
        np.testing.assert_allclose(fast.raw, slow.raw, atol=1e-4)
    fast, slow = (
        mi.edge_attribution(loaded, contrast, engine=engine) for engine in ("auto", "hooks")
    )
    np.testing.assert_allclose(fast.estimate, slow.estimate, atol=1e-4)


def test_the_documentation_has_this_table():
    page = Path(__file__).parents[1].joinpath("docs", "models.md").read_text()
    assert table() in page, f"docs/models.md wants this table:\n{table()}"
