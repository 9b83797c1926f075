"""A cross-layer transcoder, from files made by hand, in the places of all MLPs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import mlp_interp as mi
from mlp_interp import dictionaries, latents
from mlp_interp.dictionaries import Dictionary, JumpRelu

LAYERS, D, N = 4, 192, 24


def numbers(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def nano() -> Any:
    return mi.load_model("nano")


@pytest.fixture(scope="module")
def clt(tmp_path_factory: Any) -> list[Dictionary]:
    path: Path = tmp_path_factory.mktemp("clt")
    for n in range(LAYERS):
        encoder = {f"W_enc_{n}": numbers(N, D, seed=n), f"b_enc_{n}": numbers(N, seed=30 + n)}
        encoder |= {f"b_dec_{n}": 0.1 * numbers(D, seed=40 + n)}
        encoder |= {f"threshold_{n}": torch.full((N,), 9.0)}
        decoder = 0.02 * numbers(N, LAYERS - n, D, seed=20 + n)
        save_file(encoder, path / f"W_enc_{n}.safetensors")
        save_file({f"W_dec_{n}": decoder}, path / f"W_dec_{n}.safetensors")
    return [*dictionaries.load_all(path).values()]


def by_hand(x: torch.Tensor, layer: int) -> torch.Tensor:
    """Activations of a layer's latents, ``[..., latent]``."""
    pre = x @ numbers(N, D, seed=layer).T + numbers(N, seed=30 + layer)
    return pre * (pre > 9)


def hooks_of(places: Any, counts: torch.Tensor, error: dict[int, torch.Tensor]) -> list[Any]:
    """Plain hooks that put what all latents below and of a layer write there in its place."""
    values: dict[int, torch.Tensor] = {}

    def reads(x: torch.Tensor, hook: Any) -> None:
        normalized = torch.nn.functional.layer_norm(x, x.shape[-1:], eps=1e-5)
        values[hook.layer()] = by_hand(normalized, hook.layer())

    def writes(x: torch.Tensor, hook: Any) -> torch.Tensor:
        here = hook.layer()
        rebuilt = 0.1 * numbers(D, seed=40 + here)
        for n in range(here + 1):
            decoder = 0.02 * numbers(N, LAYERS - n, D, seed=20 + n)[:, here - n]
            rebuilt = rebuilt + values[n] @ decoder
        error[here] = x - rebuilt
        return torch.where(counts, rebuilt, x) if here in places else x

    return [
        *((f"blocks.{n}.hook_resid_pre", reads) for n in range(LAYERS)),
        *((f"blocks.{n}.hook_mlp_out", writes) for n in range(LAYERS)),
    ]


def test_all_layers_below_write_together(nano: Any, clt: list[Dictionary]) -> None:
    """Slow reference: plain hooks, which know of no parts of dictionaries."""
    few = mi.load_corpus("nano", nano, sequences=2, length=48)
    found = latents.replace(nano, clt, few, batch_size=1)
    assert found.replaced.values.tolist() == ["0.mlp", "1.mlp", "2.mlp", "3.mlp", "all"]
    assert float(found.kl.sel(by="frozen_error").max()) < 1e-6
    groups = {"0.mlp": (0,), "2.mlp": (2,), "all": range(LAYERS)}
    wanted: dict[str, list[float]] = {name: [] for name in groups}
    left, written = [], []
    for row in few.tokens:
        counts = (row != 0)[None, :, None]
        with torch.no_grad():
            clean = nano(row[None])[0].double().log_softmax(-1)
            for name, places in groups.items():
                logits = nano.run_with_hooks(row[None], fwd_hooks=hooks_of(places, counts, {}))
                changed = logits[0].double().log_softmax(-1)
                kl = (clean.exp() * (clean - changed)).sum(-1)
                wanted[name].append(float(kl[counts[0, :, 0]].mean()))
            error: dict[int, torch.Tensor] = {}
            nano.run_with_hooks(row[None], fwd_hooks=hooks_of((), counts, error))
        left.append(error[2][counts[..., 0]])
        written.append(mi.run(nano, row[None])["2.mlp"][counts[..., 0]])
    for name, values in wanted.items():
        mine = float(found.kl.sel(replaced=name, by="dictionary"))
        assert mine == pytest.approx(np.mean(values), rel=1e-3)
    y = torch.cat(written)
    fvu = torch.cat(left).square().sum() / (y - y.mean(0)).square().sum()
    assert float(found.fvu.sel(place="2.mlp")) == pytest.approx(float(fvu), rel=1e-3)


