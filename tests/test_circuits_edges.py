"""Edges: every score is its formula, and circuits are what is left when the others are cut."""

import numpy as np
import pytest
import torch
from contrasts import CASES, RAN, contrast_of, exactness
from random_models import KINDS, assert_same_state, state_of, unchecked
from reference_gradients import circuit_metric, difference, edge_scores

from mlp_interp import Contrast
from mlp_interp.circuits import edge_attribution, faithfulness
from mlp_interp.gradients import attribution_patch
from mlp_interp.interchange import Graph
from mlp_interp.metrics import Custom, logit_difference


def metric_of(contrast):
    return lambda x: difference(x, contrast.answers, contrast.foils)


@pytest.mark.parametrize(("architecture", "backend", "processing", "direction"), CASES)
def test_each_edge_is_change_times_gradient(
    kind, architecture, processing, backend, direction, engine
):
    model, contrast = kind(architecture, backend, processing, torch.float64), contrast_of(3, 9)
    found = edge_attribution(model, contrast, direction=direction, engine=engine)
    tokens = contrast.clean_tokens, contrast.corrupted_tokens
    where = tokens[direction == "denoising"]
    expected = edge_scores(model, *tokens, metric_of(contrast), where)
    assert found.attrs["engine"] == RAN[engine]
    edges = found.estimate.stack(edge=("sender", "receiver")).dropna("edge")
    assert {tuple(e) for e in edges.edge.values} == set(expected)
    atol = exactness(architecture, backend)
    for edge in edges.edge.values:
        np.testing.assert_allclose(edges.sel(edge=edge), expected[edge], atol=atol)


@pytest.mark.parametrize("architecture", ["parallel", "sequential", "gpt2"])
@pytest.mark.parametrize("steps", [1, 3])
def test_senders_sum_to_the_attribution_of_what_the_receiver_reads(
    kind, architecture, backend, steps
):
    """All readers of layer 0 and the stream around them; and the last stream into the logits."""
    model, contrast = kind(architecture, backend, "raw", torch.float64), contrast_of(3, 9)
    estimate = edge_attribution(model, contrast, steps=steps).estimate
    edges = estimate.sum("sender")
    nodes = attribution_patch(model, contrast, sites=["resid_pre", "z", "mlp_out"], steps=steps)
    streams = nodes.resid_pre.sum("pos")
    for layer in range(2):
        # In sequential blocks the MLP hears more than the stream before the block.
        if architecture == "parallel":
            readers = [r for r in edges.receiver.values if r.startswith((f"L{layer}", f"{layer}."))]
            assert len(readers) == 13
            direct = edges.sel(receiver=readers).sum("receiver")
            around = sum(
                estimate.sel(receiver=later).isel(sender=slice(0, 1 + 5 * layer)).sum("sender")
                for later in _later(edges.receiver.values, layer)
            )
            np.testing.assert_allclose(direct + around, streams.sel(layer=layer), atol=1e-10)
    sent = estimate.sum("receiver")
    for label, value in (
        ("L1H2", nodes.z.sel(layer=1, head=2).sum("pos")),
        ("1.mlp", nodes.mlp_out.sel(layer=1).sum("pos")),
        ("embed", streams.sel(layer=0)),
    ):
        np.testing.assert_allclose(sent.sel(sender=label), value, atol=1e-10)


def _later(receivers, layer):
    """Receivers after a block."""
    start = [r for r in receivers if r.startswith((f"L{layer}", f"{layer}."))][-1]
    return list(receivers)[list(receivers).index(start) + 1 :]


def test_steps_prompts_and_averages(kind, engine):
    model, contrast = kind("sequential"), contrast_of(3, 9)
    whole = edge_attribution(model, contrast, steps=3, engine=engine)
    for memory in (512.0, 0.05):
        averaged = edge_attribution(
            model, contrast, steps=3, per_prompt=False, memory=memory, engine=engine
        )
        assert averaged.estimate.dims == ("sender", "receiver")
        np.testing.assert_allclose(averaged.estimate, whole.estimate.mean("prompt"), atol=1e-6)
    assert whole.attrs["method"] == "EAP-IG"
    alone = edge_attribution(model, contrast[1], steps=3, engine=engine).estimate[..., 0]
    np.testing.assert_allclose(alone, whole.estimate[..., 1], atol=1e-6)


def test_many_steps_are_complete(kind, backend):
    model, contrast = kind("gpt2", backend, "folded", torch.float64), contrast_of(3, 9)
    found = edge_attribution(model, contrast, steps=40)
    total = found.estimate.sel(sender="embed").sum("receiver")
    np.testing.assert_allclose(total, found.clean - found.corrupted, atol=1e-6)


