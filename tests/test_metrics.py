"""KL, loss and top-1 from logit changes, against their definitions in float64."""

import math

import pytest
import torch

from mlp_interp.metrics import LogitChange, excess, kl_from_change, rows_for
from mlp_interp.metrics.divergence import ENOUGH, excess_by_row
from mlp_interp.metrics.stream import BothNorms
from mlp_interp.models.norm import Norm
from mlp_interp.models.scan import scan
from mlp_interp.models.unembed import Unembed


def a_readout(d_model=16, d_vocab=200, spread=1.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    weight = spread * torch.randn(d_model, d_vocab, generator=generator, dtype=torch.float64)
    bias = torch.randn(d_vocab, generator=generator, dtype=torch.float64)
    return Unembed((weight - weight.mean(0)).to(dtype), bias.to(dtype), Norm("layer", 1e-5))


def by_definition(logits, delta):
    a = logits.double().log_softmax(-1)
    b = (logits.double() + delta.double()).log_softmax(-1)
    return (a.exp() * (a - b)).sum(-1)


def tiny_by_definition(logits, delta):
    """The same for tiny changes, where even float64 log-softmaxes cancel: exact moments."""
    p = logits.double().softmax(-1)
    t = delta.double() - (p * delta.double()).sum(-1, keepdim=True)
    series = sum(t**k / math.factorial(k) for k in range(2, 9))
    return torch.log1p((p * series).sum(-1))


@pytest.mark.parametrize("power", [-5, -4, -3, -2, -1, 0, 0.5, 1, 1.5, 1.8])
def test_kl_holds_from_1e_minus_10_to_50_nats(power):
    generator = torch.Generator().manual_seed(1)
    unembed, size = a_readout(), 10.0**power
    normalized = torch.randn(6, 16, generator=generator)
    change = size * torch.randn(5, 6, 16, generator=generator) / 4
    clean = LogitChange.of(unembed, normalized, torch.arange(6))
    found = clean.effects(change)
    wide = unembed.weight.double()
    logits = normalized.double() @ wide + unembed.bias.double()
    delta = change.double() @ wide
    expected = (tiny_by_definition if power < -1 else by_definition)(logits.expand_as(delta), delta)
    torch.testing.assert_close(found.kl.double(), expected, rtol=1e-3, atol=0)
    assert (found.kl >= 0).all()

    before = -logits.log_softmax(-1).expand_as(delta)[..., range(6), range(6)]
    after = -(logits + delta).log_softmax(-1)[..., range(6), range(6)]
    scale = float(delta.abs().max())
    torch.testing.assert_close(
        found.delta_loss.double(), after - before, rtol=1e-3, atol=1e-5 * scale
    )
    top = (logits.argmax(-1) != (logits + delta).argmax(-1)).float()
    assert torch.equal(found.top1_changed, top)


def test_the_sizes_above_cover_what_they_should():
    """The parametrisation reaches from below 1e-10 to beyond 50 nats, and changes top tokens."""
    unembed = a_readout()
    generator = torch.Generator().manual_seed(1)
    normalized = torch.randn(6, 16, generator=generator)
    direction = torch.randn(5, 6, 16, generator=generator) / 4
    clean = LogitChange.of(unembed, normalized, torch.arange(6))
    assert clean.effects(1e-5 * direction).kl.max() < 1e-9
    largest = clean.effects(10**1.8 * direction)
    assert largest.kl.max() > 50
    assert 0 < largest.top1_changed.mean() <= 1
    assert clean.effects(direction).top1_changed.unique().tolist() == [0, 1]


def test_kl_of_no_change_is_nothing():
    clean = LogitChange.of(
        a_readout(), torch.randn(3, 16, generator=torch.Generator()), torch.ones(3).long()
    )
    found = clean.effects(torch.zeros(2, 3, 16))
    assert torch.equal(found.kl, torch.zeros(2, 3))
    assert found.delta_loss.abs().max() == 0
    assert found.top1_changed.sum() == 0


@pytest.mark.parametrize("size", [50.0, 90.0, 200.0, 1000.0])
def test_changes_beyond_the_range_of_exp_are_right(size):
    """exp(t) overflows float32 at 88: such rows are computed in the log domain."""
    generator = torch.Generator().manual_seed(2)
    logits = 3 * torch.randn(4, 50, generator=generator)
    delta = size * torch.rand(4, 50, generator=generator) - size / 2
    p = logits.softmax(-1)
    found = kl_from_change(p, delta - (p * delta).sum(-1, keepdim=True))
    torch.testing.assert_close(found.double(), by_definition(logits, delta), rtol=1e-4, atol=0)


@pytest.mark.parametrize("size", [3e-6, 6e-5, 2e-4, 1e-3])
def test_a_long_unlikely_direction_does_not_spoil_small_changes(size):
    """Bounds on the change are then large, and the formula for large changes would cancel."""
    weight = torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 3000.0]])
    unembed = Unembed(weight, torch.tensor([0.0, 0.0, -30.0]), Norm("layer", 1e-5))
    clean = LogitChange.of(unembed, torch.zeros(1, 2), torch.tensor([0]))
    for i in range(40):
        a = size * (1 + i / 40)
        found = clean.effects(torch.tensor([[a, 0.0]])).kl
        expected = tiny_by_definition(clean.logits, torch.tensor([[a, -a, 0.0]]))
        torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=0)


