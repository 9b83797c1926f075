"""Trained lenses, and lenses in files."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import mlp_interp as mi
from mlp_interp.lens import (
    Lens,
    _tuned,
    decoder,
    linear,
    load,
    logit,
    mean,
    over,
    read,
    save,
    tuned,
)
from mlp_interp.models.unembed import Unembed


@pytest.fixture
def texts() -> torch.Tensor:
    return torch.randint(1, 300, (12, 20), generator=torch.Generator().manual_seed(0))


def test_gradients_are_those_of_the_mean_kl(some_model: Any, tokens: torch.Tensor) -> None:
    """Against autograd through plain log-softmaxes."""
    state = _tuned._start(some_model, None)
    state["weight"] += 0.1 * torch.randn(
        state["weight"].shape, generator=torch.Generator().manual_seed(0)
    )
    training = _tuned._Training(mi.models.forward_of(some_model), Unembed.of(some_model), 1.0, 1)
    run = mi.run(some_model, tokens)
    norm = training.unembed.norm
    kept = torch.stack([norm.keep(x.flatten(0, 1)) for x in run.streams[:-1]])
    wanted = norm.standardize(run.final.flatten(0, 1))
    found = training._gradients(state, kept, wanted)
    weight = state["weight"][:3].clone().requires_grad_()
    bias = state["bias"][:3].clone().requires_grad_()
    clean = training.unembed.logits(run.final.flatten(0, 1)).log_softmax(-1)
    logp = training.unembed.logits(kept @ weight + bias[:, None]).log_softmax(-1)
    loss = (clean.exp() * (clean - logp)).sum(-1).mean(1).sum()
    loss.backward()
    assert weight.grad is not None
    assert bias.grad is not None
    size = max(1.0, float(torch.stack([weight.grad.norm(), bias.grad.norm()]).norm()))
    torch.testing.assert_close(found["weight"], weight.grad / size, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(found["bias"], bias.grad / size, atol=1e-5, rtol=1e-3)


def test_double_precision_is_trained_as_single(
    kind: Any, backend: str, texts: torch.Tensor
) -> None:
    one, other = (
        tuned(kind("parallel", backend, "raw", dtype), texts, steps=2, batch_size=4).weight
        for dtype in (torch.float32, torch.float64)
    )
    assert one is not None
    assert other is not None
    moved = float((one - torch.eye(32)).abs().mean())
    assert float((one - other).abs().mean()) < 0.01 * moved


def test_training_brings_layers_nearer(kind: Any, texts: torch.Tensor) -> None:
    model = kind()
    lens = tuned(model, texts, steps=40, batch_size=6, lr=1e-2)
    found = over(model, texts, {"logit": logit(model), "tuned": lens})["kl_output"]
    layers = found.sel(layer=[0, 1, 2])
    assert bool((layers.sel(lens="tuned") < 0.8 * layers.sel(lens="logit")).all())
    assert read(model, texts, lens)["kl_output"].sel(layer=3).max() == 0


class StoppedError(Exception):
    pass


def test_what_was_stopped_goes_on_to_the_last_bit(
    kind: Any, texts: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = kind()
    monkeypatch.setattr(_tuned, "_KEEP_EVERY", 2)
    whole = tuned(model, texts, steps=7, batch_size=5, start=mean(model, texts))
    real, calls = _tuned._Training.step, []

    def step(self: Any, *args: Any) -> None:
        calls.append(1)
        if len(calls) == 4:
            raise StoppedError
        real(self, *args)

    options: Any = {
        "steps": 7,
        "batch_size": 5,
        "start": mean(model, texts),
        "checkpoint": tmp_path,
    }
    with monkeypatch.context() as patched:
        patched.setattr(_tuned._Training, "step", step)
        with pytest.raises(StoppedError):
            tuned(model, texts, **options)
    calls.clear()
    monkeypatch.setattr(
        _tuned._Training, "step", lambda self, *args: (calls.append(1), real(self, *args))
    )
    again = tuned(model, texts, **options)
    assert len(calls) == 5
    for one, other in ((whole.weight, again.weight), (whole.bias, again.bias)):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


def test_padding_is_not_trained_on(kind: Any) -> None:
    model = kind()
    rows = [[0, 5, 6, 7, 9, 4], [0, 8, 3]]
    padded = torch.tensor([[0, 5, 6, 7, 9, 4], [0, 8, 3, 11, 12, 13]])
    mask = torch.tensor([[1] * 6, [1] * 3 + [0] * 3])
    one = tuned(model, rows, steps=2, batch_size=2)
    other = tuned(model, padded, attention_mask=mask, steps=2, batch_size=2)
    assert one.weight is not None
    assert other.weight is not None
    torch.testing.assert_close(one.weight, other.weight)


def test_lenses_come_back_from_files(kind: Any, texts: torch.Tensor, tmp_path: Path) -> None:
    model = kind()
    lenses = [logit(model), decoder(model, 2, part="attn"), linear(model, texts, ahead=1)]
    for lens in lenses:
        back = load(save(lens, tmp_path / "lens.safetensors"), model)
        assert (back.kind, back.blocks, back.part, back.ahead) == (
            lens.kind, lens.blocks, lens.part, lens.ahead,
        )  # fmt: skip
        assert back.digest() == lens.digest()
        assert (
            back.attrs["data" if lens.ahead else "model"]
            == lens.attrs["data" if lens.ahead else "model"]
        )
    with pytest.raises(ValueError, match="wanted one of model"):
        load(tmp_path / "lens.safetensors", kind("llama"))


def folder(path: Path, weights: dict[str, Any], **config: Any) -> Path:
    path.mkdir(exist_ok=True)
    said = {"d_model": 32, "num_hidden_layers": 3, "bias": True, **config}
    (path / "config.json").write_text(json.dumps(said))
    torch.save(weights, path / "params.pt")
    return path


def test_translators_of_tuned_lens_act_on_raw_streams(
    kind: Any, tokens: torch.Tensor, tmp_path: Path
) -> None:
    raw = kind("parallel", "bridge", "raw")
    generator = torch.Generator().manual_seed(0)
    params = {f"{n}.weight": 0.1 * torch.randn(32, 32, generator=generator) for n in range(3)}
    params |= {f"{n}.bias": torch.randn(32, generator=generator) for n in range(3)}
    lens = load(folder(tmp_path / "lens", params), raw)
    found = read(raw, tokens, lens)
    run = mi.run(raw, tokens)
    h = run.streams[1]
    translated = h + h @ params["1.weight"].T + params["1.bias"]
    with torch.no_grad():
        logp = raw.unembed(raw.ln_final(translated)).log_softmax(-1)
    np.testing.assert_allclose(
        found["entropy"].sel(layer=1), -(logp.exp() * logp).sum(-1), atol=1e-4
    )
    without = load(folder(tmp_path / "lens", params, bias=False), raw)
    assert without.bias is not None
    assert float(without.bias.abs().max()) == 0
    with pytest.raises(ValueError, match="are centred; wanted load_model"):
        load(tmp_path / "lens", kind())
    with pytest.raises(ValueError, match="are centred; wanted load_model"):  # not only when loaded
        read(kind(), tokens, lens)
    corner = np.array_str(raw.W_U.detach().T.numpy(), precision=1)
    own = hashlib.sha256(corner.encode()).hexdigest()
    load(folder(tmp_path / "lens", params, unembed_hash=own), raw)
    other = folder(tmp_path / "lens", params, unembed_hash="x", base_model_name_or_path="b")
    with pytest.raises(ValueError, match=r"unembed_hash='x' \(base model 'b'"):
        load(other, raw)
    with pytest.raises(ValueError, match="d_model=16; wanted 32"):
        load(folder(tmp_path / "lens", params, d_model=16), raw)
    with pytest.raises(ValueError, match="other things than tensors"):
        load(folder(tmp_path / "lens", {"0.weight": Path("x")}), raw)
    with pytest.raises(ValueError, match=r"0\.weight=None; wanted a tensor"):
        load(folder(tmp_path / "lens", {}), raw)


def test_bad_input(
    kind: Any, texts: torch.Tensor, tmp_path: Path, without_type_checks: None
) -> None:
    model = kind()
    with pytest.raises(ValueError, match="steps=0"):
        tuned(model, texts, steps=0)
    with pytest.raises(ValueError, match=r"lr=0\.0"):
        tuned(model, texts, lr=0.0)
    with pytest.raises(ValueError, match="wanted a mean, linear or tuned lens"):
        tuned(model, texts, start=decoder(model, 1))
    with pytest.raises(ValueError, match="lr=inf"):
        tuned(model, texts, lr=np.inf)
    other: Any = 5
    with pytest.raises(ValueError, match="start=5; wanted a Lens"):
        tuned(model, texts, start=other)
    with pytest.raises(ValueError, match="does not exist"):
        load(tmp_path / "nothing.safetensors", model)
    with pytest.raises(ValueError, match=r"wanted .\.safetensors."):
        save(logit(model), tmp_path / "lens.pt")
    with pytest.raises(ValueError, match=r"lacks config\.json"):
        load(tmp_path, model)
    torch.save({"0.weight": torch.zeros(32, 32)}, tmp_path / "params.pt")
    whole, config = (tmp_path / "params.pt").read_bytes(), tmp_path / "config.json"
    for text, params in (
        ("{}", b""),
        ("{}", b"junk"),
        ("{}", whole[:-300]),
        ("{", whole),
        ("[]", whole),
    ):
        config.write_text(text)
        (tmp_path / "params.pt").write_bytes(params)
        with pytest.raises(ValueError, match="is damaged"):
            load(tmp_path, model)
    for said in ("{", "{}", "[]", '{"kind": "logit", "depth": 1}'):
        file = tmp_path / "lens.safetensors"
        save_file({"bias": torch.zeros(4, 32)}, file, metadata={"mlp_interp_lens": said})
        with pytest.raises(ValueError, match="holds no lens"):
            load(file, model)
    assert isinstance(logit(model), Lens)
