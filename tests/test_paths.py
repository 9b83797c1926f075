"""Path patching: its identities, both engines, its options, and its errors."""

import numpy as np
import pytest
import reference
import torch
from contrasts import contrast_of
from random_models import BACKENDS, HAS_HOOKED, unchecked
from reference_paths import EARLY, SETS, Slow, close

from mlp_interp import attribute_logits, metrics, patching, paths
from mlp_interp.models import forward_of
from mlp_interp.residual import cache_for


@pytest.mark.parametrize(("direction", "freeze"), [("denoising", "all"), ("noising", "attention")])
def test_all_senders_together_are_activation_patching(some_model, direction, freeze):
    model = some_model
    contrast = contrast_of()
    receivers = {"q": "L2H1.q", "mlp": "1.mlp", "neuron": "L1N7", "logits": "logits"}
    found = paths.path_patch(
        model, contrast, receivers=receivers, direction=direction, freeze=freeze
    )
    assert float(found.check_everything) < 1e-4
    assert float(found.check_nothing) < 1e-4
    options = {"direction": direction, "positions": "all"}
    plain = patching.patch(model, contrast, sites="q", layers=[2], heads=[1], **options)
    close(found.whole.sel(receiver="q"), plain.raw[0, 0, 0], atol=1e-4)
    plain = patching.patch(model, contrast, sites="mlp_out", layers=[1], **options)
    close(found.whole.sel(receiver="mlp"), plain.raw[0, 0], atol=1e-4)
    plain = patching.patch(model, contrast, sites="post", layers=[1], neurons=[7], **options)
    close(found.whole.sel(receiver="neuron"), plain.raw[0, 0, 0], atol=1e-4)
    other = found.clean if direction == "denoising" else found.corrupted
    close(found.whole.sel(receiver="logits"), other, atol=1e-4)


def test_direct_effects_on_logits_are_differences_of_attributions(kind, backend):
    """Times the LayerNorm's scale, of the run itself here, of the changed stream there."""
    model = kind("parallel", backend, "folded", torch.float64)
    contrast = contrast_of()
    found = paths.path_patch(model, contrast, receivers="logits")
    written, scales, finals = {}, {}, {}
    for name, tokens in (
        ("clean", contrast.clean_tokens),
        ("corrupted", contrast.corrupted_tokens),
    ):
        cache = cache_for(model, tokens, level="head")
        shares = attribute_logits(
            model, cache, contrast.answers, contrast.foils, level="head", positions=-1
        )
        full = reference.full_cache(model, tokens)
        finals[name] = reference.final_stream(model, full)[:, -1]
        scales[name] = reference.scale(model, finals[name])[:, 0].numpy()
        shares = shares.transpose("component", ...).squeeze()
        written[name] = shares * scales[name]
        written[name, "vectors"] = reference.vectors(model, full, "head")
    bias = (written["clean"] / scales["clean"]).sel(component="bias").values
    base = (found.corrupted.values - bias) * scales["corrupted"]
    for sender in ("L1H2", "2.mlp", "L2H0", "L0H3"):
        change = (written["clean"] - written["corrupted"]).sel(component=sender).values
        delta = written["clean", "vectors"][sender] - written["corrupted", "vectors"][sender]
        scale = reference.scale(model, finals["corrupted"] + delta[:, -1])[:, 0].numpy()
        close((found.raw.sel(sender=sender)[0] - bias) * scale - base, change)


def test_parts_sent_together_are_the_whole(kind):
    model = kind("sequential", BACKENDS[0], "raw", torch.float64)
    senders = {
        "0.attn": ["0.attn"],
        "heads": [f"L0H{head}" for head in range(4)],
        "0.mlp": ["0.mlp"],
        "neurons": [f"L0N{neuron}" for neuron in range(64)],
        "L0H2": ["L0H2"],
        "inputs": ["L0H2.q", "L0H2.k", "L0H2.v"],
    }
    for freeze in ("all", "attention"):
        found = paths.path_patch(
            model, contrast_of(), senders=senders, receivers=SETS["mixed"], freeze=freeze
        ).raw
        for one, other in (("0.attn", "heads"), ("0.mlp", "neurons"), ("L0H2", "inputs")):
            close(found.sel(sender=one), found.sel(sender=other))


@pytest.mark.parametrize("architecture", ["parallel", "sequential"])
def test_levels_are_those_that_write_before_receivers_read(kind, architecture):
    model, contrast = kind(architecture), contrast_of()
    found = paths.path_patch(model, contrast, senders="component", receivers="1.mlp")
    early = ["embed", "0.attn", "0.mlp"]
    assert list(found.sender.values) == early + ["1.attn"] * (architecture == "sequential")
    assert found.layer.values.tolist()[:3] == [-1, 0, 0]
    assert found.attrs["engine"] == "lean"
    edges = paths.path_patch(model, contrast, senders="head", receivers="head")
    assert list(edges.receiver.values[-2:]) == ["2.mlp", "logits"]
    assert edges.raw.dims == ("receiver", "sender", "prompt")
    silent = edges.sel(receiver="L1H0", sender="1.mlp")
    assert not silent.changed.any()
    close(silent.raw, edges.corrupted, atol=0)
    same = edges.sel(receiver="1.mlp", sender="L1H3").changed
    assert bool(same.all()) == (architecture == "sequential")
    one = paths.path_patch(model, contrast, senders="L0H1", receivers="L2H3")
    close(one.raw[0, 0], edges.raw.sel(receiver="L2H3", sender="L0H1"), atol=1e-5)


