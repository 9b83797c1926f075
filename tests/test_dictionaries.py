"""SAEs and transcoders as data, and their files, each trap of a format with a file made by hand."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from random_models import HAS_HOOKED, random_neox, tiny_tokenizer
from safetensors.torch import save_file

import mlp_interp as mi
from mlp_interp import dictionaries
from mlp_interp.dictionaries import Dictionary, GroupMax, JumpRelu, Relu, TopK
from mlp_interp.dictionaries import dictionary as dictionary_module
from mlp_interp.dictionaries import files as files_module
from mlp_interp.dictionaries.places import place_of
from mlp_interp.latents import evaluate, separate, train
from mlp_interp.latents.spliced import read_in
from mlp_interp.models import Weights
from mlp_interp.models.processing import processing

D, N = 6, 10
ACTIVATIONS = [Relu(), TopK(3), JumpRelu(torch.full((N,), 0.5)), GroupMax(5)]


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


PARTS = {
    "W_enc": numbers(D, N, seed=1),
    "b_enc": numbers(N, seed=2),
    "W_dec": numbers(N, D, seed=3),
    "b_dec": numbers(D, seed=4),
}
X = numbers(7, D, seed=5)


def made(activation: Any = None, **more: Any) -> Dictionary:
    return Dictionary(**{**PARTS, "activation": activation or TopK(3), "layer": 1, **more})


def folder(path: Path, file: str, tensors: dict[str, Any], name: str, config: Any) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    save_file({k: v.clone().contiguous() for k, v in tensors.items()}, path / file)
    (path / name).write_text(json.dumps(config))
    return path


def sae_lens(path: Path, tensors: dict[str, Any] = PARTS, **config: Any) -> Path:
    about = {"architecture": "standard", "metadata": {"hook_name": "blocks.1.hook_mlp_out"}}
    return folder(path, "sae_weights.safetensors", tensors, "cfg.json", {**about, **config})


def sparsify(path: Path, more: Any = None, **config: Any) -> Path:
    tensors = {
        "encoder.weight": PARTS["W_enc"].T,
        "encoder.bias": PARTS["b_enc"],
        "W_dec": PARTS["W_dec"],
        "b_dec": PARTS["b_dec"],
        **(more or {}),
    }
    return folder(path, "sae.safetensors", tensors, "cfg.json", {"k": 3, "d_in": D, **config})


def learned(path: Path, kind: str, tensors: dict[str, Any], **trainer: Any) -> Path:
    path.mkdir(parents=True)
    torch.save(tensors, path / "ae.pt")
    trainer = {"dict_class": kind, "layer": 2, "submodule_name": "resid_post", **trainer}
    (path / "config.json").write_text(json.dumps({"trainer": trainer}))
    return path


def relu(x: torch.Tensor = X) -> torch.Tensor:
    return (x @ PARTS["W_enc"] + PARTS["b_enc"]).relu()


def topk(dense: torch.Tensor, k: int) -> torch.Tensor:
    least = dense.topk(k, dim=-1).values[..., -1:]
    return dense * (dense >= least)


def decoded(acts: torch.Tensor) -> torch.Tensor:
    return acts @ PARTS["W_dec"] + PARTS["b_dec"]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("shape", [(), (4,), (2, 3)], ids=str)
def test_each_token_by_itself(activation: Any, shape: Any, monkeypatch: Any) -> None:
    """Slow reference: dense, in float64, one token after the other."""
    monkeypatch.setattr(dictionary_module, "_NUMBERS", 2 * N)  # two rows at a time
    b_in = numbers(D, seed=8).double()
    one = made(activation, b_in=b_in.float()).to(torch.float64)
    x = numbers(*shape, D, seed=6).double()
    rebuilt, latents = one(x)
    rows = []
    for row in x.reshape(-1, D):
        pre = (row - b_in) @ one.W_enc + one.b_enc
        dense = pre.relu()
        if isinstance(activation, TopK):
            dense = topk(dense, 3)
        if isinstance(activation, JumpRelu):
            dense = dense * (pre > 0.5)
        if isinstance(activation, GroupMax):
            dense = torch.cat([topk(part, 1) for part in dense.split(2)])
        rows.append(dense)
    dense = torch.stack(rows).view(*shape, N)
    torch.testing.assert_close(latents.dense(), dense)
    torch.testing.assert_close(rebuilt, dense @ one.W_dec + one.b_dec)
    torch.testing.assert_close(latents.of([2, 7]), dense[..., [2, 7]])
    assert torch.equal(latents.active.sum(-1), (dense > 0).sum(-1))


def test_inputs_that_are_normalised() -> None:
    one = made(Relu(), normalize="layer_norm", b_in=PARTS["b_dec"])
    centred = X - X.mean(-1, keepdim=True)
    std = (centred.square().sum(-1, keepdim=True) / (D - 1)).sqrt()  # unbiased
    acts = relu(centred / (std + 1e-5) - PARTS["b_dec"])
    torch.testing.assert_close(one(X)[0], decoded(acts) * std + X.mean(-1, keepdim=True))
    constant = made(Relu(), normalize="constant_norm")
    size = X.norm(dim=-1, keepdim=True) / D**0.5
    torch.testing.assert_close(constant(X)[0], decoded(relu(X / size)) * size)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_no_rows_and_rows_of_zeros(activation: Any) -> None:
    one = made(activation, W_skip=numbers(D, D, seed=7))
    for shape in ((0,), (2, 0)):
        rebuilt, latents = one(torch.zeros(*shape, D))
        assert (rebuilt.shape, latents.dense().shape) == ((*shape, D), (*shape, N))
    constant = made(activation, normalize="constant_norm")
    assert not constant(torch.zeros(2, D))[0].any()


def test_a_decoder_row_of_zeros(tmp_path: Path) -> None:
    """Its latent, which would be divided by its row's length, is never active."""
    tensors = {**PARTS, "W_dec": PARTS["W_dec"].clone()}
    tensors["W_dec"][3] = 0
    config: Any = {"apply_b_dec_to_input": False, "rescale_acts_by_decoder_norm": True}
    one = dictionaries.load(sae_lens(tmp_path / "a", tensors, **config))
    torch.testing.assert_close(one(X)[0], relu() @ tensors["W_dec"] + PARTS["b_dec"])
    assert not one.encode(X).of([3]).any()


