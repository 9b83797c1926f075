import sys

import pytest
import torch
from random_models import VOCABULARY

from mlp_interp.models import Forward
from mlp_interp.runs import Branch, Pin, Trunk, grow, rows_in

LENGTH, READ = 7, [2, 6]
grow_module = sys.modules[
    "mlp_interp.runs.run_patched"
]  # the package's name `grow` is the function


@pytest.fixture(params=["parallel", "sequential", "gpt2"])
def trunk(request, kind):
    model = kind(request.param, dtype=torch.float64)
    tokens = torch.randint(VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    return Trunk.of(Forward.of(model), tokens, keep=["attn_out", "mlp_out"])


def full_run(trunk, branch):
    """The same by one full forward pass from the branch's layer on."""
    stream = trunk.streams[branch.layer][branch.prompt, None].clone()
    stream[0, branch.start : branch.start + len(branch.stream)] = branch.stream

    def hold(name, layer, x):
        for pin in branch.pins:
            if (pin.name, pin.layer) == (name, layer):
                x = x.clone()
                x[0, pin.start : pin.start + len(pin.value)] = pin.value
        return x

    return trunk.forward.run(stream, start=branch.layer, observe=hold)[0, READ]


def some_branches(trunk, pins=lambda layer, start, draw: ()):
    generator = torch.Generator().manual_seed(1)

    def draw(rows):
        width = trunk.streams[0].shape[-1]
        return torch.randn(rows, width, generator=generator, dtype=torch.float64)

    return [
        Branch(prompt, layer, start, draw(changed), pins(layer, start, draw))
        for layer in range(trunk.n_layers + 1)
        for start in range(LENGTH)
        for prompt in range(2)
        for changed in sorted({1, 2, LENGTH - start} & set(range(1, LENGTH - start + 1)))
    ]


@pytest.mark.parametrize("rows", [1, 20, 10**6])
def test_branches_end_as_full_runs_do(trunk, rows):
    branches = some_branches(trunk)
    expected = torch.stack([full_run(trunk, branch) for branch in branches])
    found = grow(trunk, branches, READ, rows=rows)
    assert torch.allclose(found, expected, atol=1e-12, rtol=0)


def test_branches_hold_what_is_pinned(trunk):
    last = trunk.n_layers - 1

    def pins(layer, start, draw):
        held = []
        if layer <= last:
            held.append(Pin(layer, "mlp_out", start, draw(1)))
        if layer < last:
            held.append(Pin(layer + 1, "attn_out", min(start + 1, LENGTH - 1), draw(1)))
            held.append(Pin(last, "mlp_out", start, draw(LENGTH - start)))
        return tuple(held)

    branches = some_branches(trunk, pins)
    expected = torch.stack([full_run(trunk, branch) for branch in branches])
    assert torch.allclose(grow(trunk, branches, READ), expected, atol=1e-12, rtol=0)


def test_an_output_pinned_beside_the_change_is_held_in_the_first_block_too(trunk):
    pin = Pin(0, "mlp_out", 4, torch.ones(1, trunk.streams[0].shape[-1], dtype=torch.float64))
    branch = Branch(0, 0, 1, -trunk.streams[0][0, 1:2], (pin,))
    assert not branch.narrow
    found = grow(trunk, [branch], READ)[0]
    assert torch.allclose(found, full_run(trunk, branch), atol=1e-12, rtol=0)


def test_a_branch_that_changes_nothing_ends_as_the_trunk_to_the_last_bit(trunk):
    layers = range(trunk.n_layers + 1)
    same = [Branch(1, n, 3, trunk.streams[n][1, 3:4]) for n in layers]
    for branch, final in zip(same, grow(trunk, same, [2]), strict=True):
        assert torch.equal(final[0], trunk.streams[-1][1, 2]), branch.layer


def test_trunk_keeps_what_the_model_computes(kind):
    model = kind("parallel", dtype=torch.float64)
    tokens = torch.randint(VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    trunk = Trunk.of(Forward.of(model), tokens, keep=["mlp_out"])
    _, cache = model.run_with_cache(tokens)
    for layer in range(trunk.n_layers):
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"]
        assert torch.allclose(trunk.pattern(layer), pattern, atol=1e-6)  # its rotary is in float32
        assert torch.allclose(trunk.z[layer], cache[f"blocks.{layer}.attn.hook_z"], atol=1e-6)
    assert {site.label for site in trunk.seen} == {"0.mlp", "1.mlp", "2.mlp"}


def test_rows_follow_the_memory(trunk):
    assert abs(rows_in(trunk, 64.0) - 2 * rows_in(trunk, 32.0)) <= 1
    assert rows_in(trunk, 1e-9) == 1


def test_a_branch_counts_for_the_keys_that_it_copies(trunk, monkeypatch):
    held = []

    class Counted(grow_module.Group):
        def __init__(self, trunk, branches, read):
            held.append(len(branches))
            super().__init__(trunk, branches, read)

    monkeypatch.setattr(grow_module, "Group", Counted)
    end = [Branch(0, 0, LENGTH - 1, trunk.streams[0][0, -1:] + n) for n in range(40)]
    grow(trunk, end, [LENGTH - 1], rows=20)
    assert len(held) > 2 * 40 // 20
