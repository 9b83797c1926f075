"""Noise from other texts of a batch, where a batch has none."""

import pytest
import torch

from mlp_interp import SweepOptions
from mlp_interp.superposition import noise_tolerance


def tolerance(model, texts, batch_size, shard, first=1):
    options = SweepOptions(batch_size=batch_size, shard=shard)
    return noise_tolerance(
        model,
        texts,
        sites="mlp_out",
        layers=0,
        sizes=(0.1, 0.2),
        kind="shuffled",
        first=first,
        sweep=options,
    )


def drawn(sequences):
    return torch.randint(1, 300, (sequences, 5), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("sequences", "batch_size", "shard", "says"),
    [
        (6, 1, 64, "batch_size=1"),
        (6, 8, 1, "shard=1;"),
        (9, 4, 64, "1 with tokens that count"),
        (12, 4, 9, "1 with tokens that count"),  # 4, 4, 1, and 3
        (13, 4, 10, None),  # 4, 4, 2, and 3
        (6, 6, 3, None),
    ],
)
def test_no_text_is_alone_in_a_batch(kind, sequences, batch_size, shard, says):
    if says is None:
        found = tolerance(kind(), drawn(sequences), batch_size, shard)
        assert (found["kl"] > 0).all()
        return
    with pytest.raises(ValueError, match=says):
        tolerance(kind(), drawn(sequences), batch_size, shard)


def test_texts_without_tokens_that_count_are_no_others(kind):
    texts = [[1, 2, 3, 4], [5, 6], [7, 8, 9, 10], [11, 12, 13, 14]]
    with pytest.raises(ValueError, match="1 with tokens that count"):
        tolerance(kind(), texts, 2, 64, first=2)
