"""What layers say: against plain hooks in float64, and what must hold exactly."""

from typing import Any

import numpy as np
import pytest
import torch
from random_models import BACKENDS

import mlp_interp as mi
from mlp_interp.lens import Lens, decoder, logit, read
from mlp_interp.lens.distributions import Distributions
from mlp_interp.models.norm import Norm
from mlp_interp.models.unembed import Unembed
from mlp_interp.sites import Site


def plain_streams(model: Any, tokens: torch.Tensor) -> list[torch.Tensor]:
    """The stream at every block's input and at the end, from the library's own cache."""
    n = model.cfg.n_layers
    _, cache = model.run_with_cache(tokens)
    return [
        *(cache[Site("resid_pre", layer).hook_name] for layer in range(n)),
        cache[Site("resid_post", n - 1).hook_name],
    ]


def plain_logits(model: Any, stream: torch.Tensor) -> torch.Tensor:
    """The library's own final norm and unembedding, one layer at a time; then float64."""
    with torch.no_grad():
        return model.unembed(model.ln_final(stream)).double()


def plain(model: Any, tokens: torch.Tensor) -> dict[str, np.ndarray]:
    """The statistics one layer after the other: log-softmax, argsort."""
    logp = torch.stack(
        [plain_logits(model, x).log_softmax(-1) for x in plain_streams(model, tokens)]
    )
    p, final, embedded = logp.exp(), logp[-1], logp[0]
    top = final.argmax(-1)
    places = logp.argsort(-1, descending=True).argsort(-1)

    def at(x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return x.gather(-1, ids.expand(len(x), *ids.shape)[..., None])[..., 0]

    values = {
        "kl_output": (final.exp() * (final - logp)).sum(-1),
        "kl_input": (embedded.exp() * (embedded - logp)).sum(-1),
        "entropy": -(p * logp).sum(-1),
        "agrees": (logp.argmax(-1) == top).double(),
        "logp_output": at(logp, top),
        "rank_output": at(places, top),
        "logp_input": at(logp, tokens),
        "rank_input": at(places, tokens),
        "logp_next": at(logp[:, :, :-1], tokens[:, 1:]),
        "rank_next": at(places[:, :, :-1], tokens[:, 1:]),
    }
    found = {name: x.permute(1, 0, 2).numpy() for name, x in values.items()}
    return {**found, "top_id": logp.topk(3).indices.permute(1, 0, 2, 3).numpy()}


def test_read_is_what_plain_hooks_give(model: Any, tokens: torch.Tensor) -> None:
    found, slow = read(model, tokens, k=3), plain(model, tokens)
    for name, wanted in slow.items():
        values = found[name].values[:, :, : wanted.shape[2]]
        # Ranks are of float32 logits: two within rounding may have changed places.
        np.testing.assert_allclose(values, wanted, atol=1e-4, rtol=0, err_msg=name)
    assert found["kl_output"].sel(layer=3).max() == 0
    assert found["kl_input"].sel(layer=0).max() == 0
    assert found["kl_output"].min() >= 0
    assert found["agrees"].sel(layer=3).min() == 1
    assert found["logp_next"].isel(pos=-1).isnull().all()
    agrees = found["agrees"].values
    for prompt, pos in np.ndindex(4, 9):
        depth = int(found["depth"].values[prompt, pos])
        assert agrees[prompt, depth:, pos].all()
        assert depth == 0 or not agrees[prompt, depth - 1, pos]


def test_distances_are_exact_large_and_small() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = (
        torch.randn(16, 5000, generator=generator),
        torch.randn(5000, generator=generator),
    )
    x = torch.randn(4, 6, 16, generator=generator)
    x[1] = x[3] + 1e-5 * x[1]
    x[2] *= 40  # a logit far above those of the first block, and beyond what exp can take
    weight[:, 4000] *= 10
    unembed = Unembed(weight, bias, Norm("none", 0.0))
    found = Distributions.of(unembed, x, {"some": torch.arange(6) * 900}, bases=range(4), k=7)
    logits = x.double() @ weight.double() + bias.double()
    logp = logits.log_softmax(-1)
    kl = (logp.exp()[:, None] * (logp[:, None] - logp)).sum(-1)
    scale = logits.abs().amax()
    assert (found.kl - kl).abs().max() < 1e-6 * scale
    tiny = kl[3, 1]
    assert tiny.max() < 1e-8
    assert ((found.kl[3, 1] - tiny).abs() < 2e-3 * tiny + 1e-15).all()
    assert (found.entropy + (logp.exp() * logp).sum(-1)).abs().max() < 1e-6 * scale
    assert torch.equal(found.top, logits.topk(7).indices)


@pytest.mark.parametrize("above", [80.0, 86.0, 95.0])
def test_logits_far_above_the_first_block(above: float) -> None:
    """Not only exp(z) may leave what float32 holds: exp(z) z does before."""
    weight = torch.zeros(2, 3000)
    weight[0, 1500], weight[1] = above, torch.linspace(-1, 1, 3000)
    unembed = Unembed(weight, torch.zeros(3000), Norm("none", 0.0))
    x = torch.tensor([[[1.0, 0.5]], [[0.97, -0.5]], [[1.0, 1.0]]])
    found = Distributions.of(unembed, x, {})
    logp = (x.double() @ weight.double()).log_softmax(-1)
    entropy = -(logp.exp() * logp).sum(-1)
    kl = (logp[-1].exp() * (logp[-1] - logp)).sum(-1)
    torch.testing.assert_close(found.entropy.double(), entropy, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.kl[1].double(), kl, atol=1e-4, rtol=1e-4)


def test_a_token_is_not_above_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 4000, generator=generator)
    x = torch.randn(3, 50, 64, generator=generator)
    ids = torch.randint(4000, (50,), generator=generator)
    found = Distributions.of(
        Unembed(weight, torch.zeros(4000), Norm("none", 0.0)), x, {"some": ids}
    )
    logits = x.double() @ weight.double()
    own = logits[:, torch.arange(50), ids][..., None]
    # Those whose neighbours are farther than rounding: all must be exact.
    sure = ((logits - own).abs() < 1e-4).sum(-1) == 1
    assert sure.double().mean() > 0.5
    assert ((logits > own).sum(-1) == found.ranks["some"])[sure].all()