@pytest.mark.parametrize("subtract", [True, False])
def test_sae_lens_takes_the_bias_out_of_the_input_where_it_says_so(
    tmp_path: Path, subtract: bool
) -> None:
    one = dictionaries.load(sae_lens(tmp_path / "a", apply_b_dec_to_input=subtract))
    torch.testing.assert_close(one(X)[0], decoded(relu(X - PARTS["b_dec"] * subtract)))
    assert (one.site.label, one.reads, one.wants) == ("1.mlp", "mlp_out", None)


def test_sae_lens_layer_norm_topk_and_factors(tmp_path: Path) -> None:
    norm = dictionaries.load(sae_lens(tmp_path / "a", normalize_activations="layer_norm"))
    assert norm.normalize == "layer_norm"
    plain: Any = {"apply_b_dec_to_input": False, "architecture": "topk", "k": 3}
    # A TopK that was written as a ReLU, beside its k.
    old: Any = {"activation_fn_str": "relu", "activation_fn_kwargs": {"k": 3}}
    said = {**plain, "architecture": "standard", "k": None, **old}
    said.pop("k")
    for config in (plain, said):
        one = dictionaries.load(sae_lens(tmp_path / "b", **config))
        torch.testing.assert_close(one(X)[0], decoded(topk(relu(), 3)))
    sizes = PARTS["W_dec"].norm(dim=-1)
    config = {**plain, "rescale_acts_by_decoder_norm": True}
    acts = topk(relu() * sizes, 3)
    one = dictionaries.load(sae_lens(tmp_path / "c", **config))
    torch.testing.assert_close(one.encode(X).dense(), acts)
    torch.testing.assert_close(one(X)[0], decoded(acts / sizes))
    factor = numbers(N, seed=9).abs()
    one = dictionaries.load(sae_lens(tmp_path / "d", {**PARTS, "scaling_factor": factor}, **plain))
    torch.testing.assert_close(one(X)[0], decoded(topk(relu(), 3) * factor))


def test_sae_lens_transcoders(tmp_path: Path) -> None:
    hooks = {"hook_name": "blocks.2.ln2.hook_normalized", "hook_name_out": "blocks.2.hook_mlp_out"}
    skip, threshold = numbers(D, D, seed=7), torch.full((N,), 0.3)
    tensors = {**PARTS, "W_skip": skip, "threshold": threshold}
    kind = "jumprelu_skip_transcoder"
    one = dictionaries.load(sae_lens(tmp_path / "a", tensors, architecture=kind, metadata=hooks))
    acts = relu() * (relu() > 0.3)
    torch.testing.assert_close(one(X)[0], decoded(acts) + X @ skip.T)
    assert (one.reads, one.layer, one.b_in) == ("mlp_normalized", 2, None)
    other = {**hooks, "hook_name_out": "blocks.1.hook_mlp_out"}
    with pytest.raises(ValueError, match=r"of layer 2, and writes .*, of layer 1; wanted both"):
        dictionaries.load(sae_lens(tmp_path / "c", architecture="transcoder", metadata=other))
    middle = {**hooks, "hook_name": "blocks.2.hook_resid_mid"}
    path = sae_lens(tmp_path / "b", architecture="transcoder", metadata=middle)
    with pytest.raises(ValueError, match=r"reads 'blocks.2.hook_resid_mid'; wanted"):
        dictionaries.load(path)


