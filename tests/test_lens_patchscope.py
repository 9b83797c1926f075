"""Streams put into another prompt: what changes nothing, a slow reference, and what nano shows."""

from typing import Any

import numpy as np
import pytest
import torch
from random_models import VOCABULARY

from mlp_interp.lens import patchscope, read, scope
from mlp_interp.models import Weights
from mlp_interp.sites import Site

SUBJECT = {"position": -2, "at": -2}


def hook_of(layer: int, layers: int) -> str:
    last = layer == layers
    return Site("resid_post" if last else "resid_pre", layer - last).hook_name


@torch.no_grad()
def logits_with(model: Any, prompts: torch.Tensor, hook: str, at: int, x: Any) -> torch.Tensor:
    """The last position's, by a plain hook."""

    def put(stream: torch.Tensor, hook: Any = None) -> torch.Tensor:
        stream = stream.clone()
        stream[:, at] = x.to(stream)
        return stream

    return model.run_with_hooks(prompts, fwd_hooks=[(hook, put)])[:, -1].double()


def numbers(logits: torch.Tensor, own: torch.Tensor, plain: torch.Tensor) -> dict[str, Any]:
    """In float64, as the docstring has them."""
    q, p, was = (x.log_softmax(-1) for x in (logits, own, plain))
    rows, token = torch.arange(len(q)), own.argmax(-1)
    return {
        "kl_output": (p.exp() * (p - q)).sum(-1),
        "kl_unpatched": (was.exp() * (was - q)).sum(-1),
        "entropy": -(q.exp() * q).sum(-1),
        "logp_output": q[rows, token],
        "rank_output": (q > q[rows, token][:, None]).sum(-1).double(),
        "agrees": (q.argmax(-1) == token).double(),
    }


@pytest.mark.parametrize("into", ["same", 1])
def test_slow_reference(some_model: Any, tokens: torch.Tensor, into: Any) -> None:
    layers, norm = Weights.of(some_model).n_layers, Weights.of(some_model).final_norm
    prompt = tokens[:1, [3, 1, 4, 1, 5]].roll(1)
    found = patchscope(some_model, tokens, prompt, position=3, at=2, into=into, controls=2, seed=7)
    assert found["into"].values.tolist() == [n if into == "same" else 1 for n in range(layers + 1)]
    with torch.no_grad():
        own, cache = some_model.run_with_cache(tokens)
        plain = some_model(prompt)[:, -1].double().expand(4, -1)
    random = torch.randn(2, *cache[hook_of(0, layers)][:, 0].shape, generator=seeded(7))
    random = norm.keep(random)
    for layer in range(layers + 1):
        hook = hook_of(layer if into == "same" else 1, layers)
        stream = cache[hook_of(layer, layers)][:, 3]
        length = norm.keep(stream).norm(dim=-1, keepdim=True)
        vectors = [stream, *(random / random.norm(dim=-1, keepdim=True) * length)]
        once, *draws = (
            numbers(
                logits_with(some_model, prompt.expand(4, -1), hook, 2, x), own[:, 3].double(), plain
            )
            for x in vectors
        )
        for name, values in once.items():
            at = found.sel(layer=layer)
            np.testing.assert_allclose(at[name], values, atol=2e-4, err_msg=name)
            both = torch.stack([one[name] for one in draws]).numpy()
            np.testing.assert_allclose(at[f"{name}_chance"], both.mean(0), atol=2e-4)
            error = both.std(0, ddof=1) / 2**0.5
            np.testing.assert_allclose(at[f"{name}_chance_se"], error, atol=2e-4)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_put_where_it_was_it_changes_nothing(some_model: Any, tokens: torch.Tensor) -> None:
    found = patchscope(some_model, tokens, tokens, controls=1)
    for name in ("kl_output", "kl_unpatched", "rank_output"):
        np.testing.assert_allclose(found[name], 0, atol=1e-6)
    assert bool((found["agrees"] == 1).all())
    assert bool((found["kl_unpatched_chance"].isel(layer=0) > 1e-4).all())