def test_processing_and_class_do_not_matter(kind: Any, tokens: torch.Tensor) -> None:
    for architecture in ("parallel", "llama"):
        first = kind(architecture, BACKENDS[0], "folded")
        lens = decoder(first, 1)
        one = read(first, tokens, lens, embedding=True)
        for backend, processing in ((BACKENDS[-1], "raw"), (BACKENDS[0], "raw")):
            other = read(kind(architecture, backend, processing), tokens, lens, embedding=True)
            for name in one.data_vars:
                if one[name].dtype.kind == "f":
                    np.testing.assert_allclose(one[name], other[name], atol=1e-3, err_msg=name)


def test_padding_does_not_matter(kind: Any) -> None:
    model = kind()
    rows = [[0, 5, 6, 7, 9], [0, 8, 3]]
    both = read(model, rows, decoder(model, 1))
    for n, row in enumerate(rows):
        alone = read(model, [row], decoder(model, 1))
        for name in ("kl_output", "logp_next", "rank_input", "depth", "top_id"):
            here = both[name].sel(prompt=[n], pos=range(len(row)))
            np.testing.assert_allclose(here, alone[name], atol=1e-5, err_msg=name)
    assert both["kl_output"].sel(prompt=1, pos=[3, 4]).isnull().all()
    assert (both["top_id"].sel(prompt=1, pos=4) == -1).all()
    assert both["token"].values[1].tolist()[3:] == ["", ""]
    last = read(model, rows, positions=-1)
    assert last["pos"].values.tolist() == [2, 4]
    assert last["entropy"].notnull().any("layer").values.tolist() == [[False, True], [True, False]]


def test_some_layers_and_positions(kind: Any, tokens: torch.Tensor) -> None:
    model = kind()
    every, some = read(model, tokens), read(model, tokens, layers=[-1, 1], positions=[2, -1])
    assert some["layer"].values.tolist() == [1, 3]
    for name in ("kl_output", "kl_input", "rank_next", "top_logp"):
        np.testing.assert_allclose(
            some[name], every[name].sel(layer=[1, 3], pos=[2, 8]), atol=1e-6, err_msg=name
        )