@pytest.mark.parametrize(
    ("about", "wants"),
    [
        ({"model_from_pretrained_kwargs": {"fold_ln": False}}, "raw"),
        ({"model_from_pretrained_kwargs": {"center_writing_weights": False}}, "raw"),
        ({"model_from_pretrained_kwargs": {}}, "folded"),
        ({"model_class_name": "AutoModelForCausalLM"}, "raw"),
        ({}, None),
    ],
    ids=str,
)
def test_sae_lens_says_which_weights(tmp_path: Path, about: Any, wants: Any) -> None:
    metadata = {"hook_name": "blocks.1.hook_mlp_out", **about}
    assert dictionaries.load(sae_lens(tmp_path / "a", metadata=metadata)).wants == wants


def test_a_transcoder_of_folded_weights_that_are_not_centred(tmp_path: Path) -> None:
    """It is one for raw weights; for centred ones, what it writes loses its mean as they have."""
    metadata = {
        "hook_name": "blocks.1.ln2.hook_normalized",
        "hook_name_out": "blocks.1.hook_mlp_out",
        "model_from_pretrained_kwargs": {"center_writing_weights": False},
    }
    path = sae_lens(tmp_path / "a", architecture="transcoder", metadata=metadata)
    wanted, raw = decoded(relu()), dictionaries.load(path)
    torch.testing.assert_close(raw(X)[0], wanted)
    assert (raw.wants, raw.reads) == ("raw", "mlp_normalized")
    one = dictionaries.load(path, wants="folded")
    torch.testing.assert_close(one(X)[0], wanted - wanted.mean(-1, keepdim=True))
    assert one.wants == "folded"
    assert "centred" in one.attrs["output"]


def test_sparsify_takes_the_bias_out_of_the_input_of_saes_alone(tmp_path: Path) -> None:
    one = dictionaries.load(sparsify(tmp_path / "layers.3.mlp"))
    torch.testing.assert_close(one(X)[0], decoded(topk(relu(X - PARTS["b_dec"]), 3)))
    assert (one.site.label, one.reads, one.wants) == ("3.mlp", "mlp_out", "raw")
    skip = numbers(D, D, seed=7)
    path = sparsify(tmp_path / "t" / "layers.3.mlp", {"W_skip": skip}, transcode=True)
    one = dictionaries.load(path)
    torch.testing.assert_close(one(X)[0], decoded(topk(relu(), 3)) + X @ skip.T)
    assert (one.site.label, one.reads) == ("3.mlp", "mlp_in")
    # Transcoders of before did take it out, and nothing in the file says so.
    old = dictionaries.load(path, subtract_b_dec=True)
    torch.testing.assert_close(old(X)[0], decoded(topk(relu(X - PARTS["b_dec"]), 3)) + X @ skip.T)


def test_sparsify_names_modules(tmp_path: Path) -> None:
    block = dictionaries.load(sparsify(tmp_path / "layers.2", activation="groupmax", k=5))
    assert (block.site.label, block.activation) == ("2.resid_post", GroupMax(5))
    with pytest.raises(ValueError, match=r"says place 'mine'; wanted place="):
        dictionaries.load(sparsify(tmp_path / "mine"))
    assert dictionaries.load(tmp_path / "mine", place="0.attn").site.label == "0.attn"
    with pytest.raises(ValueError, match="wanted activation="):
        dictionaries.load(sparsify(tmp_path / "layers.1", k=None))


