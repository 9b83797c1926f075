"""The slow reference for edges is the model where nothing is exchanged."""

import pytest
import torch
from contrasts import contrast_of
from reference_gradients import graph_run


@pytest.mark.parametrize("processing", ["folded", "raw"])
@pytest.mark.parametrize("architecture", ["parallel", "sequential", "gpt2"])
def test_copies_of_the_stream_change_nothing(kind, architecture, processing, backend):
    model = kind(architecture, backend, processing, torch.float64)
    tokens = contrast_of(3, 9).clean_tokens
    with torch.no_grad():
        expected = model(tokens)
        found, senders = graph_run(model, tokens, lambda receiver, stream, senders: stream)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    assert len(senders) == 1 + 3 * 5