def test_where_nothing_differs_nothing_changes(kind):
    """Before the first differing token; of a part that the receivers do not hear."""
    model, contrast = kind("parallel"), contrast_of(differ=(3,))
    found = paths.path_patch(
        model, contrast, senders=["L0H1", "embed"], receivers=["2.attn"], positions="each"
    )
    assert found.raw.dims == ("receiver", "sender", "pos", "prompt")
    assert found.changed.sel(sender="embed")[0].any("prompt").values.tolist() == [
        position == 3 for position in range(7)
    ]
    assert not found.changed.sel(sender="L0H1", pos=[0, 1, 2]).any()
    close(found.raw.sel(pos=[0, 1, 2])[0, 0], np.broadcast_to(found.corrupted, (3, 2)), atol=0)
    found = paths.path_patch(
        model, contrast, senders=["embed"], receivers="2.attn", receiver_positions=[5, 6]
    )
    assert not found.changed.any()


@pytest.mark.parametrize(("architecture", "freeze"), [("parallel", "all"), ("gpt2", "attention")])
def test_the_model_itself_gives_the_same(kind, backend, architecture, freeze):
    model = kind(architecture, backend, "raw", torch.float64)
    options = {"senders": EARLY, "receivers": SETS, "freeze": freeze}
    lean = paths.path_patch(model, contrast_of(), **options)
    hooks = paths.path_patch(model, contrast_of(), engine="hooks", **options)
    assert (lean.engine, hooks.engine) == ("lean", "hooks")
    for name in ("raw", "whole", "changed"):
        close(hooks[name], lean[name])


@pytest.mark.skipif(not HAS_HOOKED, reason="the library builds such models no more")
@pytest.mark.parametrize(
    ("options", "engine"),
    [
        ({"act_fn": "silu", "gated_mlp": True}, "hooks"),
        ({"use_local_attn": True, "window_size": 3, "attn_types": ["global", "local"]}, "hooks"),
        ({"n_key_value_heads": 2}, "lean"),
    ],
    ids=["gated", "local", "grouped"],
)
def test_models_that_are_no_pythias(options, engine):
    model = _odd_model(**options)
    assert forward_of(model).engine == engine
    contrast = contrast_of()
    contrast = type(contrast)(
        clean_tokens=contrast.clean_tokens % 20,
        corrupted_tokens=(contrast.clean_tokens + torch.tensor([0, 1, 0, 2, 0, 0, 0])) % 20,
        answers=torch.tensor([1, 2]),
        foils=torch.tensor([3, 4]),
    )
    slow = Slow(model, contrast)
    receivers = {"q": ["L1H2.q"], "attention": ["1.attn"], "logits": ["logits"]}
    for freeze in ("all", "attention"):
        found = paths.path_patch(
            model, contrast, senders="head", receivers=receivers, freeze=freeze
        )
        assert found.attrs["engine"] == engine
        assert float(found.check_everything) < 1e-10
        for sender in ("embed", "L0H1", "0.mlp"):
            for name, chosen in receivers.items():
                expected = slow([sender], chosen, freeze)
                close(found.raw.sel(receiver=name, sender=sender), expected)
    if "n_key_value_heads" in options:
        shared = r"receivers='L1H2': the 4 heads of model='custom' share"
        with pytest.raises(ValueError, match=shared):
            paths.path_patch(model, contrast, senders="embed", receivers="L1H2")


def _odd_model(**options):
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    settings = {
        "n_layers": 2,
        "d_model": 16,
        "d_head": 4,
        "n_heads": 4,
        "d_mlp": 24,
        "n_ctx": 16,
        "d_vocab": 20,
        "act_fn": "gelu",
        "normalization_type": "LN",
        "dtype": torch.float64,
        "device": "cpu",
        "seed": None,
        "init_weights": False,
    }
    model = HookedTransformer(HookedTransformerConfig(**settings | options))
    draw = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=draw, dtype=torch.float64) * 0.4
    return model.eval()


def test_memory_only_sets_how_much_runs_together(kind):
    model, contrast = (
        kind("parallel", BACKENDS[0], "folded", torch.float64),
        contrast_of(5, differ=(1, 3)),
    )
    options = {"receivers": SETS["mixed"], "positions": [1, 3]}
    plenty = paths.path_patch(model, contrast, **options)
    little = paths.path_patch(model, contrast, memory=1e-3, **options)
    close(little.raw, plenty.raw)


