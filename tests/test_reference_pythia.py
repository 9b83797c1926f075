"""Numbers that the real Pythia-70m must give; only where its weights lie in the local cache."""

import numpy as np
import pytest
import torch
from huggingface_hub import try_to_load_from_cache

import mlp_interp as mi
from mlp_interp.models import Weights

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
NEEDED = ("config.json", "tokenizer.json")

# kmrasmussen/pythia_tools, pythia_tools/apps/mlp_norms.pt: pythia-70m-deduped-v0, raw weights,
# mean L2 norm over the neurons of each layer.
W_IN_NORMS = [0.6977, 0.7050, 0.6878, 0.6737, 0.6518, 0.6415]
W_OUT_NORMS = [0.4528, 0.4825, 0.5188, 0.6177, 0.6868, 0.8098]
# The same source's notes: median cosine between each neuron's input row and value vector.
COSINES = [0.0764, -0.2855, -0.3925, -0.2617, -0.1331, -0.1741]


def cached(name, monkeypatch, **options):
    """A model from the local Hugging Face cache, without asking the hub; else skip."""
    repo = f"EleutherAI/{name}"
    files = {f: try_to_load_from_cache(repo, f) for f in (*NEEDED, *WEIGHTS)}
    here = {f for f, path in files.items() if isinstance(path, str)}
    if not (here.issuperset(NEEDED) and here.intersection(WEIGHTS)):
        pytest.skip(f"no weights of {repo} in the local Hugging Face cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return mi.load_model(name, device="cpu", **options)


@torch.no_grad()
def test_the_loss_of_hello_world(monkeypatch):
    """TransformerLens' own acceptance test, which also only bounds the loss from above: the number
    is older than the release of the weights that now bear the name."""
    model = cached("pythia-70m", monkeypatch)
    tokens = model.to_tokens("Hello world!", prepend_bos=True)
    loss = float(model(tokens, return_type="loss"))
    assert 3 < loss < 4.659344673 + 1e-4


def test_norms_and_angles_of_neurons(monkeypatch):
    weights = Weights.of(cached("pythia-70m-deduped-v0", monkeypatch, processing="raw"))
    for layer in range(weights.n_layers):
        block = weights.block(layer)
        reads, writes = block.W_in.T, block.W_out
        np.testing.assert_allclose(reads.norm(dim=-1).mean(), W_IN_NORMS[layer], atol=1e-3)
        np.testing.assert_allclose(writes.norm(dim=-1).mean(), W_OUT_NORMS[layer], atol=1e-3)
        cosine = torch.cosine_similarity(reads, writes, dim=-1).median()
        np.testing.assert_allclose(cosine, COSINES[layer], atol=1e-2)
