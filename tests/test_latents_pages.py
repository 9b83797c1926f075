"""Latents over a corpus, the page of one, and `mlp-interp latent`."""

from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from typer.testing import CliRunner

import mlp_interp as mi
from mlp_interp import latents
from mlp_interp.cli import app
from mlp_interp.cli.neuron_page import summary
from mlp_interp.dictionaries import Dictionary, TopK
from mlp_interp.models import Weights
from mlp_interp.views.numbers import percent


def some(model: Any, reads: str = "mlp_out", n: int = 24, **options: Any) -> Dictionary:
    """A random dictionary of a model."""
    d, g = Weights.of(model).d_model, torch.Generator().manual_seed(3)
    W_enc, W_dec = torch.randn(d, n, generator=g), torch.randn(n, d, generator=g)
    options = {"layer": 1, "reads": reads, "normalize": None, **options}
    return Dictionary(
        W_enc, torch.randn(n, generator=g) * 0.1, W_dec, torch.zeros(d), TopK(3), **options
    )


@pytest.fixture(scope="module")
def corpus(nano: Any) -> Any:
    return mi.load_corpus("nano", nano, sequences=6, length=32)


def test_activity_is_that_of_every_latent_written_out(
    some_model: Any, tokens: torch.Tensor, monkeypatch: Any
) -> None:
    """Slow reference: all latents of one padded text after the other."""
    one = some(some_model, "mlp_in")
    mask = torch.ones_like(tokens)
    mask[1, 6:] = 0
    options: Any = {"k": 2, "before": 2, "after": 1, "attention_mask": mask}
    found = latents.activity(some_model, one, tokens, **options)
    dense = latents.activations(mi.run(some_model, tokens), one).dense()
    counts = (mask > 0) & (tokens != 0)
    counts[:, 0] = False
    active = dense[counts]
    np.testing.assert_allclose(found.fraction, (active > 0).double().mean(0), atol=1e-6)
    np.testing.assert_allclose(found["mean"], active.double().mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["std"], active.double().std(0), rtol=1e-3)
    np.testing.assert_allclose(found.greatest, active.amax(0), rtol=1e-5)
    best = dense.masked_fill(~counts[..., None], -torch.inf).amax(1).topk(2, dim=0)
    np.testing.assert_allclose(found.activation, best.values.T, rtol=1e-5)
    there = best.values.T > 0  # of equals, as zeros are, the first is kept
    assert (found.sequence.values == best.indices.T.numpy())[there.numpy()].all()
    # One text at a time.
    monkeypatch.setattr("mlp_interp.corpus.reducers.of_latents._NUMBERS", 9 * 24)
    again = latents.activity(some_model, one, tokens, **options)
    xr.testing.assert_allclose(again, found)


def test_what_is_kept_of_a_sweep_belongs_to_one_dictionary(
    nano: Any, corpus: Any, tmp_path: Path
) -> None:
    one, other = some(nano), some(nano)
    other.W_dec[0, 0] += 1
    assert one.fingerprint == some(nano).fingerprint == one.to("cpu").fingerprint
    assert one.fingerprint != other.fingerprint
    assert one.fingerprint != some(nano, layer=2).fingerprint
    sweep = mi.SweepOptions(checkpoint=tmp_path)
    for n, each in enumerate((one, one, other), 1):
        found = latents.activity(nano, each, corpus, k=1, sweep=sweep)
        assert len([*tmp_path.iterdir()]) == max(1, n - 1)
        assert found.attrs["fingerprint"] == each.fingerprint