def test_a_clean_probability_below_floats_range_is_not_lost():
    """A token at exp(-150) rises by 200 nats: its probability is 0 in float32, not its logit."""
    weight = torch.zeros(2, 3)
    weight[0] = torch.tensor([150.0, 0.0, 140.0])
    weight[1] = torch.tensor([0.0, 1.0, 0.0])
    unembed = Unembed(weight, torch.zeros(3), Norm("layer", 0.0))
    clean = LogitChange.of(unembed, torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    assert clean.p[0, 1] == 0
    for rise in (100.0, 145.0, 200.0):
        delta = torch.tensor([[0.0, rise, 0.0]])
        expected = by_definition(clean.logits, delta)
        found = clean.effects(torch.tensor([[0.0, rise]]))
        torch.testing.assert_close(found.kl.double(), expected, rtol=1e-4, atol=1e-6)
        loss = clean.logits.log_softmax(-1) - (clean.logits + delta).log_softmax(-1)
        torch.testing.assert_close(found.delta_loss, loss[:, 1], rtol=1e-4, atol=1e-4)


def test_excess_mixes_small_and_large():
    t = torch.tensor([-40.0, -1.0, -0.03, -1e-4, 0.0, 1e-6, 0.029, 0.031, 2.0, 20.0])
    wide = t.double()
    expected = torch.where(wide.abs() < 1e-2, wide**2 / 2 + wide**3 / 6, torch.expm1(wide) - wide)
    torch.testing.assert_close(excess(t).double(), expected, rtol=1e-5, atol=0)


def test_the_naive_formula_fails_where_ours_holds():
    """Why there is a formula at all: float32 log-softmaxes lose a KL of 1e-9."""
    unembed = a_readout()
    generator = torch.Generator().manual_seed(3)
    normalized = torch.randn(40, 16, generator=generator)
    change = 3e-6 * torch.randn(40, 16, generator=generator)
    clean = LogitChange.of(unembed, normalized, torch.zeros(40).long())
    a = clean.logits.log_softmax(-1)
    naive = (a.exp() * (a - (clean.logits + change @ unembed.weight).log_softmax(-1))).sum(-1)
    assert (naive < 0).any()


def test_clean_loss_is_the_negative_log_probability():
    unembed = a_readout()
    normalized = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    clean = LogitChange.of(unembed, normalized, torch.tensor([5, -1, 199]))
    expected = -(normalized @ unembed.weight + unembed.bias).log_softmax(-1)
    assert clean.loss()[0] == pytest.approx(expected[0, 5].item())
    assert clean.loss()[1].isnan()
    assert clean.loss()[2] == pytest.approx(expected[2, 199].item())


def test_unknown_next_tokens_have_no_loss():
    unembed = a_readout()
    clean = LogitChange.of(unembed, torch.zeros(2, 16), torch.tensor([-1, 3]))
    found = clean.effects(torch.ones(2, 16))
    assert found.delta_loss.isnan().tolist() == [True, False]
    assert found.kl.isfinite().all()


def test_one_row_agrees_with_many():
    unembed = a_readout()
    generator = torch.Generator().manual_seed(4)
    clean = LogitChange.of(
        unembed, torch.randn(3, 16, generator=generator), torch.tensor([1, -1, 7])
    )
    change = torch.randn(5, 3, 16, generator=generator)
    whole = clean.effects(change)
    for row in range(3):
        one = clean.row(row).effects(change[:, row, None])
        for a, b in zip(one, whole, strict=True):
            torch.testing.assert_close(a[:, 0], b[:, row], equal_nan=True)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.96, 1.0])
