"""Attribution patching is its formula, and right where the metric is linear."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import xarray as xr
from contrasts import CASES, RAN, contrast_of, exactness
from random_models import BACKENDS, HAS_HOOKED, assert_same_state, build, state_of, unchecked
from reference_gradients import activations, attribution, difference
from scipy.stats import spearmanr

from mlp_interp import prompts
from mlp_interp.gradients import SITES, as_grid, attribution_patch, compare
from mlp_interp.metrics import Custom, Metric, kl, log_probability, logit_difference
from mlp_interp.patching import patch

HEADS = ("z", "q", "k", "v")
ENDS = {"denoising": [(0.0, 1.0)], "noising": [(1.0, 1.0)]}


def reduced(products, layers):
    """The reference's products in the layout of the results."""
    found = {}
    for (name, layer), product in products.items():
        if name in HEADS:
            value = product.sum(-1).permute(2, 1, 0)
        elif name == "pattern":
            value = product.sum(-1).permute(1, 2, 0)
        elif name in ("pre", "post"):
            value = product.sum(1).T
        else:
            value = product.sum(-1).T
        found.setdefault(name, [None] * layers)[layer] = value
    return {name: torch.stack(value) for name, value in found.items() if value[-1] is not None}


def expected(model, contrast, places, metric=None):
    tokens = contrast.clean_tokens, contrast.corrupted_tokens
    metric = metric or (lambda x: difference(x, contrast.answers, contrast.foils))
    products, clean, corrupted = attribution(model, *tokens, SITES, metric, places)
    return reduced(products, model.cfg.n_layers), clean, corrupted


def assert_estimates(found, reference, tolerance=1e-10):
    for name in SITES:
        assert found[name].shape == reference[name].shape, name
        np.testing.assert_allclose(
            found[name], reference[name].detach(), rtol=0, atol=tolerance, err_msg=name
        )


@pytest.mark.parametrize(("architecture", "backend", "processing", "direction"), CASES)
def test_estimates_are_changes_times_gradients(
    kind, architecture, processing, backend, direction, engine
):
    model, contrast = kind(architecture, backend, processing, torch.float64), contrast_of(3, 9)
    found = attribution_patch(model, contrast, sites=SITES, direction=direction, engine=engine)
    reference, clean, corrupted = expected(model, contrast, ENDS[direction])
    assert found.attrs["engine"] == RAN[engine]
    atol = exactness(architecture, backend)
    assert_estimates(found, reference, atol)
    np.testing.assert_allclose(found.clean, clean, atol=atol)
    np.testing.assert_allclose(found.corrupted, corrupted, atol=atol)


def test_every_kind_of_model_in_float32(model):
    contrast = contrast_of(3, 9)
    found = attribution_patch(model, contrast, sites=SITES)
    reference = expected(model, contrast, ENDS["denoising"])[0]
    assert_estimates(found, reference, 1e-4)


def test_integrated_gradients_average_over_the_path(kind, engine):
    model, contrast = kind("parallel", BACKENDS[0], "raw", torch.float64), contrast_of(3, 9)
    places, weights = np.polynomial.legendre.leggauss(4)
    path = [((1 + p) / 2, w / 2) for p, w in zip(places, weights, strict=True)]
    reference = expected(model, contrast, path)[0]
    # The second time a single prompt and step at a time.
    for direction, memory in (("denoising", 512.0), ("noising", 0.02)):
        found = attribution_patch(
            model, contrast, sites=SITES, steps=4, direction=direction, memory=memory, engine=engine
        )
        assert_estimates(found, reference)


@pytest.mark.parametrize("architecture", ["parallel", "sequential", "gpt2", "llama"])
def test_many_steps_are_complete_at_the_embedding(kind, architecture, backend):
    """Sundararajan's axiom: what the inputs get sums to the metric's whole change."""
    model, contrast = kind(architecture, backend, "folded", torch.float64), contrast_of(3, 9)
    found = attribution_patch(model, contrast, sites=["resid_pre"], steps=40)
    total = found.resid_pre.sel(layer=0).sum("pos")
    np.testing.assert_allclose(total, found.clean - found.corrupted, atol=1e-6)
    once = attribution_patch(model, contrast, sites=["resid_pre"])
    assert abs(once.resid_pre.sel(layer=0).sum("pos") - total).max() > 1e-3


