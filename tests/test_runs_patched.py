from dataclasses import replace

import pytest
import torch
from random_models import HAS_HOOKED, VOCABULARY, hooked

from mlp_interp.models import Forward
from mlp_interp.runs import Frozen, PatchedRun, Run, final_streams, finals, rows_in
from mlp_interp.runs.few_queries import FewQueries
from mlp_interp.sites import Site

LENGTH, READ = 7, [2, 6]


@pytest.fixture(params=["parallel", "sequential", "gpt2"])
def base(request, kind):
    model = kind(request.param, dtype=torch.float64)
    tokens = torch.randint(VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    return Run.record(Forward.of(model), tokens, attention=True)


def full_run(base, run):
    """The same by one full forward pass from the run's layer on."""
    stream = base.streams[run.layer][run.prompt, None].clone()
    stream[0, run.start : run.start + len(run.stream)] = run.stream

    def hold(name, layer, x):
        for one in run.frozen:
            if (one.name, one.layer) == (name, layer):
                x = x.clone()
                x[0, one.start : one.start + len(one.value)] = one.value
        return x

    return base.forward.run(stream, start=run.layer, observe=hold)[0, READ]


def some_runs(base, frozen=lambda layer, start, draw: ()):
    generator = torch.Generator().manual_seed(1)

    def draw(rows):
        width = base.streams[0].shape[-1]
        return torch.randn(rows, width, generator=generator, dtype=torch.float64)

    return [
        PatchedRun(prompt, layer, start, draw(changed), frozen(layer, start, draw))
        for layer in range(base.n_layers + 1)
        for start in range(LENGTH)
        for prompt in range(2)
        for changed in sorted({1, 2, LENGTH - start} & set(range(1, LENGTH - start + 1)))
    ]


def test_patched_runs_end_as_full_runs_do(base):
    runs = some_runs(base)
    expected = torch.stack([full_run(base, run) for run in runs])
    for rows in (1, 20, 10**6):
        found = final_streams(base, runs, READ, rows=rows)
        assert torch.allclose(found, expected, atol=1e-12, rtol=0), rows


@pytest.mark.skipif(not HAS_HOOKED, reason="built as HookedTransformer")
@pytest.mark.parametrize("parallel", [True, False])
def test_models_without_norms_are_patched(parallel):
    """What their MLPs read is the stream itself, not a copy that a norm made of it."""
    model = hooked(normalization_type=None, parallel_attn_mlp=parallel, n_layers=3).double()
    tokens = torch.randint(20, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    base = Run.record(Forward.of(model), tokens, attention=True)
    runs = some_runs(base)
    expected = torch.stack([full_run(base, run) for run in runs])
    error = (final_streams(base, runs, READ) - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert error.max() < 1e-12


@pytest.mark.parametrize("architecture", ["parallel", "sequential", "gpt2", "llama"])
@pytest.mark.parametrize("prompts", [1, 2])
@pytest.mark.parametrize("read", [[6], [4], [1, 2, 5]])
def test_few_queries_read_what_all_keys_and_values_hold(
    kind, architecture, prompts, read, monkeypatch
):
    raw = kind(architecture, processing="raw", dtype=torch.float64)  # values have biases
    tokens = torch.randint(VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    base = Run.record(Forward.of(raw), tokens[:prompts], attention=True)
    runs = [run for run in some_runs(base) if run.prompt < prompts]
    found, z, asked = [], FewQueries.z, []

    def counted(*args):
        asked.append(len(args))
        return z(*args)

    monkeypatch.setattr(FewQueries, "z", counted)
    for pay in (True, False):
        monkeypatch.setattr(FewQueries, "pay", lambda *_, pay=pay: pay)
        found.append(final_streams(base, runs, read, rows=20))
        assert bool(asked) == pay
        asked.clear()
    assert torch.allclose(*found, atol=1e-12, rtol=0)


def test_few_queries_pay_where_they_are_few(kind):
    parallel, llama = (Forward.of(kind(name)) for name in ("parallel", "llama"))
    assert [FewQueries.pay(parallel, 2, n) for n in (1, 2)] == [True, False]
    assert not FewQueries.pay(llama, 2, 1)  # half as many keys and values to spare
    normed = [replace(block, k_norm=torch.ones(8)) for block in parallel.blocks]
    assert not FewQueries.pay(Forward(parallel.weights, normed), 2, 1)


def test_patched_runs_hold_what_is_frozen(base):
    last = base.n_layers - 1

    def frozen(layer, start, draw):
        held = []
        if layer <= last:
            held.append(Frozen(layer, "mlp_out", start, draw(1)))
            held.append(Frozen(layer, "attn_out", start, draw(1)))
        if layer < last:
            held.append(Frozen(layer + 1, "attn_out", min(start + 1, LENGTH - 1), draw(1)))
            held.append(Frozen(last, "mlp_out", start, draw(LENGTH - start)))
        return tuple(held)

    runs = some_runs(base, frozen)
    expected = torch.stack([full_run(base, run) for run in runs])
    assert torch.allclose(final_streams(base, runs, READ), expected, atol=1e-12, rtol=0)


def test_an_output_frozen_beside_the_change_is_held_in_the_first_block_too(base):
    one = Frozen(0, "mlp_out", 4, torch.ones(1, base.streams[0].shape[-1], dtype=torch.float64))
    run = PatchedRun(0, 0, 1, -base.streams[0][0, 1:2], (one,))
    assert not run.narrow
    found = final_streams(base, [run], READ)[0]
    assert torch.allclose(found, full_run(base, run), atol=1e-12, rtol=0)


def test_a_patched_run_that_changes_nothing_ends_as_the_base_to_the_last_bit(base):
    layers = range(base.n_layers + 1)
    same = [PatchedRun(1, n, 3, base.streams[n][1, 3:4]) for n in layers]
    for run, final in zip(same, final_streams(base, same, [2]), strict=True):
        assert torch.equal(final[0], base.final[1, 2]), run.layer


def test_a_base_run_keeps_what_the_model_computes(kind):
    model = kind("parallel", dtype=torch.float64)
    tokens = torch.randint(VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    base = Run.record(
        Forward.of(model), tokens, sites=[Site("mlp_out", n) for n in range(3)], attention=True
    )
    _, cache = model.run_with_cache(tokens)
    for layer in range(base.n_layers):
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"]
        assert torch.allclose(base.pattern(layer), pattern, atol=1e-6)  # its rotary is in float32
        assert torch.allclose(
            base.attention(layer).z, cache[f"blocks.{layer}.attn.hook_z"], atol=1e-6
        )
    assert {site.label for site in base.kept} - {"embed"} == {"0.mlp", "1.mlp", "2.mlp"}


def test_rows_follow_the_memory(base):
    assert abs(rows_in(base, 64.0) - 2 * rows_in(base, 32.0)) <= 1
    assert rows_in(base, 1e-9) == 1


def test_a_patched_run_counts_for_the_keys_that_it_copies(base, monkeypatch):
    held = []

    class Counted(finals.Group):
        def __init__(self, base, runs, entries, read):
            held.append(len(runs))
            super().__init__(base, runs, entries, read)

    monkeypatch.setattr(finals, "Group", Counted)
    end = [PatchedRun(0, 0, LENGTH - 1, base.streams[0][0, -1:] + n) for n in range(40)]
    final_streams(base, end, [LENGTH - 1], rows=20)
    assert len(held) > 2 * 40 // 20