def test_put_into_the_end_it_is_read_by_the_logit_lens(
    some_model: Any, tokens: torch.Tensor
) -> None:
    last = Weights.of(some_model).n_layers
    found = patchscope(some_model, tokens, tokens[:1, :3], into=last, targets=5, controls=1)
    lens = read(some_model, tokens, positions=-1, targets=5).isel(pos=0)
    for name in ("kl_output", "entropy", "logp_target", "rank_target", "top_logp", "agrees"):
        np.testing.assert_allclose(found[name], lens[name], atol=1e-4, err_msg=name)
    assert (found["top_id"].values == lens["top_id"].values).all()


def test_padding_layers_and_draws_do_not_matter(kind: Any, tokens: torch.Tensor) -> None:
    model = kind()
    tokens = tokens.clamp_min(1)
    mask = torch.ones_like(tokens)
    mask[0, 6:] = 0
    found = patchscope(model, tokens, tokens[1:2], attention_mask=mask, controls=2)
    short = patchscope(model, tokens[:1, :6], tokens[1:2], layers=[1], controls=2)
    np.testing.assert_allclose(
        short["kl_output"][0], found["kl_output"].sel(layer=[1])[0], atol=1e-5
    )
    some = patchscope(model, tokens, tokens[1:2], attention_mask=mask, layers=[1], controls=2)
    for name in ("kl_output", "kl_output_chance", "kl_output_chance_se"):
        np.testing.assert_allclose(some[name][:, 0], found[name].sel(layer=1), atol=1e-6)


def test_nano_answers_for_the_country_that_is_put_in(nano: Any) -> None:
    """The subject's own stream, before block 2 has moved what it says to the last position."""
    prompt = "The capital of Italy is"
    found = patchscope(
        nano, "The capital of France is", prompt, **SUBJECT, targets=" Paris", max_new_tokens=2
    )
    assert found["rank_target"][0].values.tolist()[:2] == [0, 0]
    assert bool((found["rank_target_chance"][0, :2] > 10).all())
    assert found["text"][0].values.tolist() == [" Paris."] * 2 + [" Rome."] * 3
    assert found["text_unpatched"].item() == " Rome."
    assert " Paris." not in found["text_chance"].values
    assert found["top_text"][0, 0, 0] == " Paris"


def test_a_text_that_ends_stops_there(nano: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (stop,) = nano.tokenizer.encode(".")
    monkeypatch.setattr(scope, "end_token", lambda *_: stop)
    text = "The capital of France is"
    found = patchscope(nano, text, text, layers=0, max_new_tokens=4, controls=1)
    assert found["text"].item() == found["text_unpatched"].item() == " Paris"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"target": torch.ones(3, 4, dtype=torch.long)}, "target has 3 prompts for 4 texts"),
        ({"position": 9}, "position=9"),
        ({"position": [1, 2]}, r"position=\[1, 2\]"),
        ({"at": 4}, "at=4"),
        ({"layers": 9}, r"layers=\[9\]"),
        ({"into": 9}, "into=9"),
        ({"into": "next"}, "into='next'"),
        ({"controls": 0}, "controls=0"),
        ({"k": VOCABULARY + 1}, "k=301"),
        ({"max_new_tokens": -1}, "max_new_tokens=-1"),
        ({"max_new_tokens": 10**6}, "max_new_tokens=1000000"),
        ({"targets": [1, 2]}, "targets has 2 tokens for 4 prompts"),
    ],
)
def test_bad_input(
    kind: Any, tokens: torch.Tensor, options: Any, match: str, without_type_checks: None
) -> None:
    target = options.pop("target", tokens[:1, :4])
    with pytest.raises(ValueError, match=match):
        patchscope(kind(), tokens, target, **options)