@pytest.mark.parametrize("metric", ["kl", "probability", "log_probability"])
def test_other_metrics(kind, metric):
    model = kind("sequential", BACKENDS[0], "folded", torch.float64)
    contrast = contrast_of(differ=(1, 6))
    found = paths.path_patch(model, contrast, metric, senders="embed", receivers="logits")
    assert found.attrs["metric"] == metric
    assert found.changed.all()
    assert float(found.check_everything) < 1e-9
    close(found.whole[0], found.clean, atol=1e-9)
    assert float(np.abs(found.raw - found.corrupted).min()) > 1e-6


def test_metrics_that_read_earlier_positions_leave_later_ones_alone(kind):
    model = kind("parallel", BACKENDS[0], "folded", torch.float64)
    contrast = contrast_of(differ=(1, 3))
    metric = metrics.logit_difference(contrast.answers, contrast.foils, position=3)
    found = paths.path_patch(
        model, contrast, metric, senders=["embed", "0.mlp"], receivers="logits", positions="each"
    )
    assert found.changed.any(("receiver", "sender", "prompt")).values.nonzero()[0].tolist() == [3]
    assert float(found.check_everything) < 1e-10
    hears = paths.path_patch(
        model, contrast, metric, senders="embed", receivers="L2H0", receiver_positions=[3, 6]
    )
    assert hears.changed.all()


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"senders": ["L2H0"], "receivers": "L1H1.q"}, "senders='L2H0' writes after.*L1H1.q"),
        ({"senders": {"x": ["embed", "1.mlp"]}, "receivers": "1.mlp"}, "senders='1.mlp' writes"),
        ({"senders": 5}, "senders=5; wanted a label"),
        ({"receivers": [5]}, "receivers=5; wanted a label"),
        ({"senders": []}, r"senders=\[\] is empty; wanted labels such as embed"),
        ({"senders": {"x": []}}, "is empty at 'x'"),
        ({"receivers": []}, r"receivers=\[\] is empty"),
        ({"receivers": {}}, r"receivers=\{\} is empty"),
        (
            {"senders": "heads"},
            r"senders='heads' is not a component label \(did you mean 'head'\?\)",
        ),
        ({"senders": "logits"}, "senders='logits' is not a component label"),
        ({"senders": "3.resid_pre"}, "senders='3.resid_pre' writes nothing"),
        ({"senders": "0.b_O"}, "senders='0.b_O' writes nothing"),
        ({"receivers": "embed"}, "receivers='embed' reads nothing; wanted such as 3.attn"),
        ({"receivers": "L1H0.z"}, None),
        ({"receivers": "L1H0.pattern"}, "receivers='L1H0.pattern' reads nothing"),
        ({"receivers": "1.resid_post"}, "receivers='1.resid_post' reads nothing"),
        (
            {"receivers": "nobody"},
            "receivers='nobody' is not a component label; wanted 'component', 'head', 'logits'",
        ),
        ({"senders": "L3H0"}, "senders='L3H0'; wanted a layer from 0 to 2"),
        ({"receivers": "L1H4.q"}, "receivers='L1H4.q'; wanted a head from 0 to 3"),
        ({"senders": "L1N64"}, "senders='L1N64'; wanted a neuron from 0 to 63"),
        ({"direction": "both"}, "direction='both'; wanted 'denoising' or 'noising'"),
        ({"freeze": "mlps"}, "freeze='mlps'; wanted 'all' or 'attention'"),
        ({"engine": "lean"}, "engine='lean'; wanted 'auto' or 'hooks'"),
        ({"positions": "some"}, "positions='some'; wanted 'each' or 'all'"),
        ({"positions": [7]}, r"positions=\[7\]; wanted integers from -7 to 6"),
        ({"positions": []}, r"positions=\[\]; wanted at least one integer"),
        ({"receiver_positions": "each"}, "receiver_positions='each'; wanted 'all'"),
        ({"receiver_positions": [-8]}, r"receiver_positions=\[-8\]; wanted integers"),
        ({"memory": 0}, "memory=0; wanted a number of MiB above 0"),
        ({"metric": "loss"}, "metric='loss'"),
    ],
)
def test_errors(kind, options, text):
    model = kind("parallel")
    path_patch = unchecked(paths.path_patch)
    if text is None:
        path_patch(model, contrast_of(), **options)
        return
    with pytest.raises(ValueError, match=text):
        path_patch(model, contrast_of(), **options)


def test_nothing_is_left_behind_by_an_error_on_the_way(kind, backend, monkeypatch):
    model = kind("parallel", backend)
    calls = []

    def failing(*args, **kwargs):
        calls.append(1)
        raise RuntimeError("out of memory")

    monkeypatch.setattr("mlp_interp.paths.direct_paths.DirectPaths._run_on", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        paths.path_patch(model, contrast_of(), receivers="2.mlp", engine="hooks")
    assert calls  # and the fixture looks at the model


def test_weights_that_are_not_finite_are_said_so(kind):
    contrast = contrast_of()
    metric = metrics.Custom(
        name="broken", unit="logits", function=lambda logits, _: logits[:, 0, 0] * torch.nan
    )
    with pytest.raises(ValueError, match=r"metric='broken' is nan after the clean prompt 0"):
        paths.path_patch(kind("parallel"), contrast, metric)
