"""Loading from a directory, from memory and (up to the network call) from the hub."""

import gc
import json
import shutil
import weakref

import pytest
import reference
import torch
from architectures import ARCHITECTURES
from random_models import (
    BACKENDS,
    HAS_HOOKED,
    assert_same_state,
    random_neox,
    state_of,
    tiny_tokenizer,
    unchecked,
)
from safetensors.torch import load_file, save_file
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from mlp_interp import ablate_total, cache_for
from mlp_interp.models import PYTHIA, describe, load_model, loading


def log_probs(logits):
    return logits.detach().double().log_softmax(-1)


@pytest.mark.parametrize("processing", ["folded", "raw"])
@pytest.mark.parametrize("parallel", [True, False])
def test_log_probabilities_are_hugging_faces_in_float64(backend, processing, parallel, tokens):
    source = random_neox(parallel=parallel).double()
    model = load_model(
        source,
        tokenizer=tiny_tokenizer(),
        backend=backend,
        processing=processing,
        dtype=torch.float64,
    )
    assert model.W_U.dtype == torch.float64
    assert not model.training
    theirs = log_probs(source(tokens).logits)
    # Hugging Face's rotary table is float32 whatever the weights are.
    torch.testing.assert_close(log_probs(model(tokens)), theirs, atol=1e-5, rtol=0)


def test_a_local_directory(neox_directory, backend, tokens):
    model = load_model(neox_directory, backend=backend)
    found = describe(model)
    assert found == {
        "model": neox_directory.name,
        "revision": "main",
        "processing": "folded",
        "dtype": "float32",
        "device": "cpu",
        "backend": "HookedTransformer" if backend == "hooked" else "TransformerBridge",
    }
    theirs = log_probs(random_neox()(tokens).logits)
    torch.testing.assert_close(log_probs(model(tokens)), theirs, atol=1e-4, rtol=0)
    assert model.tokenizer.decode(model.tokenizer.encode("the cat")) == "the cat"
    assert model.tokenizer.bos_token_id == 0
    assert model.to_tokens("the cat")[0].tolist() == [0, *model.tokenizer.encode("the cat")]


def test_a_module_in_memory_is_left_as_it_was(backend, tokens):
    class Config:  # what `state_of` wants of a TransformerLens model
        pass

    source = random_neox()
    source.train()
    next(source.parameters()).requires_grad_(False)
    config, attention = source.config.to_dict(), source.config._attn_implementation
    source.cfg = Config()
    before, output = state_of(source), source(tokens).logits.detach()
    tokenizer = tiny_tokenizer()
    model = load_model(source, tokenizer=tokenizer, backend=backend)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert_same_state(before, state_of(source))
    assert source.config.to_dict() == config
    assert source.config._attn_implementation == attention
    assert torch.equal(source(tokens).logits, output)
    assert model.tokenizer is not tokenizer
    assert tokenizer.pad_token is None


def test_a_loaded_model_is_not_kept_alive_by_us(backend):
    source = random_neox()
    model = load_model(source, tokenizer=tiny_tokenizer(), backend=backend)
    ends = [weakref.ref(source)] if backend == "hooked" else []
    kept = weakref.ref(model)
    del model, source
    gc.collect()
    assert kept() is None
    assert all(end() is None for end in ends)


def test_describing_a_model_we_did_not_load(kind):
    found = describe(kind("gpt2", BACKENDS[0], "raw"))
    assert found["revision"] == "unknown"
    assert found["processing"] == "as loaded by the user"


@pytest.fixture
def hub(monkeypatch):
    """A hub that answers with a random model, and notes what it was asked."""
    asked = []

    def answer(what, value):
        def from_pretrained(source, **options):
            asked.append((what, source, options))
            return value()

        return from_pretrained

    source = random_neox(layers=1)
    monkeypatch.setattr(
        loading.AutoConfig, "from_pretrained", answer("config", lambda: source.config)
    )
    monkeypatch.setattr(
        loading.AutoModelForCausalLM,
        "from_pretrained",
        answer("weights", lambda: (random_neox(layers=1), {"missing_keys": set()})),
    )
    monkeypatch.setattr(
        loading.AutoTokenizer, "from_pretrained", answer("tokenizer", tiny_tokenizer)
    )
    return asked