def test_other_metrics_and_positions(kind, engine):
    model, contrast = kind("sequential", BACKENDS[0], "folded", torch.float64), contrast_of(3, 9)
    rows = torch.arange(3)

    def both(logits, prompts):
        return logits[:, 0].square().mean(-1) - logits[:, 2].log_softmax(-1)[:, 7] + logits[:, 1, 3]

    def kl_of(x):
        p = clean_logits[:, [0, 6]].log_softmax(-1)
        return (p.exp() * (p - x[:, [0, 6]].log_softmax(-1))).sum(-1).mean(-1)

    clean_logits = model(contrast.clean_tokens).detach()
    read = Custom(name="both", unit="", positions=(5, -3, 1), function=both)
    for metric, memory, reference in (
        (read, 0.02, lambda x: both(x[:, [5, 6, 1]], rows)),
        (
            logit_difference(contrast.answers, contrast.foils, position=3),
            512.0,
            lambda x: difference(x, contrast.answers, contrast.foils, 3),
        ),
        (
            log_probability(contrast.answers),
            512.0,
            lambda x: x[rows, -1].log_softmax(-1)[rows, contrast.answers],
        ),
        (kl(positions=(6, 0)), 0.02, kl_of),
    ):
        found = attribution_patch(
            model, contrast, metric, sites=SITES, memory=memory, engine=engine
        )
        assert_estimates(found, expected(model, contrast, ENDS["denoising"], reference)[0])


