"""Checksums of weights: every entry and every place counts, on the CPU and elsewhere."""

import pytest
import torch

from mlp_interp.models._checksum import _mixed_sum, checksum


def elsewhere(x):
    """What a tensor on a GPU gives."""
    return _mixed_sum(x.contiguous().reshape(-1).view(torch.uint8))


@pytest.mark.parametrize("of", [checksum, elsewhere])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_entry_and_place_counts(of, dtype):
    x = torch.randn(7, 9, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[:, 4] = -x[:, 3]  # differ in one bit each, which sums of products may lose
    changed = [x.clone() for _ in range(x.numel())]
    for place, one in enumerate(changed):
        one.view(-1)[place] *= -1
    moved = [x[:, torch.randperm(9, generator=torch.Generator().manual_seed(n))] for n in range(30)]
    moved += [x[:, [0, 1, 2, 4, 3, 5, 6, 7, 8]], x[[1, 0, *range(2, 7)]], x.T.reshape(7, 9)]
    found = [of(y) for y in (x, *changed, *moved)]
    assert len({*found}) == len(found)
    assert of(x.clone()) == of(x.T.contiguous().T) == of(torch.cat([x[:1], x])[1:]) == found[0]


def test_the_mixing_is_splitmix64(monkeypatch):
    """Words of 0 at places 1, 2, … give the generator's published outputs for seed 0."""
    monkeypatch.setattr("mlp_interp.models._checksum._BLOCK", 2)
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert elsewhere(torch.zeros(3, dtype=torch.int64)) == sum(published) % (1 << 64)