def test_there_are_eighteen_pythias():
    assert len(PYTHIA) == len(set(PYTHIA)) == 18
    assert {"pythia-14m", "pythia-70m-deduped", "pythia-12b-deduped"} < set(PYTHIA)
    assert "pythia-14m-deduped" not in PYTHIA


def test_every_pythia_name_goes_to_its_repository():
    for name in PYTHIA:
        size = name.removeprefix("pythia-")
        for alias in (name, size, f"EleutherAI/{name}"):
            assert loading._resolve(alias, "step3000") == (f"EleutherAI/{name}", name)
    assert loading._resolve("70m-deduped-v0", None)[0] == "EleutherAI/pythia-70m-deduped-v0"


def test_the_hub_is_asked_for_the_revision(hub):
    model = load_model("70m", revision="step143000")
    assert {what for what, *_ in hub} == {"config", "weights", "tokenizer"}
    for what, source, options in hub:
        assert source == "EleutherAI/pythia-70m"
        assert options["revision"] == "step143000"
        assert ("dtype" in options) == (what == "weights")
    assert describe(model)["model"] == "pythia-70m"
    assert describe(model)["revision"] == "step143000"


def test_without_a_revision_the_hub_is_asked_for_none(hub):
    model = load_model("EleutherAI/pythia-160m-deduped")
    assert all("revision" not in options for _, _, options in hub)
    assert describe(model)["revision"] == "main"


@pytest.mark.parametrize("revision", [None, "step7"])
def test_an_unreachable_hub_says_what_to_do(monkeypatch, revision):
    def refuse(source, **options):
        raise OSError(f"We couldn't connect to 'https://huggingface.co' to load {source}\nmore")

    monkeypatch.setattr(loading.AutoConfig, "from_pretrained", refuse)
    with pytest.raises(ConnectionError) as caught:
        load_model("pythia-70m", revision=revision)
    text = str(caught.value)
    assert "EleutherAI/pythia-70m" in text
    assert ("step7" in text) == (revision is not None)
    assert "pass its directory" in text
    assert "load_model('nano')" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("pythia-70", "pythia-70m"),
        ("pythia-140m", "pythia-14"),
        ("1.4", "1.4b"),
        ("nnano", "nano"),
        ("smollm", "smollm2"),
    ],
)
def test_an_unknown_name_gets_the_nearest(name, near):
    with pytest.raises(ValueError, match=f"name='{name}' is neither .* nearest name is '{near}"):
        load_model(name)


def test_other_bad_arguments(neox_directory, tmp_path):
    with pytest.raises(ValueError, match="processing='centred'; wanted 'folded' or 'raw'"):
        unchecked(load_model)("nano", processing="centred")
    with pytest.raises(ValueError, match="backend='hf'; wanted 'auto', 'hooked' or 'bridge'"):
        unchecked(load_model)("nano", backend="hf")
    with pytest.raises(ValueError, match="revision='step1': only models on the hub"):
        load_model(neox_directory, revision="step1")
    with pytest.raises(ValueError, match="revision='step1': only models on the hub"):
        load_model(random_neox(layers=1), tokenizer=tiny_tokenizer(), revision="step1")
    with pytest.raises(ValueError, match=r"has no config\.json; wanted a Hugging Face directory"):
        load_model(tmp_path)
    with pytest.raises(ValueError, match="name='CohereForCausalLM' is a 'cohere' model; wanted Py"):
        load_model(another_kind(), tokenizer=tiny_tokenizer())
    with pytest.raises(ValueError, match="name=Identity; wanted a causal language model"):
        unchecked(load_model)(torch.nn.Identity(), tokenizer=tiny_tokenizer())


def another_kind():
    """A model of a family that is not loaded."""
    return next(a for a in ARCHITECTURES if a.family == "Cohere").source()


@pytest.mark.skipif(HAS_HOOKED, reason="the installed library has HookedTransformer")
def test_hooked_where_there_is_none():
    with pytest.raises(ValueError, match="installed TransformerLens has no HookedTransformer"):
        load_model("nano", backend="hooked")