def test_own_values_change_nothing_and_others_write_to_all_later_layers(
    nano: Any, clt: list[Dictionary]
) -> None:
    tokens = torch.tensor([[0, 5, 6, 9, 7]])
    run, one = mi.run(nano, tokens), clt[1]
    read = torch.nn.functional.layer_norm(run.streams[1], (D,), eps=1e-5)
    own = by_hand(read, 1)
    assert int((own > 0).sum()) > 3
    parts = [one.towards(layer) for layer in range(1, LAYERS)]
    encoded = one.encode(read).dense()
    torch.testing.assert_close(encoded, own, atol=1e-4, rtol=1e-4)
    same = [mi.Edit.latents(part, dict.fromkeys(range(N), ("scale", 1.0))) for part in parts]
    again = run.edited(same)
    assert torch.equal(again.final, run.final)
    twice = [mi.Edit.latents(part, dict.fromkeys(range(N), ("scale", 2.0))) for part in parts]
    for n, edit in enumerate(twice):
        more = run.edited([edit])[f"{n + 1}.mlp"] - run[f"{n + 1}.mlp"]
        decoder = 0.02 * numbers(N, LAYERS - 1, D, seed=21)[:, n]
        torch.testing.assert_close(more, own @ decoder, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("below", [2, 4])
def test_a_latent_is_one_component_with_all_that_it_writes(
    nano: Any, clt: list[Dictionary], below: int
) -> None:
    """Slow reference: plain hooks and the files' own numbers."""
    tokens, error = torch.tensor([[0, 5, 6, 9, 7]]), {}
    run = mi.run(nano, tokens)
    with torch.no_grad():
        nano.run_with_hooks(tokens, fwd_hooks=hooks_of((), torch.ones(1, 5, 1), error))
    found = mi.decompose(nano, run, layer=below, dictionaries=clt[:below])
    assert found.error() < 1e-4
    vectors = dict(zip(found.labels, found.vectors().unbind(2), strict=True))
    torch.testing.assert_close(
        sum(vectors.values()), run.streams[below] if below < LAYERS else run.final
    )
    for layer in range(below):
        torch.testing.assert_close(vectors[f"{layer}.error"], error[layer], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            vectors[f"{layer}.b_dec"], 0.1 * numbers(D, seed=40 + layer).expand(1, 5, -1)
        )
        read = torch.nn.functional.layer_norm(run.streams[layer], (D,), eps=1e-5)
        own = by_hand(read, layer)
        decoder = 0.02 * numbers(N, LAYERS - layer, D, seed=20 + layer)[:, : below - layer].sum(1)
        active = (own > 0).flatten(0, 1).any(0).nonzero()[:, 0].tolist()
        assert active == [n for n in range(N) if f"L{layer}F{n}" in vectors]
        for n in active:
            wanted = own[..., n : n + 1] * decoder[n]
            torch.testing.assert_close(vectors[f"L{layer}F{n}"], wanted, atol=1e-4, rtol=1e-4)
    # The first alone: of the other places only the error is another component.
    some = mi.decompose(nano, run, dictionaries=clt[:1])
    assert some.error() < 1e-4
    assert some.labels[-1] == "3.error"


@pytest.mark.usefixtures("without_type_checks")
def test_parts_of_a_cross_layer_transcoder_that_are_refused(
    nano: Any, clt: list[Dictionary]
) -> None:
    tokens = torch.tensor([[0, 5, 6]])
    first, part = clt[0], clt[0].towards(2)
    nothing: Any = None
    assert repr(part).startswith("Dictionary: transcoder of 0.mlp_in to 2.mlp")
    assert part.fingerprint != clt[0].towards(1).fingerprint
    asks: Any = (
        ("none of dictionaries reads 2.mlp", lambda: latents.replace(nano, clt[:2], tokens)),
        ("writes to 2.mlp, alone", lambda: latents.replace(nano, [part], tokens)),
        ("reads layer 0 and writes to 2.mlp; wanted", lambda: latents.evaluate(nano, part, tokens)),
        ("writes to 4 layers", lambda: latents.evaluate(nano, first, tokens)),
        ("dictionary=NoneType; wanted a Dict", lambda: latents.evaluate(nano, nothing, tokens)),
        (
            "an SAE of 2.mlp, to which",
            lambda: mi.decompose(
                nano,
                mi.run(nano, tokens),
                dictionaries=[first, replace(clt[2].towards(2), reads="mlp_out")],
            ),
        ),
        ("W_skip with spans=4", lambda: replace(first, W_skip=torch.zeros(D, 4 * D))),
        ("layer=4 of ", lambda: first.towards(4)),
        (
            "wanted one component",
            lambda: mi.decompose(nano, mi.run(nano, tokens), dictionaries=[part]),
        ),
        (
            "0.mlp, 1.mlp, 2.mlp, 3.mlp; wanted one",
            lambda: mi.Edit.latents(first, {}, error="drop"),
        ),
    )
    for text, ask in asks:
        with pytest.raises(ValueError, match=text):
            ask()


def test_a_latent_is_taken_out_with_all_that_it_writes(nano: Any, clt: list[Dictionary]) -> None:
    """Slow reference: its writes to every layer, out of the last stream; position 0 is spared."""
    tokens = torch.tensor([[0, 5, 6, 900, 40], [0, 77, 8, 1500, 3]])
    one, last = clt[1], f"blocks.{LAYERS - 1}.hook_resid_post"
    found = latents.ablate(nano, tokens, one, path="direct")
    with torch.no_grad():
        clean, cache = nano.run_with_cache(tokens)
        x = cache["blocks.1.hook_resid_pre"]
        active = by_hand(torch.nn.functional.layer_norm(x, (D,), eps=1e-5), 1)
        active[:, 0] = 0
        chosen = (active > 0).flatten(0, 1).any(0).nonzero()[:, 0].tolist()
        assert found.component.values.tolist() == [f"L1F{n}" for n in chosen]
        assert len(chosen) > 1
        assert found.attrs["dictionary"] == repr(one)
        written = 0.02 * numbers(N, LAYERS - 1, D, seed=21).sum(1)
        for n in chosen:
            stream = cache[last] - active[..., n, None] * written[n]
            p, q = (y.log_softmax(-1) for y in (clean, nano.unembed(nano.ln_final(stream))))
            kl = found.kl.sel(component=f"L1F{n}")
            np.testing.assert_allclose(kl, (p.exp() * (p - q)).sum(-1), rtol=2e-3, atol=2e-6)
    first = latents.ablate(nano, tokens, one, chosen[0], path="direct")
    np.testing.assert_allclose(first.kl, found.kl.isel(component=[0]), atol=1e-7)
    asks: Any = (
        ("writes to 3 layers", {"latents": chosen[0]}),
        ("latents='1.error' of", {"latents": "1.error", "path": "direct"}),
        ("no latent of .* is active at a token that counts", {"path": "direct", "first": 4}),
    )
    idle = replace(one, activation=JumpRelu(torch.tensor(1e9)))
    for (text, given), asked in zip(asks, (one, one, idle), strict=True):
        with pytest.raises(ValueError, match=text):
            latents.ablate(nano, tokens, asked, **given)
