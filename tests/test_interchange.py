"""What all analyses of two runs share: clean and corrupted values, attrs, coordinates, runs."""

from functools import partial

import numpy as np
import pytest
import torch
import xarray as xr
from contrasts import contrast_of
from random_models import unchecked

import mlp_interp as mi
from mlp_interp.interchange import Graph
from mlp_interp.interchange.graph import reads_at, writers, writes_at
from mlp_interp.runs import run

RECEIVERS = ["L2H1.q", "2.mlp"]


def analyses(model, contrast, **options):
    """Every analysis of a contrast, each with what only it needs."""
    edges = mi.edge_attribution(model, contrast)
    return {
        "patch": partial(mi.patch, model, contrast, sites=["z"], **options),
        "attribution_patch": partial(mi.attribution_patch, model, contrast, **options),
        "edge_attribution": partial(mi.edge_attribution, model, contrast, **options),
        "path_patch": partial(mi.path_patch, model, contrast, receivers=RECEIVERS, **options),
        "faithfulness": partial(mi.faithfulness, model, contrast, edges=edges, **options),
        "evaluate_hypothesis": partial(
            mi.evaluate_hypothesis, model, contrast, nodes=["L1H2", "2.mlp"], draws=2, **options
        ),
    }


@pytest.mark.parametrize("metric", ["logit_difference", "kl"])
def test_one_contrast_is_the_same_in_every_analysis(kind, backend, metric):
    model, contrast = kind("parallel", backend), contrast_of(3)
    found = {name: do(metric=metric) for name, do in analyses(model, contrast).items()}
    first = found["patch"]
    shared = ("metric", "unit", "engine", "model", "processing", "data", "task")
    for name, result in found.items():
        for side in ("clean", "corrupted"):
            np.testing.assert_allclose(result[side], first[side], atol=1e-5, err_msg=name)
            assert result[side].attrs["unit"] == first[side].attrs["unit"], name
        for coordinate in ("prompt", "answer", "foil"):
            xr.testing.assert_equal(result[coordinate].variable, first[coordinate].variable)
        assert {key: result.attrs[key] for key in shared} == {
            key: first.attrs[key] for key in shared
        }, name
        assert result.attrs["analysis"], name
        assert result.attrs["exact"] == int("approximation" not in result.attrs), name
        assert ("attribution" in name) == (result.attrs["exact"] == 0), name
        # Circuits mix the two runs: neither is changed into the other.
        mixed = name in ("faithfulness", "evaluate_hypothesis")
        assert result.attrs.get("direction") == (None if mixed else "denoising"), name


def test_heads_are_named_alike(kind):
    model, contrast = kind(), contrast_of()
    patched = mi.patch(model, contrast, sites=["z"])
    estimated = mi.attribution_patch(model, contrast, sites=["z"])
    paths = mi.path_patch(model, contrast)
    assert patched.component.dims == estimated.component.dims == ("layer", "head")
    xr.testing.assert_equal(patched.component.variable, estimated.component.variable)
    assert patched.component.values[2, 1] == "L2H1"
    assert {"L2H1", "0.mlp", "embed"} <= set(paths.component.values.tolist())


@pytest.mark.parametrize("made", ["caches", "runs"])
def test_runs_made_before_give_the_same(kind, backend, made):
    model, contrast = kind("parallel", backend), contrast_of(3)
    sides = contrast.clean_tokens, contrast.corrupted_tokens
    with torch.no_grad():
        runs = tuple(
            model.run_with_cache(tokens)[1] if made == "caches" else run(model, tokens)
            for tokens in sides
        )
    expected = analyses(model, contrast)
    for name, do in analyses(model, contrast, runs=runs).items():
        found, same = (
            result.drop_vars("normalized", errors="ignore") for result in (do(), expected[name]())
        )  # it divides by what may be next to nothing
        xr.testing.assert_allclose(found, same, rtol=1e-4, atol=1e-5)


def test_runs_that_do_not_fit_are_refused(kind):
    model, contrast = kind(), contrast_of()
    clean, corrupted = (run(model, x) for x in (contrast.clean_tokens, contrast.corrupted_tokens))
    edited = corrupted.edited([mi.Edit.set("1.mlp", 0.0)])
    with torch.no_grad():
        hooks = [("blocks.1.hook_mlp_out", lambda x, hook: 0 * x)]
        with model.hooks(fwd_hooks=hooks):
            steered = model.run_with_cache(contrast.corrupted_tokens)[1]
    few = run(model, contrast.clean_tokens, sites=())
    for runs, text in (
        ((corrupted, clean), r"runs\[0\] is of other tokens"),
        ((clean, edited), r"runs\[1\] has 1 edits in force"),
        ((clean, steered), r"runs\[1\] ends elsewhere than the model does"),
        ((clean,), r"runs=tuple; wanted the pair"),
        (clean, r"runs=Run; wanted the pair"),
        ((few, corrupted), r"the clean run lacks blocks.0.hook_mlp_out"),
    ):
        with pytest.raises(ValueError, match=text):
            unchecked(mi.patch)(model, contrast, sites=["mlp_out"], runs=runs)


def test_a_contrast_of_tokens_or_runs(nano):
    texts = ["The capital of France is", "The capital of Italy is"]
    expected = mi.Contrast.of(nano, *texts, " Paris", " Rome")
    sides = expected.clean_tokens, expected.corrupted_tokens
    with torch.no_grad():
        caches = [nano.run_with_cache(tokens)[1] for tokens in sides]
    for pair in (sides, [x[0] for x in sides], caches, [run(nano, x) for x in sides]):
        found = mi.Contrast.of(nano, *pair, " Paris", expected.foils)
        for name in ("clean_tokens", "corrupted_tokens", "answers", "foils"):
            assert torch.equal(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize("parallel", [True, False])
def test_edges_are_who_writes_before_whom_reads(parallel):
    graph = Graph(n_layers=2, n_heads=2, parallel=parallel)
    sites = writers(2, 2, "head")
    assert [site.label for site in sites] == graph.senders
    for j, label in enumerate(graph.receivers[:-1]):
        site = mi.Site.parse(label)
        when = reads_at(site.name, site.layer, parallel=parallel)
        assert graph.edges[:, j].tolist() == [writes_at(sender) < when for sender in sites]