def test_dictionary_learning_reads_tensors_and_thresholds(tmp_path: Path) -> None:
    linear = {
        "encoder.weight": PARTS["W_enc"].T,
        "encoder.bias": PARTS["b_enc"],
        "decoder.weight": PARTS["W_dec"].T,
    }
    batch = {**linear, "b_dec": PARTS["b_dec"], "threshold": torch.tensor(0.4), "k": 3}
    held = {**batch, "k": torch.tensor(3)}
    inside = relu(X - PARTS["b_dec"])
    one = dictionaries.load(learned(tmp_path / "a", "BatchTopKSAE", held))
    torch.testing.assert_close(one(X)[0], decoded(inside * (inside > 0.4)))
    assert (one.site.label, one.wants) == ("2.resid_post", "raw")
    one = dictionaries.load(learned(tmp_path / "b", "AutoEncoderTopK", held))
    torch.testing.assert_close(one(X)[0], decoded(topk(inside, 3)))
    plain = {**linear, "bias": PARTS["b_dec"]}
    one = dictionaries.load(learned(tmp_path / "c", "AutoEncoder", plain))
    torch.testing.assert_close(one(X)[0], decoded(inside))
    # A JumpReLU's activations are in units of what they write, its thresholds are not.
    jump = {**PARTS, "threshold": torch.full((N,), 0.4)}
    one = dictionaries.load(learned(tmp_path / "d", "JumpReluAutoEncoder", jump))
    acts = relu() * (relu() > 0.4)
    torch.testing.assert_close(one(X)[0], decoded(acts))
    torch.testing.assert_close(one.encode(X).dense(), acts * PARTS["W_dec"].norm(dim=-1))
    unset = learned(tmp_path / "e", "BatchTopKSAE", {**held, "threshold": torch.tensor(-1.0)})
    with pytest.raises(ValueError, match=r"threshold=-1.0, which was never set"):
        dictionaries.load(unset)
    gated = learned(tmp_path / "f", "GatedAutoEncoder", held)
    with pytest.raises(ValueError, match="dict_class='GatedAutoEncoder'; wanted one of"):
        dictionaries.load(gated)


def test_nothing_else_is_unpickled(tmp_path: Path) -> None:
    path = learned(tmp_path / "a", "AutoEncoder", {"bias": Path("anything")})
    with pytest.raises(ValueError, match="holds other things than tensors"):
        dictionaries.load(path)


def test_cross_layer_transcoders(tmp_path: Path) -> None:
    """What the MLP of a layer writes is the sum of what those of layers up to it write there."""
    layers = 3
    decoders = [numbers(N, layers - n, D, seed=20 + n) for n in range(layers)]
    for n, W_dec in enumerate(decoders):
        encoder = {f"W_enc_{n}": numbers(N, D, seed=n), f"b_enc_{n}": numbers(N, seed=30 + n)}
        encoder |= {f"b_dec_{n}": numbers(D, seed=40 + n), f"threshold_{n}": torch.full((N,), 0.2)}
        save_file(encoder, tmp_path / f"W_enc_{n}.safetensors")
        save_file({f"W_dec_{n}": W_dec}, tmp_path / f"W_dec_{n}.safetensors")
    found = dictionaries.load_all(tmp_path)
    assert [(one.layer, one.spans, one.d_out) for one in found.values()] == [
        (0, 3, D), (1, 2, D), (2, 1, D),
    ]  # fmt: skip
    total = torch.zeros(len(X), layers, D)
    for n, one in enumerate(found.values()):
        total[:, n:] += one(X)[0].unflatten(-1, (-1, D))
    wanted = torch.zeros_like(total)
    for n, W_dec in enumerate(decoders):
        pre = X @ numbers(N, D, seed=n).T + numbers(N, seed=30 + n)
        wanted[:, n:] += torch.einsum("rl,lod->rod", pre * (pre > 0.2), W_dec)
        wanted[:, n] += numbers(D, seed=40 + n)
    torch.testing.assert_close(total, wanted)
    assert [s.label for s in found["0.mlp"].sites] == ["0.mlp", "1.mlp", "2.mlp"]
    with pytest.raises(ValueError, match="one dictionary for each layer; wanted"):
        dictionaries.load(tmp_path)
    (tmp_path / "W_dec_1.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks W_dec_1.safetensors"):
        dictionaries.load_all(tmp_path)


SAVED = [
    ("sae_lens", {}),
    ("sae_lens", {"activation": Relu(), "b_in": PARTS["b_dec"]}),
    ("sae_lens", {"activation": JumpRelu(torch.tensor(0.5)), "b_in": numbers(D, seed=8)}),
    (
        "sae_lens",
        {
            "activation": Relu(),
            "normalize": "layer_norm",
            "reads": "resid_post",
            "writes": "resid_post",
        },
    ),
    (
        "sae_lens",
        {"activation": Relu(), "reads": "mlp_normalized", "W_skip": numbers(D, D, seed=7)},
    ),
    ("sae_lens", {"activation": Relu(), "reads": "mlp_normalized", "b_in": PARTS["b_dec"]}),
    ("sparsify", {"b_in": numbers(D, seed=8)}),
    ("sparsify", {"activation": GroupMax(5)}),
    ("sparsify", {"reads": "mlp_in", "W_skip": numbers(D, D, seed=7), "wants": "folded"}),
]


