"""Figures of a trained model: what the page "On a real model" says of SmolLM2 and of nano.

Each function gives numbers by name, most of them lists over layers.
"""

import time
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from english import documents
from pythia import induction_scores

import mlp_interp as mi
from mlp_interp.corpus import reducers
from mlp_interp.gradients import as_grid, compare

BUILD = Path(__file__).parent.parent / "build"
SEQUENCES, LENGTH, PART = 160, 128, 8
PATCHED = ("resid_pre", "attn_out", "mlp_out")


def text_of(name, model):
    """20,480 tokens of text that the model can read: English, or what nano's generator writes."""
    source = documents() if name == "smollm2" else "nano"
    return mi.load_corpus(source, model, sequences=SEQUENCES, length=LENGTH, progress=False)


def sizes(model, corpus):
    """Norms by layer: medians over ordinary positions, and at the first.

    The first is BOS in every sequence, and so has the numbers that it has alone.
    """
    ordinary = mi.norms(model, corpus, batch_size=PART)
    alone = mi.norms(model, corpus.tokens[:1, :1], first=0)
    columns = {}
    for end, found in (("", ordinary), ("_first", alone)):
        columns[f"stream{end}"] = rounded(found.resid_norm.sel(stat="median"))
        for kind in ("attn", "mlp"):
            mine = found.norm.sel(component=found.kind == kind, stat="median")
            columns[f"{kind}{end}"] = rounded(mine)
    return columns


def firing(model, corpus):
    """Shares of neurons and tokens, and the loss."""
    counted = {
        "pre": reducers.Fraction(first=1),
        "post": reducers.Fraction(site="post", first=1),
        "loss": reducers.Loss(),
    }
    found = mi.sweep(model, corpus, counted, options=mi.SweepOptions(batch_size=PART))
    fires = found["pre"].fraction
    return {
        "loss": rounded(found["loss"].loss),
        "fires": rounded(fires.mean("neuron")),
        "post_positive": rounded(found["post"].fraction.mean("neuron")),
        "dead": (fires == 0).sum("neuron").values.tolist(),
        "above_0.99": (fires > 0.99).sum("neuron").values.tolist(),
    }


@torch.no_grad()
def first_and_gates(model, corpus):
    """What is special about the first position, and what neurons write that do not fire."""
    layers = range(model.cfg.n_layers)
    run = mi.run(model, corpus.tokens[:PART], sites=["pattern", "pre", "post", "resid_post"])
    columns = {"looked_at": [], "heads_over_half": [], "written_closed": []}
    for layer in layers:
        looked = run.at(mi.Site("pattern", layer))[..., 1:, 0].mean((0, 2))
        square = run.at(mi.Site("post", layer))[:, 1:].square()
        closed = run.at(mi.Site("pre", layer))[:, 1:] <= 0
        columns["looked_at"].append(looked.mean())
        columns["heads_over_half"].append(int((looked > 0.5).sum()))
        columns["written_closed"].append(square[closed].sum() / square.sum())
    entries = torch.stack([run.at(mi.Site("resid_post", layer)) for layer in layers]).abs()
    layer, row, dimension = np.unravel_index(int(entries[:, :, 0].argmax()), entries[:, :, 0].shape)
    massive = {
        "layer": int(layer),
        "dimension": int(dimension),
        "entry": rounded(entries[layer, row, 0, dimension]),
        "elsewhere": rounded(entries[layer, :, 1:].median()),
    }
    return {**{name: rounded(x) for name, x in columns.items()}, "massive": massive}


