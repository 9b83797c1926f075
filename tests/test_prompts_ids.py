"""Prompts of a model that has no tokenizer: ids in, ids shown."""

import pytest
import torch
from random_models import HAS_HOOKED, hooked

import mlp_interp as mi


@pytest.mark.skipif(not HAS_HOOKED, reason="TransformerLens 4 has no HookedTransformer")
def test_ids_need_no_tokenizer():
    model = hooked()
    model.tokenizer = None
    clean = torch.randint(0, 50, (3, 7), generator=torch.Generator().manual_seed(0))
    corrupted = clean.clone()
    corrupted[:, 2] = torch.tensor([51, 52, 53])
    contrast = mi.Contrast.of(model, clean, corrupted, answers=[5, 6, 7], foils=[8, 9, 10])
    assert "‹#51›" in repr(contrast)
    assert contrast.attrs["tokenizer"] in ("none", model.cfg.model_name)
    found = mi.patch(model, contrast, sites="z")
    plain = mi.Contrast(clean, corrupted, torch.tensor([5, 6, 7]), torch.tensor([8, 9, 10]))
    assert torch.equal(
        torch.tensor(found["raw"].values),
        torch.tensor(mi.patch(model, plain, sites="z").raw.values),
    )
    with pytest.raises(ValueError, match=r"clean +#1\|#2\n"):
        mi.Contrast.of(model, [[1, 2]], [[1, 2, 3]], answers=5, foils=6)
    with pytest.raises(ValueError, match="has no tokenizer"):
        mi.Contrast.of(model, clean, corrupted, answers=" x", foils=[8, 9, 10])