@dataclass(frozen=True, kw_only=True)
class Straight(Metric):
    """Linear in the final stream, with no LayerNorm: estimates of what writes to it are exact."""

    weight: torch.Tensor

    def reader(self, model, reference):
        return lambda streams, prompts: (streams * self.weight).sum((1, 2))


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_estimates_of_the_last_outputs_are_exact_for_a_linear_metric(kind, backend, direction):
    model, contrast = kind("parallel", backend, "folded", torch.float64), contrast_of(3, 9)
    weight = torch.randn(32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    metric = Straight(name="straight", unit="", positions=(-1,), weight=weight)
    found = attribution_patch(model, contrast, metric, sites=SITES, direction=direction)
    cells = {
        "attn_out": "hook_attn_out",
        "mlp_out": "hook_mlp_out",
        "z": "attn.hook_z",
        "v": "attn.hook_v",
        "post": "mlp.hook_post",
    }
    into, source = contrast.clean_tokens, contrast.corrupted_tokens
    if direction == "denoising":
        into, source = source, into
    with torch.no_grad():
        last = "blocks.2.hook_resid_post"
        cache = model.run_with_cache(source)[1]
        base = model.run_with_cache(into)[1][last][:, -1] @ weight
        for name, short in cells.items():
            hook = f"blocks.2.{short}"
            final = []
            model.run_with_hooks(
                into,
                return_type=None,
                fwd_hooks=[
                    (hook, lambda x, hook=None, new=cache[hook]: new.clone()),
                    (last, lambda x, hook=None, final=final: final.append(x[:, -1] @ weight)),
                ],
            )
            effect = (final[0] - base) * (1 if direction == "denoising" else -1)
            dims = [d for d in found[name].dims if d not in ("layer", "prompt")]
            np.testing.assert_allclose(found[name].sel(layer=2).sum(dims), effect, atol=1e-10)


def test_zero_as_baseline_is_activation_times_gradient(kind, backend, engine):
    model, contrast = kind("parallel", backend, "folded", torch.float64), contrast_of(3, 9)
    found = attribution_patch(
        model, contrast, sites=SITES, direction="noising", baseline="zero", engine=engine
    )
    metric = lambda x: difference(x, contrast.answers, contrast.foils)
    acts, grads, _ = activations(model, contrast.clean_tokens, SITES, metric)
    reference = reduced({key: acts[key] * grads[key] for key in acts}, 3)
    assert_estimates(found, reference)


def test_neurons_keep_their_positions_on_request(kind, engine):
    model, contrast = kind(), contrast_of(3, 9)
    summed = attribution_patch(model, contrast, sites=["pre", "post"], engine=engine)
    found = attribution_patch(
        model, contrast, sites=["pre", "post"], neuron_positions=True, engine=engine
    )
    assert found.post.dims == ("layer", "neuron", "pos", "prompt")
    for name in ("pre", "post"):
        np.testing.assert_allclose(found[name].sum("pos"), summed[name], atol=1e-6)
        assert (found[name].sel(pos=[0, 1]) == 0).all()  # nothing differs there


def test_prompts_by_themselves_give_the_same(kind, engine):
    model, contrast = kind(), contrast_of(5, 9)
    together = attribution_patch(model, contrast, sites=SITES, engine=engine)
    for i in range(5):
        alone = attribution_patch(model, contrast[i], sites=SITES, engine=engine)
        for name in SITES:
            np.testing.assert_allclose(alone[name][..., 0], together[name][..., i], atol=1e-5)


def test_layout_and_attributes(kind):
    model, contrast = kind(), contrast_of(1, 9)
    found = attribution_patch(model, contrast, sites=["z", "mlp_out"])
    assert list(found.data_vars) == ["z", "mlp_out", "clean", "corrupted"]
    assert found.z.dims == ("layer", "head", "pos", "prompt")
    assert found.mlp_out.attrs["unit"] == "logits"
    assert found.attrs["direction"] == "denoising"
    assert found.token.dims == ("pos",)
    assert len(found.pos) == 9
    assert "token" not in attribution_patch(model, contrast_of(3, 9), sites=["z"]).coords


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_a_grid_has_the_layout_of_exact_patching(kind, direction):
    model, contrast = kind(), contrast_of(3, 9)
    found = attribution_patch(model, contrast, direction=direction)
    grid = as_grid(found, ["mlp_out", "attn_out"])
    assert grid.estimate.dims == ("site", "layer", "pos", "prompt")
    assert list(grid.site.values) == ["mlp_out", "attn_out"]
    effect = found.attn_out.sel(layer=1, prompt=2)
    cell = grid.sel(site="attn_out", layer=1, prompt=2)
    base = found.corrupted if direction == "denoising" else found.clean
    sign = 1 if direction == "denoising" else -1
    np.testing.assert_allclose(cell.raw, base.sel(prompt=2) + sign * effect, rtol=1e-5)
    gap = (found.clean - found.corrupted).sel(prompt=2)
    np.testing.assert_allclose(
        cell.normalized, (cell.raw - found.corrupted.sel(prompt=2)) / gap, rtol=1e-4
    )
    assert as_grid(found, "post").raw.dims == ("site", "layer", "neuron", "prompt")
    with pytest.raises(ValueError, match=r"sites=\['z', 'post'\] have different dimensions"):
        as_grid(found, ["z", "post"])
    for wrong in ([], ["pre"], ["clean"]):
        with pytest.raises(ValueError, match="wanted some of those estimated, resid_pre, attn_out"):
            as_grid(found, wrong)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"sites": ["nowhere"]}, r"sites=\['nowhere'\]; wanted some of resid_pre"),
        ({"sites": []}, r"sites=\[\]; wanted"),
        ({"direction": "up"}, "direction='up'; wanted 'denoising' or 'noising'"),
        ({"steps": 0}, "steps=0; wanted at least 1"),
        ({"steps": 1.5}, "steps=1.5; wanted an integer"),
        ({"memory": 0.0}, "memory=0.0; wanted a number of MiB above 0"),
        ({"baseline": "mean"}, "baseline='mean'; wanted 'corrupted' or 'zero'"),
        ({"baseline": "zero"}, "baseline='zero' with direction='denoising' and steps=1"),
        ({"baseline": "zero", "direction": "noising", "steps": 2}, "steps=2; wanted 'noising'"),
        ({"metric": "loss"}, "metric='loss'; wanted a Metric, a function of logits, or one of"),
        ({"metric": kl(positions=(9,))}, r"reads positions=\(9,\); wanted some from -9 to 8"),
        (
            {"metric": logit_difference(torch.tensor([1]), torch.tensor([2]))},
            "names tokens for 1 prompts; wanted 3",
        ),
        (
            {"metric": Custom(name="nan", unit="", function=lambda x, p: x[:, 0, 0] / 0 * 0)},
            "metric='nan' is nan after the clean prompt 0; wanted a finite number",
        ),
    ],
)
def test_bad_arguments(kind, arguments, text):
    with pytest.raises(ValueError, match=text):
        unchecked(attribution_patch)(kind(), contrast_of(3, 9), **arguments)


def test_weights_that_hold_nan_are_named(engine):
    model = build("parallel", BACKENDS[0], "folded")
    with torch.no_grad():
        model.blocks[1].mlp.W_out.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="metric='logit_difference' is nan after the clean prompt"):
        attribution_patch(model, contrast_of(3, 9), engine=engine)


def test_nothing_stays_on_the_model(kind, backend, engine):
    """Also when the metric fails in the middle of it, and whatever gradient mode is on."""
    model, contrast = kind("parallel", backend, "raw"), contrast_of(3, 9)
    before = state_of(model)
    calls = []

    def fails(logits, prompts):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("stop")
        return logits[:, 0, 0]

    with pytest.raises(RuntimeError, match="stop"):
        attribution_patch(
            model, contrast, Custom(name="fails", unit="", function=fails), engine=engine
        )
    attribution_patch(model, contrast, sites=SITES, steps=2, engine=engine)
    assert_same_state(before, state_of(model))
    with torch.no_grad():
        inside = attribution_patch(model, contrast, engine=engine)
        assert not torch.is_grad_enabled()
    xr.testing.assert_equal(inside, attribution_patch(model, contrast, engine=engine))


