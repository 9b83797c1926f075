"""Models that normalise or scale what attention and MLP write, against Hugging Face's modules."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES
from contrasts import contrast_of
from random_models import VOCABULARY, tiny_tokenizer
from reference_paths import EARLY, Slow, close

import mlp_interp as mi
from mlp_interp.dictionaries import Dictionary, TopK
from mlp_interp.edits import Edit
from mlp_interp.models import Weights
from mlp_interp.models.vectors import Vectors
from mlp_interp.residual import decompose

pytestmark = pytest.mark.filterwarnings("ignore")
TOKENS = torch.randint(VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))
LAYER, HEAD, NEURON = 0, 1, 7
WRITERS = {"L0H1": "self_attn.o_proj", "L0N7": "mlp.down_proj"}
NORMS = {
    "Gemma3": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "Olmo2": ("post_attention_layernorm", "post_feedforward_layernorm"),
}


@pytest.fixture(scope="module", params=NORMS)
def case(request):
    """A family's name, a random model of Hugging Face's, and the same loaded."""
    (architecture,) = (a for a in ARCHITECTURES if a.family == request.param)
    source = architecture.source()
    loaded = mi.load_model(source, tokenizer=tiny_tokenizer(), backend="bridge")
    return request.param, source, loaded


def columns(label, source, loaded):
    """Which inputs of the module that writes are the head's, or the neuron's."""
    size = Weights.of(loaded).d_head if "H" in label else 1
    index = HEAD if "H" in label else NEURON
    return slice(index * size, (index + 1) * size)


def theirs(source, tokens, label=None, columns=None, value=None):
    """Logits, and what each module of the block took and gave; perhaps with other inputs."""
    seen, block = {}, source.model.layers[LAYER]

    def keep(name, _module, inputs, output):
        seen[name] = (inputs[0] if inputs else None), output

    def change(_module, inputs):
        x = inputs[0].clone()
        x[..., columns] = value
        return (x,)

    handles = [
        module.register_forward_hook(partial(keep, name)) for name, module in block.named_modules()
    ]
    if label is not None:
        module = block.get_submodule(WRITERS[label])
        handles.append(module.register_forward_pre_hook(change))
    with torch.no_grad():
        logits = source(tokens).logits.log_softmax(-1)
    for handle in handles:
        handle.remove()
    return logits, seen


@pytest.mark.parametrize("label", WRITERS)
def test_heads_and_neurons_have_the_norms_scale_held(case, label):
    family, source, loaded = case
    _, seen = theirs(source, TOKENS)
    x, whole = seen[WRITERS[label]]
    name = NORMS[family]["N" in label]
    before, after = seen[name]
    torch.testing.assert_close(before, whole)
    some = columns(label, source, loaded)
    alone = x[..., some] @ source.model.layers[LAYER].get_submodule(WRITERS[label]).weight.T[some]
    # What the norm makes of the whole, entry by entry, is what it makes of each part of it.
    expected = (alone.double() * after.double() / before.double()).float()
    _, cache = loaded.run_with_cache(TOKENS)
    found = decompose(loaded, cache, level="neuron")
    assert found.attrs["post_norm"] == "frozen"
    mine = found.project(torch.eye(32)[3].expand(2, 9, 32))[..., found.labels.index(label)]
    torch.testing.assert_close(mine, expected[..., 3], atol=1e-4, rtol=1e-3)
    one = mi.residual.components(loaded, cache, [label]).vectors()[:, :, 0]
    # Like the streams of models that are centred when they are folded.
    torch.testing.assert_close(one, expected, atol=1e-4, rtol=1e-3)
    assert "post_norm" not in decompose(loaded, cache).attrs


@pytest.mark.parametrize("label", WRITERS)
def test_taken_away_in_total_is_with_the_norm_anew(case, label):
    _, source, loaded = case
    some = columns(label, source, loaded)
    clean, _ = theirs(source, TOKENS)
    changed, _ = theirs(source, TOKENS, label, some, 0.0)
    kl = (clean.exp() * (clean - changed)).sum(-1)
    assert kl.max() > 1e-5
    found = mi.ablate_total(loaded, TOKENS, [label], first=0)
    np.testing.assert_allclose(found.kl.squeeze("component"), kl, rtol=1e-3, atol=1e-5)
    edit = Edit.set(label, 0.0)
    ours = mi.run(loaded, TOKENS, edits=edit).logits().log_softmax(-1)
    torch.testing.assert_close(ours, changed, atol=1e-4, rtol=0)


@pytest.fixture(scope="module", params=NORMS)
def deeper(request):
    """A random model of three layers whose heads have keys of their own."""
    (architecture,) = (a for a in ARCHITECTURES if a.family == request.param)
    options = {**architecture.options, "num_hidden_layers": 3, "num_key_value_heads": 4}
    options.pop("layer_types", None)
    source = replace(architecture, options=options).source()
    return mi.load_model(source, tokenizer=tiny_tokenizer(), backend="bridge")


@pytest.mark.parametrize("freeze", ["all", "attention"])
def test_senders_of_paths_write_with_the_norm_anew(deeper, freeze):
    contrast = contrast_of()
    slow, sets = Slow(deeper, contrast), {"read": ["L1H0.v", "2.attn"], "all": ["2.mlp", "logits"]}
    # The reference adds value vectors, where MLPs are held.
    early = [label for label in EARLY if freeze == "attention" or "N" not in label]
    if Weights.of(deeper).joint_head_norms:
        for label in ("L0H2.q", "L0H3.k"):
            with pytest.raises(ValueError, match="of all heads together"):
                mi.path_patch(deeper, contrast, senders=[label], receivers=sets)
            early.remove(label)
    found = mi.path_patch(deeper, contrast, senders=early, receivers=sets, freeze=freeze)
    for name, receivers in sets.items():
        for sender in early:
            expected = slow([sender], receivers, freeze)
            close(found.raw.sel(receiver=name, sender=sender), expected, atol=1e-4)


def test_a_neuron_sends_what_it_changes_of_the_whole(deeper):
    contrast, label, unit = contrast_of(), "L1N5", 5
    found = mi.path_patch(deeper, contrast, senders=[label], receivers="logits")
    caches = [
        deeper.run_with_cache(tokens)[1]
        for tokens in (contrast.corrupted_tokens, contrast.clean_tokens)
    ]
    own, taken = (cache["blocks.1.mlp.hook_post"] for cache in caches)
    changed = own.clone()
    changed[..., unit] = taken[..., unit]
    name = "blocks.1.mlp.hook_post"
    written = []

    def swap(x, hook=None):
        return changed

    def keep(x, hook=None):
        written.append(x.detach().clone())

    hooks = [(name, swap), ("blocks.1.hook_mlp_out", keep)]
    deeper.run_with_hooks(contrast.corrupted_tokens, fwd_hooks=hooks)
    change = written[0] - caches[0]["blocks.1.hook_mlp_out"]
    logits = mi.Unembed.of(deeper).logits(caches[0]["blocks.2.hook_resid_post"] + change)[:, -1]
    rows = torch.arange(len(contrast))
    expected = logits[rows, contrast.answers] - logits[rows, contrast.foils]
    np.testing.assert_allclose(found.raw.squeeze(), expected.detach(), atol=1e-4)


@pytest.mark.parametrize("site", ["resid_pre", "attn_out", "mlp_out", "z", "v", "post"])
def test_patches_are_what_hooks_give(deeper, site):
    contrast = contrast_of(length=5)
    found = mi.patch(deeper, contrast, sites=[site], layers=[1])
    assert found.attrs["engine"] == "hooks"
    _, cache = deeper.run_with_cache(contrast.clean_tokens)
    name = mi.Site(site, 1).hook_name
    clean = cache[name]
    unit = {"z": "head", "v": "head", "post": "neuron"}.get(site)
    place = (
        (slice(None), 2) if unit is None else (..., 2, slice(None)) if unit == "head" else (..., 2)
    )

    def restore(x, hook=None):
        x = x.clone()
        x[place] = clean[place]
        return x

    last = deeper.run_with_hooks(contrast.corrupted_tokens, fwd_hooks=[(name, restore)])[:, -1]
    rows = torch.arange(len(contrast))
    expected = (last[rows, contrast.answers] - last[rows, contrast.foils]).detach()
    got = found.raw.sel(site=site, layer=1)
    got = got.sel({unit or "pos": 2})
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_sources_of_heads_sum_to_them(case):
    _, _, loaded = case
    _, cache = loaded.run_with_cache(TOKENS)
    heads = mi.attribute_logits(loaded, cache, 5, 6, level="head", positions=-1)
    found = mi.attribute_sources(loaded, cache, 5, 6, positions=-1)
    assert found.attrs["post_norm"] == heads.attrs["post_norm"] == "frozen"
    whole = heads.isel(pos=0).sel(component=found.component)
    np.testing.assert_allclose(found.sum("source"), whole, atol=1e-4)


def test_neurons_updates_are_what_they_add(case):
    _, _, loaded = case
    _, cache = loaded.run_with_cache(TOKENS)
    added = cache["blocks.1.hook_mlp_out"].double().norm(dim=-1)[:, 1:]
    found = mi.neurons.update_shares(loaded, TOKENS, layers=[1])
    np.testing.assert_allclose(found.update_rms.item(), added.square().mean().sqrt(), rtol=1e-4)


def test_what_holds_for_one_head_alone_is_refused(case):
    _, _, loaded = case
    message = "normalises what attention and MLP write"
    for call in (
        lambda: mi.edge_attribution(loaded, contrast_of()),
        lambda: mi.steering.output_direction(loaded, "L1N5"),
        lambda: mi.steering.function_vector(loaded, contrast_of()),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_multipliers_are_in_what_is_written():
    """Granite, with an embedding that both versions of the library show."""
    (architecture,) = (a for a in ARCHITECTURES if a.family == "Granite")
    options = {**architecture.options, "embedding_multiplier": 1.0}
    source = replace(architecture, options=options).source()
    for processing in ("raw", "folded"):
        loaded = mi.load_model(
            source, tokenizer=tiny_tokenizer(), backend="bridge", processing=processing
        )
        assert bool(mi.check_model(loaded).ok)
        clean, seen = theirs(source, TOKENS)
        _, cache = loaded.run_with_cache(TOKENS)
        x, _ = seen["self_attn.o_proj"]
        some = columns("L0H1", source, loaded)
        alone = x[..., some] @ source.model.layers[0].self_attn.o_proj.weight.T[some] / 2
        found = mi.residual.components(loaded, cache, ["L0H1"]).vectors()[:, :, 0]
        torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-4)
        assert decompose(loaded, cache, level="neuron").error() < 1e-4
        ours = mi.Unembed.of(loaded).logits(cache["blocks.1.hook_resid_post"]).log_softmax(-1)
        torch.testing.assert_close(ours, clean, atol=1e-4, rtol=0)
        gap = clean[:, -1, 5] - clean[:, -1, 6]
        shares = mi.attribute_logits(loaded, cache, 5, 6, level="neuron", positions=-1)
        np.testing.assert_allclose(shares.sum("component").isel(pos=0), gap, atol=1e-4)


def test_the_embedding_is_as_long_as_it_is_written(case):
    """Gemma multiplies what its table gives."""
    _, _, loaded = case
    _, cache = loaded.run_with_cache(TOKENS)
    found = mi.norms(loaded, TOKENS).norm.sel(component="embed", stat="mean")
    expected = cache["hook_embed"].norm(dim=-1)[:, 1:].mean()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_value_vectors_have_no_size_of_their_own(case):
    _, _, loaded = case
    for found in (
        mi.weights.table(loaded, "L0.out", k=1, best=1),
        mi.weights.virtual_weights(loaded, "L0", "L1", k=1, best=1),
    ):
        assert found.attrs["exact"] == 0
        assert "the norm after the MLP" in found.attrs["approximation"]
    assert mi.weights.virtual_weights(loaded, "embed", "L0", k=1, best=1).attrs["exact"] == 1
    assert mi.weights.subspaces(loaded, "0.mlp", "1.mlp").attrs["exact"] == 1


def test_what_an_mlp_adds_is_values_times_one_number(case):
    _, _, loaded = case
    cache = mi.run(loaded, TOKENS, sites=["post", "mlp_out"])
    value = Vectors.of(Weights.of(loaded), LAYER).value
    ratio = cache[f"{LAYER}.mlp"] / (cache["post", LAYER] @ value)
    torch.testing.assert_close(ratio, ratio[..., :1].expand_as(ratio), atol=1e-3, rtol=1e-3)


def test_a_dictionary_of_a_modules_own_output_is_refused(case):
    """What other packages read there is before the norm that follows."""
    _, _, loaded = case
    d = Weights.of(loaded).d_model
    parts = torch.zeros(d, 2), torch.zeros(2), torch.zeros(2, d), torch.zeros(d), TopK(1)
    for name in ("mlp_out", "attn_out"):
        one = Dictionary(*parts, layer=LAYER, reads=name, writes=name)
        one.check(Weights.of(loaded))
        with pytest.raises(ValueError, match=f"normalises that before it becomes {name}"):
            replace(one, of_module=True).check(Weights.of(loaded))