def test_large_effects_take_the_cheap_formula_and_small_ones_do_not(share, monkeypatch):
    """Row by row, from where the vocabulary's first blocks tell; both to their accuracy."""
    unembed = a_readout(d_vocab=5000, spread=0.25)
    unembed.weight[:, -1] *= 60  # so that the bound on what changes tells nothing
    unembed.bias[-1] = -400
    generator = torch.Generator().manual_seed(2)
    normalized = torch.randn(40, 16, generator=generator)
    large = torch.rand(3, 40, generator=generator).argsort(-1).argsort(-1) < share * 40
    size = torch.where(large, 0.2, 1e-3) * (1 + torch.rand(3, 40, generator=generator))
    change = size[..., None] * torch.randn(3, 40, 16, generator=generator)
    clean = LogitChange.of(unembed, normalized, torch.zeros(40, dtype=torch.int64))
    taken: list[int] = []
    exp = torch.exp
    monkeypatch.setattr(torch, "exp", lambda x: taken.append(x.numel()) or exp(x))
    found = [
        clean.effects(change).kl,
        clean.kl(change.flatten(0, 1), torch.arange(40).repeat(3)).view(3, 40),
    ]
    blocks = 5  # whose first tells of nothing yet
    assert len(taken) == (2 * (blocks - 1) if share > 0.9 else 0)
    wide = unembed.weight.double()
    logits, delta = normalized.double() @ wide + unembed.bias.double(), change.double() @ wide
    expected = torch.where(large, by_definition(logits, delta), tiny_by_definition(logits, delta))
    assert (expected[~large] < ENOUGH).all()
    assert (expected[large] > 10 * ENOUGH).all()
    for kl in found:
        torch.testing.assert_close(kl.double(), expected, rtol=2e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_half_precision_takes_no_cheap_formula(dtype):
    """One of its entries would be off by 0.4%."""
    t = torch.linspace(-0.3, 0.3, 64, dtype=dtype).view(1, 64)
    exact = torch.expm1(t) - t
    found = excess_by_row(t, torch.ones(1, dtype=dtype), torch.ones(1, dtype=dtype))
    assert torch.equal(found, exact) == (dtype in (torch.bfloat16, torch.float16))
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", ["layer", "rms", "none"])
@pytest.mark.parametrize("size", [1e-4, 1e-2, 0.3])
def test_both_norms_come_from_one_product(kind, size):
    """As each by itself, however small the change; from logits in float64, too."""
    unembed = a_readout()
    unembed = Unembed(unembed.weight, unembed.bias, Norm(kind, 1e-5))
    generator = torch.Generator().manual_seed(5)
    total = unembed.norm.keep(3 * torch.randn(6, 16, generator=generator))
    removed = unembed.norm.keep(size * torch.randn(4, 6, 16, generator=generator))
    removed[0, 0] = 0
    removed[1, 1] = size * total[1]  # along the stream: nothing is left of it but eps
    clean = LogitChange.of(unembed, unembed.normalize(total), torch.arange(6))
    changes = BothNorms.of(unembed, total, removed)
    found = clean.effects_by_norm(changes)
    for both, change in zip(found, (changes.recomputed, changes.frozen), strict=True):
        alone = clean.effects(change)
        torch.testing.assert_close(both.kl, alone.kl, rtol=1e-3, atol=1e-12)
        torch.testing.assert_close(both.delta_loss, alone.delta_loss, rtol=1e-4, atol=1e-6)
        if both is found[0]:
            assert torch.equal(both.top1_changed, alone.top1_changed)
        assert torch.equal(both.kl, clean.effects(change, top=False).kl) or both is found[0]
    assert found[1].top1_changed.isnan().all()  # of which nobody asks
    wide, bias = unembed.weight.double(), unembed.bias.double()
    scale = unembed.scale(total.double())
    left = total.double() - removed.double()
    for kl, divisor in zip((x.kl for x in found), (unembed.scale(left), scale), strict=True):
        logits = total.double() / scale @ wide + bias
        expected = by_definition(logits, left / divisor @ wide + bias - logits)
        torch.testing.assert_close(kl.double(), expected, rtol=2e-3, atol=1e-11)


def test_a_scan_is_the_whole_product(monkeypatch):
    monkeypatch.setattr("mlp_interp.models.scan._ROWS", 7)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 3000, generator=generator)
    vectors = torch.randn(7, 3, 5, generator=generator)
    offset = torch.randn(7, 3, generator=generator)
    found = torch.full((7, 3, 3000), torch.nan)
    for tokens, products in scan(weight, vectors, offset):
        for some, product in products:
            found[some, :, tokens] = product
            product.zero_()  # may be overwritten
    torch.testing.assert_close(found, vectors @ weight + offset[..., None])


def test_a_distribution_is_built_in_blocks():
    unembed = a_readout(d_vocab=2500)
    normalized = torch.randn(4, 16, generator=torch.Generator().manual_seed(1))
    clean = LogitChange.of(unembed, normalized, torch.arange(4))
    logits = normalized @ unembed.weight + unembed.bias
    torch.testing.assert_close(clean.p, logits.softmax(-1))
    torch.testing.assert_close(clean.expected, logits.softmax(-1) @ unembed.weight.T)
    best = logits.topk(2).values
    assert torch.equal(clean.top, logits.argmax(-1))
    torch.testing.assert_close(clean.lead, best[:, 0] - best[:, 1])


def test_rows_hold_a_budget_of_logits():
    unembed = a_readout()
    assert rows_for(unembed, 1000) == 5
    assert rows_for(unembed, 1) == 1