def test_hooks_and_weights_of_the_moment_count(backend):
    """What is remembered of a model does not outlive hooks, nor changes of its weights."""
    model, contrast = build("parallel", backend, "folded"), contrast_of(3, 9)
    found = attribution_patch(model, contrast)
    model.blocks[0].mlp.W_out.data[:10] *= 2
    changed = attribution_patch(model, contrast)
    assert changed.attrs["engine"] == "lean"
    assert abs(changed.clean - found.clean).max() > 1e-3
    if not HAS_HOOKED or backend == "bridge":
        return
    model.add_hook("blocks.1.hook_mlp_out", lambda x, hook=None: 0.5 * x, is_permanent=True)
    steered = attribution_patch(model, contrast)
    assert steered.attrs["engine"] == "hooks"
    with torch.no_grad():
        logits = model(contrast.clean_tokens)
    np.testing.assert_allclose(
        steered.clean, difference(logits, contrast.answers, contrast.foils), atol=1e-4
    )


def patched(model, contrast, site, direction="denoising"):
    """Exact patching of a stream site, cell by cell, in the layout of `patch`."""
    into, source = contrast.clean_tokens, contrast.corrupted_tokens
    if direction == "denoising":
        into, source = source, into
    metric = lambda x: difference(x, contrast.answers, contrast.foils)
    raw = np.zeros((1, model.cfg.n_layers, contrast.length, len(contrast)), np.float32)
    with torch.no_grad():
        cache = model.run_with_cache(source)[1]
        for layer in range(model.cfg.n_layers):
            name = f"blocks.{layer}.hook_{site}"
            for pos in range(contrast.length):

                def put(x, hook=None, name=name, pos=pos):
                    x = x.clone()
                    x[:, pos] = cache[name][:, pos]
                    return x

                raw[0, layer, pos] = metric(model.run_with_hooks(into, fwd_hooks=[(name, put)]))
        ends = [metric(model(x)) for x in (contrast.clean_tokens, contrast.corrupted_tokens)]
    return xr.Dataset(
        {
            "raw": (("site", "layer", "pos", "prompt"), raw),
            "clean": ("prompt", ends[0].numpy()),
            "corrupted": ("prompt", ends[1].numpy()),
        },
        coords={
            "site": [site],
            "layer": np.arange(model.cfg.n_layers),
            "pos": np.arange(contrast.length),
            "prompt": np.arange(len(contrast)),
        },
        attrs={"direction": direction},
    )


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_compare_says_how_wrong_estimates_are(kind, direction):
    model, contrast = kind(), contrast_of(3, 9)
    exact = patched(model, contrast, "mlp_out", direction)
    estimate = attribution_patch(model, contrast, direction=direction)
    found = compare(exact, estimate, worst=3)
    assert found.pearson.dims == ("site", "layer")
    sign = 1 if direction == "denoising" else -1
    base = exact.corrupted if direction == "denoising" else exact.clean
    true = (sign * (exact.raw - base)).sel(site="mlp_out")
    np.testing.assert_allclose(found.exact.sel(site="mlp_out"), true, atol=1e-6)
    a, b = true.sel(layer=1).values.ravel(), estimate.mlp_out.sel(layer=1).values.ravel()
    cell = found.sel(site="mlp_out", layer=1)
    assert float(cell.pearson) == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-6)
    assert float(cell.spearman) == pytest.approx(spearmanr(a, b).statistic, abs=1e-6)
    counts = abs(a) > 1e-3 * float(abs(true).max())
    assert float(cell.sign_agreement) == pytest.approx((a * b > 0)[counts].mean())
    assert float(cell.slope) == pytest.approx(a @ b / (a @ a), rel=1e-5)
    assert float(cell.error) == pytest.approx(
        np.sqrt(((a - b) ** 2).mean() / (a**2).mean()), rel=1e-5
    )
    off = abs(found.estimate - found.exact)
    assert float(abs(found.worst_estimate - found.worst_exact)[0]) == pytest.approx(
        float(off.max())
    )
    layer, pos, prompt = (int(np.where(off == off.max())[i][0]) for i in (1, 2, 3))
    assert found.worst.values[0] == f"mlp_out layer {layer} pos {pos} prompt {prompt}"
    assert len(found.worst) == 3


