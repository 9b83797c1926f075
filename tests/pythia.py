"""Real Pythia models: which are checked, where they are, and what is measured on them.

python tests/pythia.py            # names of those that `make pythia` asks for
python tests/pythia.py all        # with those that are large
"""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import try_to_load_from_cache

import mlp_interp as mi
from mlp_interp.neurons import activity

SMALL = (
    "pythia-70m",
    "pythia-70m-deduped-v0",
    "pythia-160m-deduped-v0",
    "pythia-70m-deduped",
    "pythia-160m-deduped",
)
LARGE = ("pythia-410m-deduped-v0", "pythia-1b-deduped-v0", "pythia-410m-deduped")
NAMES = (*SMALL, *LARGE)

NUMBERS = Path(__file__).with_name("reference_pythia.json")
KNOWN = json.loads(NUMBERS.read_text())

_WEIGHTS, _NEEDED = ("model.safetensors", "pytorch_model.bin"), ("config.json", "tokenizer.json")


def required(which):
    """The models that must be there: for "" none, for "require" the small ones, for "all" all."""
    return {"": (), "require": SMALL, "all": NAMES}[which]


def repository(name, monkeypatch):
    """The name of a model on the hub, whose files lie in the local cache; nothing asks the hub.

    What is not there is skipped, unless the environment variable `MLP_INTERP_PYTHIA` requires it.
    """
    repo = f"EleutherAI/{name}"
    files = {f: try_to_load_from_cache(repo, f) for f in (*_NEEDED, *_WEIGHTS)}
    here = {f for f, path in files.items() if isinstance(path, str)}
    if not (here.issuperset(_NEEDED) and here.intersection(_WEIGHTS)):
        missing = f"no weights of {repo} in the local Hugging Face cache; `make pythia` gets them"
        if name in required(os.environ.get("MLP_INTERP_PYTHIA", "")):
            pytest.fail(missing)
        pytest.skip(missing)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return repo


@torch.no_grad()
def induction_scores(model, *, sequences=50, period=50, batch=10, seed=0):
    """Mean attention of each head ``[layer, head]``, from the second copy of random tokens to the
    token after the first occurrence of the same one; without BOS."""
    vocabulary, layers = model.cfg.d_vocab, range(model.cfg.n_layers)
    generator = torch.Generator().manual_seed(seed)
    half = torch.randint(vocabulary, (sequences, period), generator=generator)
    scores = torch.zeros(len(layers), model.cfg.n_heads)
    sites = [mi.Site("pattern", layer) for layer in layers]
    for rows in half.split(batch):
        run = mi.run(model, torch.cat([rows, rows], 1), sites=sites)
        for layer, site in enumerate(sites):
            looked = run.at(site).diagonal(1 - period, 2, 3)[..., 1:]
            scores[layer] += looked.mean(-1).sum(0) / sequences
    return scores


def measured(model):
    """What is pinned of a model: numbers by name and layer, rounded, on text that nano writes."""
    corpus = mi.load_corpus("nano", model, sequences=8, length=128, seed=0)
    importance = mi.subupdate_importance(model, corpus)
    active = activity(model, corpus)
    return {
        "data": corpus.attrs["data"],
        "clean_loss": round(importance.attrs["clean_loss"], 4),
        **{
            f"kl_{way}": _by_name(importance[f"kl_{way}"], "component")
            for way in ("direct", "total")
        },
        "fraction_mean": _rounded(active.fraction.mean("neuron").values),
        "fraction_max": _rounded(active.fraction.max("neuron").values),
        "induction": _rounded(induction_scores(model)),
    }


def record(name, numbers):
    """Write what was measured on a model beside the published numbers."""
    known = json.loads(NUMBERS.read_text())
    known.setdefault("measured", {})[name] = numbers
    NUMBERS.write_text(layout(known) + "\n")


def _by_name(values, dim):
    return dict(zip(values[dim].values.tolist(), _rounded(values.values), strict=True))


def _rounded(values):
    return torch.as_tensor(values).double().mul(1e4).round().div(1e4).tolist()


def layout(value, indent=0):
    """JSON with every list of numbers on a line."""
    if not isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    inner = " " * (indent + 2)
    items = (f"{inner}{json.dumps(k)}: {layout(v, indent + 2)}" for k, v in value.items())
    return "{\n" + ",\n".join(items) + "\n" + " " * indent + "}"


if __name__ == "__main__":
    print("\n".join(required((sys.argv[1:] or ["require"])[0])))