def test_a_directory_of_another_architecture(tmp_path):
    another_kind().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a 'cohere' model; wanted Pythia's architecture"):
        load_model(tmp_path)


def test_a_directory_without_weights(neox_directory, tmp_path):
    shutil.copytree(neox_directory, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="could not be read"):
        load_model(tmp_path / "m")


def test_a_directory_without_tokenizer(neox_directory, tmp_path):
    path = tmp_path / "m"
    path.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(neox_directory / name, path)
    for backend in BACKENDS:
        bare = load_model(path, backend=backend, label="mine")
        assert bare.tokenizer is None
        tokens = torch.tensor([[3, 5, 7, 9]])
        found = ablate_total(bare, tokens, ["0.mlp"])
        assert found.attrs["model"] == "mine"
        known = load_model(path, backend=backend, tokenizer=tiny_tokenizer())
        assert torch.equal(bare(tokens), known(tokens))
        with pytest.raises(ValueError, match="has no tokenizer; wanted a model with one"):
            cache_for(bare, "a text")
    model = load_model(path, tokenizer=tiny_tokenizer())
    assert model.tokenizer.bos_token == "<|endoftext|>"


def test_a_directory_with_a_broken_config(neox_directory, tmp_path):
    path = tmp_path / "m"
    shutil.copytree(neox_directory, path)
    (path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="could not be read"):
        load_model(path)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_weights_that_are_not_finite(neox_directory, tmp_path, bad):
    path = tmp_path / "m"
    shutil.copytree(neox_directory, path)
    weights = load_file(path / "model.safetensors")
    weights["gpt_neox.layers.1.mlp.dense_4h_to_h.weight"][3, 5] = bad
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"layers\.1\.mlp\.dense_4h_to_h\.weight' holds NaN or inf"
    ):
        load_model(path)


def test_weights_that_are_missing(neox_directory, tmp_path):
    """Hugging Face fills missing weights with random numbers; that must not pass for the model."""
    path = tmp_path / "m"
    shutil.copytree(neox_directory, path)
    weights = load_file(path / "model.safetensors")
    del weights["gpt_neox.layers.1.mlp.dense_4h_to_h.weight"]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks.*layers\.1\.mlp\.dense_4h_to_h\.weight"):
        load_model(path)


def test_a_directory_with_other_settings(tmp_path, backend, tokens):
    """Full rotary with another base, another epsilon, another activation, heads and context."""
    source = random_neox()
    source.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    edited = json.loads((tmp_path / "config.json").read_text())
    edited |= {"layer_norm_eps": 1e-2, "hidden_act": "relu"}
    rope = edited.get("rope_parameters")
    if rope:
        edited["rope_parameters"] = rope | {"rope_theta": 500.0, "partial_rotary_factor": 1.0}
    else:
        edited |= {"rotary_emb_base": 500, "rotary_pct": 1.0}
    (tmp_path / "config.json").write_text(json.dumps(edited))
    theirs = GPTNeoXForCausalLM.from_pretrained(tmp_path).eval()
    model = load_model(tmp_path, backend=backend)
    found, expected = log_probs(model(tokens)), log_probs(theirs(tokens).logits)
    assert (log_probs(source(tokens).logits) - expected).abs().max() > 0.05
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


ROPES = [
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "yarn", "factor": 4.0},
]


def with_rope(rope):
    """A random model with another rule for rotary positions."""
    source = random_neox()
    config = source.config.to_dict()
    config["rope_parameters"] = config["rope_parameters"] | rope
    with torch.random.fork_rng():
        other = GPTNeoXForCausalLM(type(source.config).from_dict(config)).eval()
    other.load_state_dict(source.state_dict())
    return other


@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: rope["rope_type"])
@pytest.mark.parametrize("processing", ["folded", "raw"])
def test_other_rotary_rules_go_through_the_class_that_follows_them(rope, processing, tokens):
    source = with_rope(rope)
    theirs = log_probs(source(tokens).logits)
    assert (log_probs(random_neox()(tokens).logits) - theirs).abs().max() > 0.01
    model = load_model(source, tokenizer=tiny_tokenizer(), processing=processing)
    assert describe(model)["backend"] == "TransformerBridge"
    torch.testing.assert_close(log_probs(model(tokens)), theirs, atol=1e-4, rtol=0)