def test_compare_sums_positions_that_were_patched_together(kind):
    contrast = contrast_of(3, 9)
    estimate = attribution_patch(kind(), contrast)
    grid = as_grid(estimate, "z")
    together = grid[["raw"]].isel(pos=0, drop=True)
    together["raw"] = estimate.corrupted + grid.estimate.sum("pos")
    exact = together.assign(clean=grid.clean, corrupted=grid.corrupted).assign_attrs(grid.attrs)
    found = compare(exact, estimate)
    np.testing.assert_allclose(found.pearson, 1, atol=1e-5)
    np.testing.assert_allclose(found.slope, 1, atol=1e-4)
    np.testing.assert_allclose(found.error, 0, atol=1e-3)


@pytest.mark.parametrize(
    "chosen",
    [
        {"sites": "z", "heads": [3, 1]},
        {"sites": "post", "neurons": [7, 0], "layers": [2, 0]},
        {"sites": "mlp_out", "positions": [4, 2]},
    ],
    ids=str,
)
def test_compare_takes_the_cells_that_were_patched(kind, chosen):
    model, contrast = kind(dtype=torch.float64), contrast_of(3, 9)
    exact = patch(model, contrast, **chosen)
    found = compare(exact, attribution_patch(model, contrast))
    true = exact.raw - exact.corrupted
    np.testing.assert_allclose(found.exact.transpose(*true.dims), true)
    whole = compare(
        patch(model, contrast, sites=chosen["sites"]), attribution_patch(model, contrast)
    )
    labels = {dim: found.estimate[dim] for dim in found.estimate.dims}
    np.testing.assert_allclose(found.estimate, whole.estimate.sel(labels))


def test_estimates_are_good_late_and_poor_for_early_streams_and_the_first_mlp(nano):
    """The published finding, on a task that the shipped model solves; and what mends it."""
    contrast = prompts.ioi(nano, n=16, seed=0)
    sites = ["resid_pre", "mlp_out", "z"]
    estimate = attribution_patch(nano, contrast, sites=sites)
    mended = attribution_patch(nano, contrast, sites=["resid_pre"], steps=8)
    found = {
        site: compare(patch(nano, contrast, sites=site), estimate).isel(site=0) for site in sites
    }
    for site, early in (("resid_pre", 0.6), ("mlp_out", 0.6), ("z", 0.45)):
        errors = found[site].error
        assert (errors.diff("layer") < 0).all(), site
        assert errors[0] > early, site
        assert found[site].pearson[0] < found[site].pearson[-1], site
    # Heads of the last layer above all; the first MLP is the worst of all sites.
    assert found["z"].error[-1] < 0.1
    assert found["z"].pearson[-1] > 0.995
    assert found["mlp_out"].pearson[-1] > 0.99
    worst = min(float(found[site].pearson.min()) for site in sites)
    assert worst == float(found["mlp_out"].pearson[0]) < 0.9
    again = compare(patch(nano, contrast), mended)
    assert again.error.sel(site="resid_pre", layer=0) < 0.05


def test_bad_arguments_of_compare(kind):
    contrast = contrast_of(3, 9)
    estimate = attribution_patch(kind(), contrast)
    exact = as_grid(estimate, "mlp_out")
    for wrong, text in (
        ({"worst": 0}, "worst=0; wanted at least 1"),
        ({"negligible": 1.0}, r"negligible=1.0; wanted a share"),
        ({"exact": exact.assign_attrs(window=3)}, "exact patched windows of 3 layers"),
        ({"exact": exact.drop_vars("raw")}, "wanted raw, clean, corrupted"),
        ({"exact": exact.assign_attrs(direction="noising")}, "direction='noising' and estimate"),
        ({"exact": exact.assign(raw=exact.raw * np.nan)}, "exact holds NaN or infinite"),
        ({"exact": exact.assign(clean=exact.clean + 1)}, "wanted the same prompts and metric"),
        ({"exact": exact.assign_coords(pos=exact.pos + 5)}, "estimate lacks cells"),
        ({"estimate": as_grid(estimate, "z")}, "lacks 'head'"),
        ({"estimate": as_grid(estimate, "attn_out")}, "estimate lacks cells"),
    ):
        with pytest.raises(ValueError, match=text):
            compare(**{"exact": exact, "estimate": estimate, **wrong})


def test_no_graph_stays_on_the_model(engine):
    for backend in BACKENDS:
        model = build("parallel", backend, "folded")
        attribution_patch(model, contrast_of(3, 9), engine=engine)
        kept = [x for m in model.modules() for x in vars(m).values() if isinstance(x, torch.Tensor)]
        assert not [x.shape for x in kept if x.grad_fn is not None]