@pytest.mark.parametrize("parallel", [True, False])
def test_the_graph_knows_who_comes_first(parallel):
    graph = Graph(n_layers=2, n_heads=2, parallel=parallel)
    edges = {
        (s, r)
        for i, s in enumerate(graph.senders)
        for j, r in enumerate(graph.receivers)
        if graph.edges[i, j]
    }
    assert ("embed", "L0H0.q") in edges
    assert ("L0H1", "L1H0.v") in edges
    assert ("1.mlp", "logits") in edges
    assert (("L0H1", "0.mlp") in edges) is not parallel
    assert ("0.mlp", "0.mlp") not in edges
    assert ("0.mlp", "L0H0.k") not in edges
    assert ("L1H0", "1.mlp") not in edges or not parallel
    assert len(graph.receivers) == 2 * 7 + 1


@pytest.mark.parametrize(("architecture", "backend", "processing"), KINDS)
def test_circuits_are_runs_with_their_other_edges_cut(kind, architecture, processing, backend):
    model, contrast = kind(architecture, backend, processing, torch.float64), contrast_of(3, 9)
    edges = edge_attribution(model, contrast)
    found = faithfulness(model, contrast, edges=edges, fractions=[0.03, 0.2, 0.6])
    scores = edges.estimate.mean("prompt").stack(edge=("sender", "receiver")).dropna("edge")
    order = scores.edge.values[np.argsort(-abs(scores.values), kind="stable")]
    assert found.edges.values.tolist() == [round(f * len(order)) for f in (0.03, 0.2, 0.6)]
    for row, count in enumerate(found.edges.values):
        expected = circuit_metric(
            model,
            contrast.clean_tokens,
            contrast.corrupted_tokens,
            metric_of(contrast),
            set(order[:count]),
        )
        np.testing.assert_allclose(
            found.metric[row], expected, atol=exactness(architecture, backend)
        )
    gap = found.clean.mean() - found.corrupted.mean()
    share = (found.metric.mean("prompt") - found.corrupted.mean()) / gap
    np.testing.assert_allclose(found.faithfulness, share, atol=1e-10)


def test_all_edges_are_the_model_and_none_are_the_corrupted_run(model):
    contrast = contrast_of(3, 9)
    edges = edge_attribution(model, contrast)
    found = faithfulness(model, contrast, edges=edges, fractions=[0.0, 1.0])
    np.testing.assert_allclose(found.metric[0], found.corrupted, atol=1e-4)
    np.testing.assert_allclose(found.metric[1], found.clean, atol=1e-4)
    np.testing.assert_allclose(found.faithfulness, [0, 1], atol=1e-3)
    assert float(found.cpr) == pytest.approx(0.5, abs=1e-3)
    assert float(found.cmd) == pytest.approx(0.5, abs=1e-3)


def test_areas_under_and_beside_the_curve(kind):
    contrast = contrast_of(3, 9)
    edges = edge_attribution(kind(), contrast)
    fractions = [0.05, 0.1, 0.5]
    found = faithfulness(kind(), contrast, edges=edges, fractions=fractions)
    at = [0.0, *fractions, 1.0]
    height = [0.0, *found.faithfulness.values, 1.0]
    fine = np.linspace(0, 1, 200_001)
    curve = np.interp(fine, at, height)
    assert float(found.cpr) == pytest.approx(curve.mean(), abs=1e-4)
    assert float(found.cmd) == pytest.approx(abs(1 - curve).mean(), abs=1e-4)


def test_ranks_and_batches(kind):
    model, contrast = kind(), contrast_of(3, 9)
    edges = edge_attribution(model, contrast)
    whole = faithfulness(model, contrast, edges=edges)
    some = faithfulness(model, contrast, edges=edges.estimate, memory=0.5)
    np.testing.assert_allclose(some.metric, whole.metric, atol=1e-5)
    flipped = edges.estimate * -1
    absolute = faithfulness(model, contrast, edges=flipped, fractions=[0.1])
    np.testing.assert_allclose(absolute.metric, whole.metric.sel(fraction=[0.1]), atol=1e-5)
    signed = faithfulness(
        model, contrast, edges=abs(edges.estimate.mean("prompt")), fractions=[0.1], rank="signed"
    )
    np.testing.assert_allclose(signed.metric, absolute.metric, atol=1e-5)
    other = faithfulness(model, contrast, edges=flipped, fractions=[0.1], rank="signed")
    assert abs(other.metric - absolute.metric).max() > 1e-4