@pytest.mark.skipif(not HAS_HOOKED, reason="the installed library has no HookedTransformer")
@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: rope["rope_type"])
def test_a_class_that_ignores_the_rotary_rule_is_refused(rope):
    text = rf"rope_type='{rope['rope_type']}' in its config.*wanted backend='bridge' or 'auto'"
    with pytest.raises(ValueError, match=text):
        load_model(with_rope(rope), tokenizer=tiny_tokenizer(), backend="hooked")


def with_config(d_head=8, **options):
    """A random model with another config, two heads of this size."""
    config = random_neox(layers=2, d_model=2 * d_head, heads=2).config.to_dict()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPTNeoXForCausalLM(GPTNeoXConfig(**{**plain(config), **options}))
        for parameter in model.parameters():
            parameter.data.normal_(0, 0.5)
    return model.eval()


def plain(config):
    """Without what of rotary positions is in the config twice."""
    return {name: value for name, value in config.items() if "rope" not in name}


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize(
    ("d_head", "share"), [(24, 0.33), (24, 0.3), (10, 0.5), (20, 0.33), (12, 0.4), (8, 1.0)]
)
def test_as_many_dimensions_are_rotated_as_in_transformers(backend, d_head, share, tokens):
    source = with_config(d_head, rotary_pct=share)
    if backend == "hooked" and int(d_head * share) % 2:
        with pytest.raises(ValueError, match=rf"has {int(d_head * share)} rotary dimensions, an"):
            load_model(source, tokenizer=tiny_tokenizer(), backend=backend)
        return
    model = load_model(source, tokenizer=tiny_tokenizer(), backend=backend)
    theirs = log_probs(source(tokens).logits)
    torch.testing.assert_close(log_probs(model(tokens)), theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("activation", ["quick_gelu", "tanh", "mish", "silu", "leaky_relu"])
def test_every_activation_is_that_of_transformers(activation, tokens):
    source = with_config(hidden_act=activation)
    theirs = log_probs(source(tokens).logits)
    model = load_model(source, tokenizer=tiny_tokenizer())
    torch.testing.assert_close(log_probs(model(tokens)), theirs, atol=1e-4, rtol=0)
    if HAS_HOOKED and activation != "silu":
        text = rf"hidden_act='{activation}' in its config, which HookedTransformer lacks; wanted ba"
        with pytest.raises(ValueError, match=text):
            load_model(source, tokenizer=tiny_tokenizer(), backend="hooked")


def test_attention_without_biases_is_refused(backend):
    plain = random_neox().config
    config = type(plain).from_dict(plain.to_dict() | {"attention_bias": False})
    with torch.random.fork_rng():
        source = GPTNeoXForCausalLM(config)
    with pytest.raises(ValueError, match="has attention_bias=False in its config"):
        load_model(source, tokenizer=tiny_tokenizer(), backend=backend)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"device": "gpu"}, "device='gpu' is no device; wanted 'cpu'"),
        ({"device": "cuda:99"}, "device='cuda:99' is not available; wanted 'cpu'"),
        ({"device": 1.5}, r"device=1\.5 is no device"),
        ({"dtype": "float12"}, r"dtype='float12'; wanted a floating torch dtype, such as torch\."),
        ({"dtype": torch.int8}, r"dtype=torch\.int8; wanted a floating torch dtype"),
        ({"dtype": None}, "dtype=None; wanted a floating torch dtype"),
    ],
)
def test_devices_and_dtypes_that_are_none(options, text):
    with pytest.raises(ValueError, match=text) as caught:
        unchecked(load_model)("nano", **options)
    assert "\n" not in str(caught.value)


def test_a_gpu_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"device='cuda' is not available.*no CUDA device here"):
        load_model("nano", device="cuda")


def test_nano_is_the_default(nano):
    assert describe(nano)["model"] == "nano"
    assert nano.cfg.parallel_attn_mlp
    assert reference.full_cache(nano, torch.tensor([[0, 1]]))["hook_embed"].isfinite().all()