@pytest.mark.parametrize(("package", "more"), SAVED)
def test_saved_and_read_again(tmp_path: Path, package: str, more: Any) -> None:
    one = Dictionary(**{**PARTS, "activation": TopK(3), **more}, layer=2)
    again = dictionaries.load(dictionaries.save(one, tmp_path, package=package))
    torch.testing.assert_close(again(X)[0], one(X)[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again.encode(X).dense(), one.encode(X).dense())
    for name in ("reads", "writes", "layer", "wants", "normalize"):
        assert getattr(again, name) == getattr(one, name), name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("activation", [Relu(), TopK(3), JumpRelu(torch.full((N,), 0.5))])
def test_sae_lens_reads_what_is_written(activation: Any, tmp_path: Path) -> None:
    """The same file, the same inputs; where that package is installed."""
    sae_lens = pytest.importorskip("sae_lens")
    for name, b_in in (("with", PARTS["b_dec"]), ("without", None)):
        one = made(activation, b_in=b_in)
        theirs = sae_lens.SAE.load_from_disk(one_path(one, tmp_path / name), device="cpu")
        found, active = dictionaries.load(tmp_path / name)(X)
        with torch.no_grad():
            torch.testing.assert_close(theirs.encode(X), active.dense(), atol=1e-5, rtol=0)
            torch.testing.assert_close(theirs(X), found, atol=1e-5, rtol=0)


def one_path(one: Dictionary, path: Path) -> str:
    return str(dictionaries.save(one, path, package="sae_lens"))


def test_what_a_package_has_nothing_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"package='sae_lens' has no architecture"):
        dictionaries.save(made(reads="mlp_in"), tmp_path, package="sae_lens")
    with pytest.raises(ValueError, match=r"no name for what .* reads, after the norm's scale"):
        dictionaries.save(made(Relu(), reads="mlp_in", wants="raw"), tmp_path)
    with pytest.raises(ValueError, match=r"package='sparsify' has nothing"):
        dictionaries.save(made(Relu()), tmp_path, package="sparsify")
    with pytest.raises(ValueError, match="package='other'; wanted"):
        dictionaries.save(made(), tmp_path, package="other")
    assert not [*tmp_path.iterdir()]