def test_edited_runs_are_read(kind: Any, tokens: torch.Tensor) -> None:
    model = kind()
    run = mi.run(model, tokens)
    np.testing.assert_array_equal(read(model, run)["entropy"], read(model, tokens)["entropy"])
    edited = run.edited(mi.Edit.set("1.mlp", 0.0))
    found = read(model, edited)
    np.testing.assert_array_equal(found["entropy"][:, :2], read(model, tokens)["entropy"][:, :2])
    assert (found["entropy"][:, 2] != read(model, tokens)["entropy"][:, 2]).any()


def test_embeddings_are_looked_up(kind: Any, tokens: torch.Tensor) -> None:
    model = kind()
    found = read(model, tokens, embedding=True)
    rows = model.W_E.detach().double()
    rows = rows - rows.mean(-1, keepdim=True)
    rows = rows / rows.norm(dim=-1, keepdim=True)
    for layer, stream in enumerate(plain_streams(model, tokens)):
        x = stream.double() - stream.double().mean(-1, keepdim=True)
        cosines = x @ rows.T / x.norm(dim=-1, keepdim=True)
        own = cosines.gather(-1, tokens[..., None])
        np.testing.assert_allclose(found["cosine_input"][:, layer], own[..., 0], atol=1e-5)
        ranks = (cosines > own + 1e-9).sum(-1)
        np.testing.assert_array_equal(found["rank_embedding"][:, layer], ranks)


def test_targets(nano: Any) -> None:
    task = mi.prompts.facts(nano, n=3, seed=0)
    found = read(nano, task, positions=-1)
    named = read(nano, task.clean_tokens, positions=-1, targets=task.answers)
    np.testing.assert_array_equal(found["logp_target"], named["logp_target"])
    difference = found["logp_target"] - found["logp_foil"]
    np.testing.assert_allclose(found["logit_difference"], difference, atol=1e-4)
    assert found.attrs["task"] == "facts"


def test_nano_reads_its_input_through_the_embedding_alone(nano: Any) -> None:
    corpus = mi.load_corpus("nano", nano, sequences=4, length=64)
    found = read(nano, corpus, embedding=True).isel(pos=slice(1, None))
    own = (found["rank_embedding"] == 0).mean(("prompt", "pos"))
    assert own[0] >= 0.99
    assert own[4] <= 0.15
    assert (found["rank_input"] == 0).mean() < 0.01


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"k": 0}, "k=0; wanted an integer from 1 to 300"),
        ({"layers": [7]}, r"layers=\[7\]"),
        ({"positions": 30}, "positions"),
        ({"targets": " nothing at all"}, "targets"),
        ({"targets": [1, 2]}, "targets has 2 tokens for 4 prompts"),
        ({"lens": {}}, "lens is empty"),
        ({"lens": 5}, r"lens\['lens'\]=5; wanted a Lens"),
        ({"lens": Lens("linear", weight=torch.ones(5, 32, 32))}, r"weight \(5, 32, 32\); wanted"),
        ({"lens": Lens("mean", bias=torch.full((4, 32), torch.nan))}, "wanted finite numbers"),
        ({"lens": {"x": 3}}, r"lens\['x'\]=3; wanted a Lens"),
    ],
)
def test_bad_input(
    kind: Any, tokens: torch.Tensor, options: Any, said: str, without_type_checks: None
) -> None:
    with pytest.raises(ValueError, match=said):
        read(kind(), tokens, **options)


def test_lenses_know_their_model(
    kind: Any, nano: Any, tokens: torch.Tensor, without_type_checks: None
) -> None:
    with pytest.raises(ValueError, match="is of model='nano'"):
        read(kind(), tokens, logit(nano))
    with pytest.raises(ValueError, match=r"layers=\[2\].*runs the last 2 blocks"):
        read(kind(), tokens, decoder(kind(), 2), layers=[2])
    assert isinstance(logit(kind()), Lens)


def test_hostile_tokens_survive_a_file(nano: Any, tmp_path: Any) -> None:
    found = read(nano, torch.arange(40)[None], k=3)
    back = mi.load(mi.save(found, tmp_path / "lens.nc"))
    np.testing.assert_array_equal(back["top_text"], found["top_text"])