def test_a_page_says_what_edits_of_the_latent_do(nano: Any) -> None:
    tokens = mi.prompts.ioi(nano, n=4, seed=0).clean_tokens
    one = some(nano, "mlp_in")
    active = latents.activity(nano, one, tokens)
    n = int(active.fraction.values.argmax())
    found = latents.page(nano, one, f"L1F{n}", tokens, k=3, ablate=4)
    np.testing.assert_allclose(found.fraction, active.fraction[n])
    np.testing.assert_allclose(found["mean"].sel(site="latents"), active["mean"][n], rtol=1e-5)
    np.testing.assert_allclose(found.top_activation[:2], active.activation[n, :2], rtol=1e-5)
    assert int(found.histogram.sum()) == found.attrs["positions"] == tokens[:, 1:].numel()
    lost = latents.ablate(nano, tokens, one, [n])
    at = {"measure": "kl", "where": "all"}
    kl = found.effect.sel(at)
    np.testing.assert_allclose(kl.sel(path="total"), lost.kl_mean[0], rtol=1e-3)
    direct = latents.ablate(nano, tokens, one, [n], path="direct")
    np.testing.assert_allclose(kl.sel(path="direct"), direct.kl_mean[0], rtol=1e-3)
    read = mi.Unembed.of(nano)
    logits = (read.norm.keep(one.W_dec[n]) @ read.weight).double()
    best = (logits - logits.mean()).topk(3)
    assert found.promoted.values.tolist() == best.indices.tolist()
    np.testing.assert_allclose(found.promoted_logit, best.values, rtol=1e-4)
    cosines = torch.nn.functional.cosine_similarity(one.W_dec, one.W_dec[n], dim=-1)
    cosines[n] = -2
    assert found.similar.sel(by="value")[0].item() == f"L1F{int(cosines.argmax())}"
    shown = unescape(mi.views.neuron(found).html())
    assert f"<h1>L1F{n} of nano</h1>" in shown
    assert "Which latents are similar?" in shown
    assert "Pre-activations" not in shown


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_latents_are_measured_in_any_precision(nano: Any, corpus: Any, dtype: Any) -> None:
    """Dictionaries are single whatever the model is; weights come near the single model's."""
    model, one, later = mi.load_model("nano", dtype=dtype), some(nano, "mlp_in"), some(nano)
    exact, rough = [
        (
            latents.evaluate(of, later, corpus.tokens, batch_size=3),
            latents.page(of, one, 5, corpus.tokens, k=3, ablate=2),
            latents.virtual_weights(of, one, "unembed", k=3, best=4),
            latents.virtual_weights(of, "embed", one, k=3, best=4),
        )
        for of in (nano, model)
    ]
    for name, (here, there) in {
        "fvu": (rough[0].fvu, exact[0].fvu),
        "recovered": (rough[0].recovered, exact[0].recovered),
        "fraction": (rough[1].fraction, exact[1].fraction),
        "decoder_norm": (rough[1].decoder_norm, exact[1].decoder_norm),
        "unembed": (rough[2].value, exact[2].value),
        "embed": (rough[3].best_value, exact[3].best_value),
    }.items():
        np.testing.assert_allclose(here, there, rtol=0.05, err_msg=name)


def test_a_page_of_text_without_a_beginning_counts_as_activity_does(nano: Any, corpus: Any) -> None:
    one, tokens = some(nano), corpus.tokens[:4, 1:]
    active = latents.activity(nano, one, tokens)
    n = int(active.fraction.values.argmax())
    found = latents.page(nano, one, n, tokens, k=1, ablate=1)
    assert float(found.fraction) == float(active.fraction[n])
    every = latents.page(nano, one, n, tokens, k=1, ablate=1, first=0)
    assert every.attrs["positions"] == tokens.numel() > found.attrs["positions"]


def test_a_latent_that_is_never_active_has_no_examples(nano: Any, corpus: Any) -> None:
    one = some(nano)
    one.b_enc[3] = -1e6
    one.W_enc[:, 3] = 0
    found = latents.page(nano, one, 3, corpus.tokens[:2], k=2, ablate=1)
    assert float(found.fraction) == 0
    assert found.sizes["example"] == 0
    assert "not active in this text" in summary(found)
    assert "Nowhere in this text." in mi.views.neuron(found).html()


@pytest.mark.parametrize(
    ("latent", "options", "text"),
    [
        (24, {}, "latent=24"),
        ("L2F3", {}, "latent='L2F3' of"),
        ("1.error", {}, "latent='1.error' of"),
        (3, {"k": 24}, "k=24"),
        (3, {"ablate": 0}, "ablate=0"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_pages_that_are_refused(
    nano: Any, corpus: Any, latent: Any, options: Any, text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        latents.page(nano, some(nano), latent, corpus, **options)


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["latent", *[str(argument) for argument in arguments]])


@pytest.fixture(scope="module")
def saved(nano: Any, tmp_path_factory: Any) -> Path:
    path = tmp_path_factory.mktemp("dictionary") / "sae"
    return mi.dictionaries.save(some(nano, wants="folded"), path, package="sae_lens")


def test_the_command_evaluates_and_writes_the_page(
    nano: Any, saved: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ("-d", saved, "-n", 3, "-t", 24, "--ablate", 2, "-k", 4)
    done = run("L1F5", *small)
    assert done.exit_code == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["L1F5.html", "L1F5.nc"]
    found: Any = mi.load("L1F5.nc")
    assert Path("L1F5.html").read_text(encoding="utf-8") == mi.views.neuron(found).html()
    one, text = mi.dictionaries.load(saved), mi.load_corpus("nano", nano, sequences=3, length=24)
    expected = latents.evaluate(nano, one, text)
    lines = done.stdout.splitlines()
    assert lines[0] == repr(one)
    assert percent(expected.fvu) in lines[2]
    assert "KL (nats)" in lines[4]
    assert lines[6].startswith("L1F5 of nano")
    alone = run(*small)
    assert alone.stdout.splitlines() == lines[:5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["L1F5"], "--dictionary is missing"),
        (["L1N5", "-d", "SAE"], "latent='L1N5'; wanted a label such as L2F17"),
        (["L1F24", "-d", "SAE"], "latent=24"),
        (["L2F4", "-d", "SAE"], "latent='L2F4' of"),
        (["L1F5", "-d", "SAE", "--processing", "raw"], "wants folded weights"),
        (["L1F5", "-d", "SAE", "-o", "p.pdf"], "must end in .html"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str], message: str, saved: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*[str(saved) if x == "SAE" else x for x in arguments])
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