def test_folders_of_folders_and_the_hub(tmp_path: Path, monkeypatch: Any) -> None:
    for name in ("layers.10.mlp", "layers.2.mlp"):
        sparsify(tmp_path / name)
    assert [*dictionaries.load_all(tmp_path)] == ["2.mlp", "10.mlp"]
    asked = {}

    def snapshot(name: str, **options: Any) -> str:
        asked[name] = options
        return str(tmp_path)

    monkeypatch.setattr(files_module, "snapshot_download", snapshot)
    one = dictionaries.load("owner/name", folder="layers.2.mlp", revision="main")
    assert one.site.label == "2.mlp"
    assert asked == {"owner/name": {"revision": "main", "allow_patterns": "layers.2.mlp/*"}}
    with pytest.raises(ValueError, match=r"folder='layers.5' is not in path="):
        dictionaries.load("owner/name", folder="layers.5")
    with pytest.raises(ValueError, match=r"holds layers.10.mlp, layers.2.mlp; wanted a folder"):
        dictionaries.load(tmp_path)
    with pytest.raises(ValueError, match=r"path='nowhere' is no folder"):
        dictionaries.load("nowhere")
    sparsify(tmp_path / "x" / "layers.2.mlp")
    sparsify(tmp_path / "x" / "h.2.mlp")
    with pytest.raises(ValueError, match=r"has dictionaries of 2.mlp, 2.mlp; wanted each once"):
        dictionaries.load_all(tmp_path / "x")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("gpt_neox.layers.3.attention", ("attn_out", 3)),
        ("transformer.h.3", ("resid_post", 3)),
        ("blocks.3.hook_resid_pre", ("resid_pre", 3)),
        ("3.attn", ("attn_out", 3)),
        ("blocks.3.attn.hook_z", None),
        ("embed", None),
    ],
)
def test_names_of_places(text: str, place: Any) -> None:
    assert place_of(text) == place


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"b_enc": numbers(N - 1)}, r"b_enc=\(9,\)"),
        ({"W_skip": numbers(D, D + 1)}, r"W_skip=\(6, 7\)"),
        ({"activation": JumpRelu(torch.zeros(3))}, r"threshold=\(3,\); wanted one, or 10"),
        ({"activation": TopK(11)}, "k=11 with 10 latents; wanted no more"),
        ({"activation": GroupMax(4)}, "k=4 with 10 latents; wanted a divisor"),
        ({"b_enc": PARTS["b_enc"].double()}, r"b_enc is of torch.float64 with W_enc of torch.fl"),
        ({"spans": 4, "reads": "mlp_in"}, r"spans=4 with W_dec=\(10, 6\); wanted a divisor of 6"),
        ({"b_dec": torch.full((D,), torch.nan)}, "b_dec holds NaN"),
        ({"reads": "z"}, "reads='z'; wanted 'mlp_in', 'mlp_normalized', 'resid"),
        ({"writes": "post"}, "writes='post'; wanted"),
        ({"normalize": "batch"}, "normalize='batch'; wanted"),
        ({"wants": "centred"}, "wants='centred'; wanted"),
        ({"layer": -1}, "layer=-1; wanted an integer from 0"),
        (
            {"spans": 2, "writes": "attn_out", "reads": "attn_out"},
            "spans=2 with writes='attn_out'; wanted 1",
        ),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_parts_that_do_not_fit(more: Any, text: str) -> None:
    given = {**PARTS, "activation": TopK(3), "layer": 1, **more}
    with pytest.raises(ValueError, match=text):
        Dictionary(**given)
    with pytest.raises(ValueError, match="wanted a last axis of 6"):
        made().encode(numbers(2, 5))


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"architecture": "gated"}, "architecture='gated'; wanted one of"),
        ({"normalize_activations": "other"}, "normalize_activations='other'; wanted one of"),
        ({"architecture": "topk"}, "is a TopK without k"),
        ({"architecture": "jumprelu"}, "wanted 'threshold' too"),
        ({"metadata": {}}, "says no place; wanted place="),
        ({"metadata": "x"}, "metadata='x'; wanted an object"),
        ({"metadata": {"hook_name": 3}}, "says place 3; wanted place="),
        ({"architecture": "topk", "k": "3"}, "k='3'; wanted a whole number"),
        ({"activation_fn_kwargs": 3}, "activation_fn_kwargs=3; wanted an object"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, config: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        dictionaries.load(sae_lens(tmp_path / "a", **config))
    (tmp_path / "a" / "cfg.json").write_text("[")
    with pytest.raises(ValueError, match="is no JSON"):
        dictionaries.load(tmp_path / "a")
    (tmp_path / "a" / "cfg.json").unlink()
    with pytest.raises(ValueError, match=r"lacks cfg.json"):
        dictionaries.load(tmp_path / "a")


@pytest.mark.parametrize(
    ("name", "x", "text"),
    [
        ("W_enc", torch.tensor(1.0), r"has W_enc of shape \(\) .* wanted floats along 2 axes"),
        ("W_dec", numbers(2, 3, 4), r"has W_dec of shape \(2, 3, 4\)"),
        ("W_dec", torch.ones(N, D, dtype=torch.int64), "torch.int64; wanted floats"),
        ("b_enc", numbers(1, N), "along 1 axis$"),
        ("scaling_factor", numbers(N - 1), "scaling_factor is of 9 latents; wanted 10"),
    ],
)
def test_tensors_of_files_that_are_refused(
    tmp_path: Path, name: str, x: torch.Tensor, text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        dictionaries.load(sae_lens(tmp_path / "a", {**PARTS, name: x}))


@pytest.mark.usefixtures("without_type_checks")
def test_damaged_files_and_what_is_no_path(tmp_path: Path) -> None:
    jump = {**PARTS, "threshold": torch.full((3,), 0.4)}
    good: Any = sae_lens(tmp_path / "c")
    cut = learned(tmp_path / "b", "AutoEncoder", {**PARTS, "bias": PARTS["b_dec"]})
    (cut / "ae.pt").write_bytes((cut / "ae.pt").read_bytes()[:200])
    linear = {f"{name}.weight": PARTS[f"W_{name[:3]}"].T for name in ("encoder", "decoder")}
    batch = {**jump, **linear, "encoder.bias": PARTS["b_enc"]}
    nothing: Any = None
    for path, options, text in (
        (learned(tmp_path / "a", "JumpReluAutoEncoder", jump), {}, r"threshold is of \(3,\)"),
        (learned(tmp_path / "d", "BatchTopKSAE", batch), {}, "or is none for a whole batch"),
        (cut, {}, "ae.pt is damaged"),
        (sparsify(tmp_path / "layers.1.mlp", mlp_interp=3), {}, "mlp_interp=3; wanted an object"),
        (nothing, {}, "path=None, folder=None; wanted a folder"),
        (good, {"subtract_b_dec": "no"}, "subtract_b_dec='no'; wanted None, False or True"),
        (good, {"activation": "topk"}, "activation='topk'; wanted TopK"),
    ):
        with pytest.raises(ValueError, match=text):
            dictionaries.load(path, **options)
    (good / "cfg.json").write_bytes(bytes([0x80]))
    with pytest.raises(ValueError, match="is no JSON"):
        dictionaries.load(good)


def test_of_another_model(kind: Any) -> None:
    raw, folded = (kind("parallel", "bridge", which) for which in ("raw", "folded"))
    d = Weights.of(raw).d_model
    sizes = (torch.zeros(d, 1), torch.zeros(1), torch.zeros(1, d), torch.zeros(d), Relu())
    Dictionary(*sizes, layer=0, wants="raw").check(Weights.of(raw))
    Dictionary(*sizes, layer=0, wants="folded").check(Weights.of(folded))
    with pytest.raises(ValueError, match=r"wants raw .* are folded; wanted load_model\(name, pro"):
        Dictionary(*sizes, layer=0, wants="raw").check(Weights.of(folded))
    with pytest.raises(ValueError, match=r"wants folded weights"):
        Dictionary(*sizes, layer=0, wants="folded").check(Weights.of(raw))
    with pytest.raises(ValueError, match=r"is of layer 9; wanted one of the model's 0 to"):
        Dictionary(*sizes, layer=9).check(Weights.of(raw))
    with pytest.raises(ValueError, match=rf"reads and writes \(6, 6\) numbers; wanted d_model={d}"):
        made().check(Weights.of(raw))


def test_a_dictionary_says_of_which_model_it_is(
    nano: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One word for two models, whatever dictionaries and calls; none where names do not tell."""
    monkeypatch.setattr("mlp_interp.dictionaries.fitting._said", set())
    weights = Weights.of(nano)
    d = weights.d_model
    sizes = {"W_enc": torch.zeros(d, 3), "b_enc": torch.zeros(3), "W_dec": torch.zeros(3, d)}
    sizes["b_dec"] = torch.zeros(d)
    metadata = {"hook_name": "blocks.1.hook_mlp_out", "model_name": "pythia-70m"}
    other = dictionaries.load(sae_lens(tmp_path / "a", sizes, metadata=metadata))
    with pytest.warns(UserWarning, match=r"'pythia-70m', and model='nano' is another"):
        other.check(weights)
    for one in (other, replace(other, layer=2)):  # said once: again, it would fail the test
        one.check(weights)
    linear = {"encoder.weight": sizes["W_enc"].T, "encoder.bias": sizes["b_enc"]}
    linear |= {"decoder.weight": sizes["W_dec"].T, "bias": sizes["b_dec"]}
    path = learned(tmp_path / "b", "AutoEncoder", linear, lm_name="EleutherAI/pythia-160m")
    with pytest.warns(UserWarning, match="'EleutherAI/pythia-160m'"):
        replace(dictionaries.load(path), wants=None).check(weights)
    for name in ("nano", "Nano", "mine/my-own", 5, None):
        replace(other, attrs={"model_name": name}).check(weights)
    ours = replace(other, attrs={"model": "nano-1"}, activation=TopK(2))
    for package in ("sae_lens", "sparsify"):
        again = dictionaries.load(dictionaries.save(ours, tmp_path / package, package=package))
        assert (ours.of_model, again.of_model) == ("nano-1", "nano-1")


@pytest.mark.parametrize(
    ("architecture", "which"), [("parallel", "raw"), ("gpt2", "raw"), ("llama", "folded")]
)
def test_the_hook_before_the_norms_scale(
    kind: Any, architecture: str, which: str, tokens: torch.Tensor, tmp_path: Path
) -> None:
    """A transcoder that is the identity gives what TransformerLens has at that hook."""
    model = kind(architecture, processing=which)
    weights, hook = Weights.of(model), "blocks.1.ln2.hook_normalized"
    eye, zero = torch.eye(weights.d_model), torch.zeros(weights.d_model)
    one = Dictionary(
        zero[:, None], zero[:1], zero[None], zero, Relu(), layer=1, reads="mlp_normalized",
        W_skip=eye,
    )  # fmt: skip
    one = dictionaries.load(dictionaries.save(one, tmp_path))
    run = mi.run(model, tokens, sites=["attn_out", "mlp_out"])
    _, cache = model.run_with_cache(tokens, names_filter=hook)
    read, _ = read_in(run, one)
    torch.testing.assert_close(one(read)[0], cache[hook], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_processing_is_told_in_any_type(kind: Any, nano: Any, dtype: torch.dtype) -> None:
    """Weights that were centred in a half precision, or put into one, have its rounding left."""
    put, texts = copy.deepcopy(nano), [[0, 5, n] for n in range(6, 14)]
    for parameter in (*put.parameters(), *put.buffers()):
        parameter.data = parameter.data.to(dtype) if parameter.is_floating_point() else parameter
    put.cfg.dtype = dtype
    models = {which: kind("parallel", processing=which, dtype=dtype) for which in ("raw", "folded")}
    models = {("nano", "folded"): put} | {("random", which): m for which, m in models.items()}
    for (_, wants), model in models.items():
        weights = Weights.of(model)
        for reads in ("mlp_in", "resid_post"):
            assert processing(weights, 0, reads) == wants
        d, generator = weights.d_model, torch.Generator().manual_seed(0)
        draw = [torch.randn(*n, generator=generator) for n in ((d, 8), (8,), (8, d), (d,))]
        one = Dictionary(*draw, TopK(2), layer=0, wants=wants)
        found = separate(model, one, {"a": texts[:4], "b": texts[4:]})
        assert found.auroc.notnull().all()
    assert bool(mi.check_model(put).writing_centred)
    assert not bool(mi.check_model(models["random", "raw"]).writing_centred)


def test_raw_weights_of_untrained_norms_are_raw(backend: str, tokens: torch.Tensor) -> None:
    source, options = random_neox(), {"tokenizer": tiny_tokenizer(), "backend": backend}
    with torch.no_grad():
        for name, parameter in source.named_parameters():
            if "norm" in name:
                parameter.fill_(float(name.endswith("weight")))
    model, folded = (mi.load_model(source, processing=p, **options) for p in ("raw", "folded"))
    assert Weights.of(model).block(0).ln2.folded
    assert processing(Weights.of(model), 0, "mlp_in") == "raw"
    one = train(model, tokens, "0.mlp", reads="mlp_in", n_latents=4, k=2, steps=3)
    assert one.wants == "raw"
    evaluate(model, one, tokens)
    with pytest.raises(ValueError, match=r"wants raw weights, .* are folded"):
        one.check(Weights.of(folded))


@pytest.mark.skipif(not HAS_HOOKED, reason="the bridge processes weights as a whole")
def test_weights_that_are_folded_and_not_centred(kind: Any) -> None:
    model = copy.deepcopy(kind("parallel", "hooked", "raw"))
    model.process_weights_(center_writing_weights=False, center_unembed=False)
    weights = Weights.of(model)
    d = weights.d_model
    sizes = (torch.zeros(d, 1), torch.zeros(1), torch.zeros(1, d), torch.zeros(d), Relu())
    Dictionary(*sizes, layer=0, wants="raw").check(weights)  # of a stream, which has its mean
    Dictionary(*sizes, layer=0, reads="mlp_normalized", wants="raw").check(weights)
    for wants in ("raw", "folded"):
        with pytest.raises(ValueError, match=rf"wants {wants} weights, .* are neither; wanted"):
            Dictionary(*sizes, layer=0, reads="mlp_in", wants=wants).check(weights)
    with pytest.raises(ValueError, match=r"reads='mlp_in' of model=.* own, model.process_w"):
        train(model, torch.ones(1, 4, dtype=torch.long), "0.mlp", reads="mlp_in", n_latents=2, k=1)


def test_what_follows_a_module(kind: Any, tmp_path: Path, monkeypatch: Any) -> None:
    weights = Weights.of(kind(processing="raw"))
    d = weights.d_model
    sizes = (torch.zeros(d, 2), torch.zeros(2), torch.zeros(2, d), torch.zeros(d), TopK(1))
    assert not Dictionary(*sizes, layer=0).of_module
    ours = dictionaries.save(Dictionary(*sizes, layer=0), tmp_path / "x", package="sparsify")
    assert not dictionaries.load(ours).of_module
    assert dictionaries.load(sparsify(tmp_path / "layers.0.mlp")).of_module
    one = Dictionary(*sizes, layer=0, of_module=True)
    one.check(weights)
    monkeypatch.setattr(weights.model.blocks[0], "residual_contribution_scale", 0.5, raising=False)
    with pytest.raises(ValueError, match=r"output of a module, and model=.* multiplies that"):
        one.check(weights)
    Dictionary(*sizes, layer=0).check(weights)
    Dictionary(*sizes, layer=0, reads="resid_post", writes="resid_post", of_module=True).check(
        weights
    )