def test_metrics_at_earlier_positions(kind, backend):
    """What is read before the first difference, too."""
    model, contrast = kind("parallel", backend, "folded", torch.float64), contrast_of(3, 9)
    metric = logit_difference(contrast.answers, contrast.foils, position=5)
    edges = edge_attribution(model, contrast, metric)
    found = faithfulness(model, contrast, metric, edges=edges, fractions=[0.2])
    scores = edges.estimate.mean("prompt").stack(edge=("sender", "receiver")).dropna("edge")
    order = scores.edge.values[np.argsort(-abs(scores.values), kind="stable")]
    expected = circuit_metric(
        model,
        contrast.clean_tokens,
        contrast.corrupted_tokens,
        lambda x: difference(x, contrast.answers, contrast.foils, 5),
        set(order[: int(found.edges[0])]),
    )
    np.testing.assert_allclose(found.metric[0], expected, atol=1e-10)


def test_nothing_stays_on_the_model(kind, backend):
    model, contrast = kind("sequential", backend, "raw"), contrast_of(3, 9)
    before = state_of(model)
    edges = edge_attribution(model, contrast, steps=2)
    faithfulness(model, contrast, edges=edges, fractions=[0.1])
    calls = []

    def fails(logits, prompts):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("stop")
        return logits[:, 0, 0]

    for call in (
        lambda metric: edge_attribution(model, contrast, metric),
        lambda metric: faithfulness(model, contrast, metric, edges=edges, fractions=[0.1]),
    ):
        calls.clear()
        with pytest.raises(RuntimeError, match="stop"):
            call(Custom(name="fails", unit="", function=fails))
    assert_same_state(before, state_of(model))


def test_memory_does_not_decide_which_prompts_a_circuit_can_be_run_on(kind):
    """One prompt differs only after the position that is read: it has nothing to lose."""
    model = kind(dtype=torch.float64)
    clean = torch.randint(1, 300, (2, 7), generator=torch.Generator().manual_seed(0))
    corrupted = clean.clone()
    corrupted[0, 1] += 1
    corrupted[1, 5] -= 1
    contrast = Contrast(
        clean_tokens=clean,
        corrupted_tokens=corrupted,
        answers=torch.tensor([3, 4]),
        foils=torch.tensor([8, 9]),
    )
    metric = logit_difference(contrast.answers, contrast.foils, position=3)
    edges = edge_attribution(model, contrast, metric)
    large = faithfulness(model, contrast, metric, edges=edges, fractions=[0.1, 1.0])
    small = faithfulness(model, contrast, metric, edges=edges, fractions=[0.1, 1.0], memory=1e-4)
    np.testing.assert_allclose(large.faithfulness, small.faithfulness, atol=1e-10)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"direction": "up"}, "direction='up'; wanted 'denoising' or 'noising'"),
        ({"steps": 0}, "steps=0; wanted at least 1"),
        ({"memory": -1.0}, "memory=-1.0; wanted a number of MiB above 0"),
        ({"metric": "loss"}, "metric='loss'; wanted a Metric, a function of logits, or one of"),
    ],
)
def test_bad_arguments(kind, arguments, text):
    with pytest.raises(ValueError, match=text):
        unchecked(edge_attribution)(kind(), contrast_of(3, 9), **arguments)


def test_bad_arguments_of_faithfulness(kind):
    model, contrast = kind(), contrast_of(3, 9)
    edges = edge_attribution(model, contrast).estimate
    constant = Custom(name="same", unit="", function=lambda x, prompts: 0 * x[:, 0, 0] + 1)
    for wrong, text in (
        ({"fractions": []}, r"fractions=\[\]; wanted some from 0 to 1"),
        ({"fractions": [0.1, 1.1]}, "wanted some from 0 to 1"),
        ({"fractions": [float("nan")]}, "wanted some from 0 to 1"),
        ({"rank": "best"}, "rank='best'; wanted 'absolute' or 'signed'"),
        ({"edges": edges[1:]}, "do not belong to this model; wanted 16 senders and 40 receivers"),
        ({"edges": edges.drop_vars("sender")}, "do not belong to this model"),
        ({"edges": edges * np.nan}, "scores that are NaN or infinite; wanted a number for every"),
        ({"metric": constant}, "metric 'same' is 1.0 on average after clean and after corrupted"),
        ({"memory": 0.0}, "memory=0.0; wanted a number of MiB above 0"),
    ):
        with pytest.raises(ValueError, match=text):
            unchecked(faithfulness)(model, contrast, **{"edges": edges, **wrong})
    with pytest.raises(ValueError, match=r"by engine='hooks': .* wanted a model that has one"):
        faithfulness(model, contrast, edges=edges, engine="hooks")