def importance(model, corpus, sequences):
    """Direct and total effects of every sub-update with standard errors, in parts that are kept."""
    options = mi.SweepOptions(batch_size=PART, shard=PART, checkpoint=BUILD / "real_page")
    parts = []
    for start in range(0, sequences, PART):
        began = time.monotonic()
        parts.append(mi.subupdate_importance(model, corpus[start : start + PART], sweep=options))
        print(f"importance, sequences from {start}: {time.monotonic() - began:.0f} s", flush=True)
    parts = xr.concat(parts, "part")
    found = {"importance_tokens": sequences * LENGTH}
    for name in ("kl_direct", "kl_total"):
        mean, error = parts[name].mean("part"), pooled(parts[name], parts[f"{name}_se"])
        for kind in ("attn", "mlp"):
            mine = parts.kind == kind
            found[f"{kind}_{name}"] = rounded(mean.sel(component=mine))
            found[f"{kind}_{name}_se"] = rounded(error.sel(component=mine))
    return found


def pooled(means, errors):
    """Standard error over all sequences, from means and errors of parts of `PART` each."""
    sequences = PART * means.sizes["part"]
    within = (PART * (PART - 1) * errors**2).sum("part")
    between = (PART * (means - means.mean("part")) ** 2).sum("part")
    return ((within + between) / (sequences * (sequences - 1))) ** 0.5


def baselines(model, corpus, components):
    """Total effects of some sub-updates by what stands in for them and whether the first does."""
    options = {"zero": {}, "mean": {"baseline": "mean"}}
    options |= {f"{name}, all": {**given, "first": 0} for name, given in options.items()}
    table = {}
    for name, given in options.items():
        found = mi.ablate_total(model, corpus[:PART].tokens, components, **given)
        kl = found.kl.isel(pos=slice(1, None)).mean(["prompt", "pos"])
        for component, value in zip(components, kl.values, strict=True):
            table.setdefault(component, {})[name] = rounded(value)
    return table


def estimates(model):
    """Exact patches of prompts with an indirect object beside what gradients say of them."""
    contrast = mi.prompts.ioi(model, n=4, seed=0)
    exact = mi.patch(model, contrast, sites=PATCHED)
    by_steps = {n: mi.attribution_patch(model, contrast, sites=PATCHED, steps=n) for n in (1, 4)}
    found = {}
    for site in PATCHED:
        grids = {n: compare(exact.sel(site=[site]), as_grid(x, site)) for n, x in by_steps.items()}
        true = grids[1].exact.sel(site=site).mean("prompt")
        place = {"pos": abs(true).argmax("pos")}
        found[site] = {
            "exact": rounded(true.isel(place)),
            **{
                f"{what}_{n}": rounded(values)
                for n, grid in grids.items()
                for what, values in (
                    ("estimate", grid.estimate.sel(site=site).mean("prompt").isel(place)),
                    ("correlation", grid.pearson.sel(site=site)),
                )
            },
        }
    return found


def measured(name, sequences):
    """All figures of one model."""
    model = mi.load_model(name, device="cpu")
    corpus = text_of(name, model)
    induction = induction_scores(model, sequences=8)
    last = model.cfg.n_layers - 1
    middle = 11 if name == "smollm2" else 1
    components = ["0.attn", "0.mlp", "1.attn", f"{middle}.mlp", f"{last}.mlp"]
    return {
        "data": corpus.attrs["data"],
        "sha256": corpus.attrs["sha256"],
        "seed": corpus.attrs["seed"],
        "processing": "folded",
        **sizes(model, corpus),
        **firing(model, corpus),
        **first_and_gates(model, corpus),
        "baselines": baselines(model, corpus, list(dict.fromkeys(components))),
        "estimates": estimates(model),
        "induction": {
            "head": "L{}H{}".format(*divmod(int(induction.argmax()), model.cfg.n_heads)),
            "score": rounded(induction.max()),
            "above_0.4": int((induction > 0.4).sum()),
        },
        **importance(model, corpus, sequences),
    }


def rounded(values):
    """Plain numbers of five significant digits."""
    plain = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(plain, list):
        return [rounded(value) for value in plain]
    return float(f"{float(plain):.5g}") if not hasattr(plain, "values") else rounded(plain.values)
