import numpy as np
import pytest
import torch
import xarray as xr
from contrasts import contrast_of
from random_models import random_neox, tiny_tokenizer, unchecked

from mlp_interp import load_model, metrics, patch, prompts
from mlp_interp.interchange import measuring

ALL_SITES = ["resid_pre", "resid_post", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern"]
ALL_SITES += ["pre", "post"]
HOOKS = {
    "resid_pre": "blocks.{}.hook_resid_pre",
    "resid_post": "blocks.{}.hook_resid_post",
    "attn_out": "blocks.{}.hook_attn_out",
    "mlp_out": "blocks.{}.hook_mlp_out",
    **{name: f"blocks.{{}}.attn.hook_{name}" for name in ("z", "q", "k", "v", "pattern")},
    **{name: f"blocks.{{}}.mlp.hook_{name}" for name in ("pre", "post")},
}


def by_hooks(model, contrast, cell, *, direction="denoising", window=1):
    """One forward pass of the model itself with one plain hook: logit difference by prompt."""
    own, other = contrast.corrupted_tokens, contrast.clean_tokens
    if direction == "noising":
        own, other = other, own
    site, layer, unit, position = cell
    first = layer - window // 2
    layers = range(max(0, first), min(model.cfg.n_layers, first + window))
    with torch.no_grad():
        names = [HOOKS[site].format(n) for n in layers]
        _, cache = model.run_with_cache(other, names_filter=names)

        def put(x, hook=None):
            new, taken = x.clone(), cache[hook.name]
            at = [slice(None)] * x.ndim
            place, places = (2, 1) if site == "pattern" else (1, 2)
            if position is not None:
                at[place] = position
            if unit is not None:
                at[places] = unit
            new[tuple(at)] = taken[tuple(at)]
            return new

        logits = model.run_with_hooks(own, fwd_hooks=[(name, put) for name in names])[:, -1]
    rows = torch.arange(len(contrast))
    return (logits[rows, contrast.answers] - logits[rows, contrast.foils]).numpy()


def assert_as_hooks(model, contrast, result, *, some=None, atol=1e-9, **options):
    """Compare cells of a result (all, or every `some`-th) with plain hooks."""
    axes = [name for name in result.raw.dims if name != "prompt"]
    stacked = result.raw.stack(cell=axes)
    for n in range(0, stacked.sizes["cell"], some or 1):
        value = stacked.isel(cell=n)
        place = [value[name].item() if name in axes else None for name in ("site", "layer")]
        unit = next((value[n].item() for n in ("head", "neuron") if n in axes), None)
        position = value["pos"].item() if "pos" in axes else None
        expected = by_hooks(model, contrast, (*place, unit, position), **options)
        np.testing.assert_allclose(value.values, expected, atol=atol, rtol=0, err_msg=str(place))


@pytest.mark.parametrize(
    "options",
    [
        {"sites": ["resid_pre", "resid_post", "attn_out", "mlp_out"]},
        {"sites": ["resid_pre", "attn_out", "mlp_out"], "positions": "all"},
        {"sites": ["attn_out", "mlp_out"], "window": 2},
        {"sites": ["attn_out", "mlp_out"], "window": 3, "positions": "all"},
        {"sites": ["z", "q", "k", "v", "pattern"]},
        {"sites": ["z", "q", "k", "v", "pattern"], "positions": [2, 4, -1], "heads": [0, 3]},
        {"sites": ["pre", "post"], "neurons": [0, -1]},
        {"sites": ["post"], "neurons": [5], "positions": "each"},
    ],
    ids=lambda options: "-".join(map(str, options.values())).replace(" ", ""),
)
@pytest.mark.parametrize(
    ("which", "direction"), [("parallel", "denoising"), ("sequential", "noising")]
)
def test_patches_are_what_plain_hooks_give(kind, which, options, direction):
    model, contrast = kind(which, dtype=torch.float64), contrast_of()
    result = patch(model, contrast, direction=direction, **options)
    assert result.engine == "lean"
    window = options.get("window", 1)
    # Where TransformerLens rotates in float32, it is the reference that is inexact.
    assert_as_hooks(model, contrast, result, some=5, atol=1e-5, direction=direction, window=window)
    slow = patch(model, contrast, direction=direction, engine="hooks", **options)
    assert slow.engine == "hooks"
    np.testing.assert_allclose(result.raw, slow.raw, atol=1e-12, rtol=0)
    assert (result.changed == slow.changed).all()


@pytest.mark.parametrize("sites", [["resid_pre", "attn_out", "mlp_out"], ["z", "q"], ["k", "v"]])
def test_every_kind_of_model_is_patched_as_by_its_own_hooks(some_model, sites):
    model, contrast = some_model, contrast_of(length=6)
    result = patch(model, contrast, sites=sites)
    assert result.engine == "lean"
    assert_as_hooks(model, contrast, result, some=7, atol=2e-4)


@pytest.mark.parametrize(("batch", "length"), [(1, 8), (8, 8), (3, 33), (1, 128)])
def test_shapes_of_prompts(batch, length):
    model = load_model(
        random_neox(context=128, layers=2), tokenizer=tiny_tokenizer(), dtype=torch.float32
    )
    contrast = contrast_of(batch, length, differ=(length // 2,))
    result = patch(model, contrast, sites=["resid_pre", "mlp_out"], memory=1.0)
    assert_as_hooks(model, contrast, result, some=length // 4, atol=1e-4)


def test_memory_changes_nothing_but_the_memory(kind):
    model, contrast = kind(dtype=torch.float64), contrast_of()
    for sites in (["resid_pre", "mlp_out"], ["z", "k"]):
        large = patch(model, contrast, sites=sites, positions="each")
        small = patch(model, contrast, sites=sites, positions="each", memory=1e-3)
        np.testing.assert_allclose(large.raw, small.raw, atol=1e-12, rtol=0)


def test_an_unreadable_model_is_patched_through_hooks(kind, monkeypatch):
    from mlp_interp.models import engine

    model, contrast = kind(dtype=torch.float64), contrast_of()
    fast = patch(model, contrast, sites=["z"], positions=[2, 6])
    monkeypatch.setattr(engine, "remembered", lambda model, work_out: None)
    slow = patch(model, contrast, sites=["z"], positions=[2, 6])
    assert (fast.engine, slow.engine) == ("lean", "hooks")
    np.testing.assert_allclose(fast.raw, slow.raw, atol=1e-6)


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("engine", ["auto", "hooks"])
def test_self_checks(kind, direction, engine):
    model, contrast = kind(dtype=torch.float64), contrast_of()
    result = patch(model, contrast, direction=direction, engine=engine)
    assert result.check_everything < 1e-12
    assert result.check_nothing < 1e-12
    everything = patch(model, contrast, positions="all", layers=[0], engine=engine)
    np.testing.assert_allclose(everything.normalized, 1)


def test_positions_before_the_first_difference_change_nothing(kind):
    contrast = contrast_of(differ=(3,))
    result = patch(kind(), contrast, sites=["resid_pre", "attn_out", "mlp_out"])
    before = result.sel(pos=[0, 1, 2])
    assert not before.changed.any()
    assert (before.raw == result.corrupted).all()
    assert result.sel(pos=3, site="resid_pre").changed.all()


def test_normalized_is_zero_for_corrupted_and_one_for_clean(kind):
    result = patch(kind(dtype=torch.float64), contrast_of(), positions="all")
    expected = (result.raw - result.corrupted) / (result.clean - result.corrupted)
    np.testing.assert_allclose(result.normalized, expected)
    assert result.raw.attrs["unit"] == "logits"


@pytest.mark.parametrize("name", metrics.METRICS)
def test_every_metric_agrees_between_the_engines(kind, name):
    model, contrast = kind(dtype=torch.float64), contrast_of()
    fast = patch(model, contrast, name, sites=["mlp_out"])
    slow = patch(model, contrast, name, sites=["mlp_out"], engine="hooks")
    np.testing.assert_allclose(fast.raw, slow.raw, atol=1e-12)
    assert fast.raw.attrs["unit"] in ("logits", "nats", "probability")


def test_a_metric_may_read_earlier_positions(kind):
    model, contrast = kind(dtype=torch.float64), contrast_of()
    metric = metrics.logit_difference(contrast.answers, contrast.foils, position=3)
    result = patch(model, contrast, metric)
    slow = patch(model, contrast, metric, engine="hooks")
    np.testing.assert_allclose(result.raw, slow.raw, atol=1e-12)
    assert result.sizes["pos"] == contrast.length
    assert not result.changed.sel(pos=[4, 5, 6]).any()


@pytest.mark.parametrize("site", ["k", "v", "z", "pattern"])
def test_heads_by_position_with_a_metric_that_reads_earlier(kind, site):
    model, contrast = kind(dtype=torch.float64), contrast_of()
    metric = metrics.logit_difference(contrast.answers, contrast.foils, position=3)
    result = patch(model, contrast, metric, sites=site, positions="each")
    slow = patch(model, contrast, metric, sites=site, positions="each", engine="hooks")
    np.testing.assert_allclose(result.raw, slow.raw, atol=1e-12)


@pytest.mark.parametrize(
    "twice", [{"layers": [1, -2]}, {"heads": [0, 2, 0]}, {"sites": ["z", "z"]}]
)
def test_what_is_named_twice_is_refused(kind, twice):
    with pytest.raises(ValueError, match="each once"):
        patch(kind(), contrast_of(), **{"sites": ["z"], **twice})


def test_prompts_do_not_see_each_other(kind):
    model, contrast = kind(dtype=torch.float64), contrast_of(4)
    together = patch(model, contrast, sites=["z", "v"], positions="each")
    alone = patch(model, contrast[2], sites=["z", "v"], positions="each")
    np.testing.assert_allclose(together.raw.isel(prompt=[2]), alone.raw, atol=1e-12)


def test_result_says_what_it_is(nano):
    contrast = prompts.facts(nano, n=2, seed=0)
    result = patch(nano, contrast, sites=["attn_out", "mlp_out"])
    assert result.raw.dims == ("site", "layer", "pos", "prompt")
    assert result.attrs["model"] == "nano"
    assert result.attrs["task"] == "facts"
    assert result.attrs["direction"] == "denoising"
    assert result.clean_token.dims == ("prompt", "pos")
    assert list(result.answer.values) == contrast.answer_text
    assert isinstance(result, xr.Dataset)


def test_facts_localise_at_the_subject(nano):
    """A fact's subject decides at its own last token early on, and at the last token late."""
    contrast = prompts.facts(nano, n=16, seed=0)
    result = patch(nano, contrast).normalized.sel(site="resid_pre")
    prompt = xr.DataArray(np.arange(len(contrast)), dims="prompt")
    places = contrast.differs.numpy() * np.arange(contrast.length)
    subject = result.sel(pos=xr.DataArray(places.max(1), dims="prompt"), prompt=prompt)
    end = result.isel(pos=-1)
    assert (subject.mean("prompt") - end.mean("prompt")).values[0] > 0.8
    assert (subject.mean("prompt") - end.mean("prompt")).values[-1] < -0.8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sites": "resid_mid"}, r"sites=\['resid_mid'\] \(parallel blocks have no"),
        ({"sites": ["resid_pre", "z"]}, "of one of these kinds"),
        ({"sites": []}, r"sites=\[\]"),
        ({"direction": "sideways"}, "direction='sideways'; wanted 'denoising' or 'noising'"),
        ({"positions": [7]}, r"positions=\[7\]; wanted integers from -7 to 6"),
        ({"positions": []}, r"positions=\[\]"),
        ({"positions": "some"}, "positions='some'; wanted 'each' or 'all', or a list"),
        ({"layers": [3]}, r"layers=\[3\]; wanted integers from -3 to 2"),
        ({"sites": "z", "heads": [4]}, r"heads=\[4\]"),
        ({"layers": [True]}, r"layers=\[True\]; wanted integers"),
        ({"layers": [1, -2]}, r"layers=\[1, -2\]; wanted integers from -3 to 2, each once"),
        (
            {"metric": metrics.kl(positions=[-1, 6])},
            r"positions=\(-1, 6\) of 7, some of them twice",
        ),
        ({"sites": "z", "neurons": [4]}, r"neurons=\[4\]: sites=\['z'\] have no neurons"),
        ({"sites": "resid_pre", "window": 2}, "window=2"),
        ({"sites": "mlp_out", "window": 0}, "window=0"),
        ({"engine": "warp"}, "engine='warp'; wanted 'auto' or 'hooks'"),
        ({"memory": 0.0}, r"memory=0\.0"),
        (
            {"metric": "accuracy"},
            "metric='accuracy'; wanted a Metric, a function of logits, or one of logit_difference",
        ),
        (
            {"metric": metrics.kl(positions=[7])},
            r"reads positions=\(7,\); wanted some from -7 to 6",
        ),
        (
            {"metric": metrics.logit(torch.tensor([1, 2, 3]))},
            "names tokens for 3 prompts; wanted 2",
        ),
    ],
    ids=str,
)
def test_bad_input(kind, options, message):
    with pytest.raises(ValueError, match=message):
        unchecked(patch)(kind(), contrast_of(), **options)


def test_weights_that_are_not_numbers():
    model = load_model(random_neox(layers=2), tokenizer=tiny_tokenizer())
    model.blocks[0].mlp.b_out.data[3] = torch.nan
    with pytest.raises(ValueError, match="wanted a finite number: check_model says"):
        patch(model, contrast_of())


def test_an_exception_in_the_middle_leaves_no_trace(kind, monkeypatch):
    model = kind()
    calls = []

    def fails(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("in the middle")
        return real(*args, **kwargs)

    real = measuring.final_streams
    monkeypatch.setattr(measuring, "final_streams", fails)
    with pytest.raises(RuntimeError, match="in the middle"):
        patch(model, contrast_of(), memory=1e-3)
