"""Importance of sub-updates and ablation of layer ranges, against plain loops over the library.

The loops are what one writes by hand: a hooked forward pass for each component or range, the
library's own unembedding for what is taken out of the final stream, and log-softmaxes. Processor
time of one thread, both in turn, medians. The bound is what the products with matrices alone would
allow, if ours and theirs ran at one speed: ours unembeds each change once and runs only blocks that
a change reaches.
"""

import itertools
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from rows import VOCABULARY, Row, Setting, compare, directory

import mlp_interp as mi
from mlp_interp.sites import Site

BAR = 4
KINDS = {"mlp": ("mlp_out",), "attn": ("attn_out",), "both": ("attn_out", "mlp_out")}


def without(x: torch.Tensor, hook: Any = None) -> torch.Tensor:
    """Zero where tokens count: all but the first."""
    kept = torch.zeros_like(x)
    kept[:, 0] = x[:, 0]
    return kept


@torch.no_grad()
def plain_importance(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """KL and loss of every sub-update in three ways, top-1 in two: ``[component, 8]``."""
    final = Site("resid_post", model.cfg.n_layers - 1).hook_name
    clean, cache = model.run_with_cache(tokens)
    before, stream, scale = clean.log_softmax(-1), cache[final], cache["ln_final.hook_scale"]
    p, top = before.exp(), clean.argmax(-1)

    def effects(logits: torch.Tensor) -> list[torch.Tensor]:
        after = logits.log_softmax(-1)
        fall = (before - after)[:, :-1].gather(-1, tokens[:, 1:, None])[:, 1:]
        changed = (logits.argmax(-1) != top)[:, 1:].float().mean()
        return [(p * (before - after)).sum(-1)[:, 1:].mean(), fall.mean(), changed]

    rows = []
    for layer, name in itertools.product(range(model.cfg.n_layers), ("attn_out", "mlp_out")):
        site = Site(name, layer).hook_name
        left = stream - cache[site] + without(cache[site])
        frozen = (left - left.mean(-1, keepdim=True)) / scale
        ways = [
            effects(model.unembed(model.ln_final(left))),
            effects(model.unembed(frozen)),
            effects(model.run_with_hooks(tokens, fwd_hooks=[(site, without)])),
        ]
        numbers = [x for kl, loss, _ in ways for x in (kl, loss)]
        rows.append(torch.stack([*numbers, ways[0][2], ways[2][2]]))
    return torch.stack(rows)


def our_importance(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """The same."""
    found = mi.subupdate_importance(model, tokens)
    names = [
        f"{quantity}_{way}"
        for way in ("direct", "direct_frozen", "total")
        for quantity in ("kl", "delta_loss")
    ]
    names += ["top1_direct", "top1_total"]
    return torch.stack([torch.from_numpy(found[name].values) for name in names], dim=-1)


@torch.no_grad()
def plain_ranges(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Loss with each range of layers ablated, for three kinds of matrices."""
    losses = []
    for names in KINDS.values():
        for start, end in itertools.combinations_with_replacement(range(model.cfg.n_layers), 2):
            sites = [Site(n, layer) for layer in range(start, end + 1) for n in names]
            hooks = [(site.hook_name, without) for site in sites]
            after = model.run_with_hooks(tokens, fwd_hooks=hooks).log_softmax(-1)
            losses.append(-after[:, 1:-1].gather(-1, tokens[:, 2:, None]).mean())
    return torch.stack(losses)


def our_ranges(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """The same."""
    found = [mi.ablate_ranges(model, tokens, kind=kind).perplexity.values for kind in KINDS]
    losses = torch.from_numpy(np.array(found)).log().flatten()
    return losses[~losses.isnan()]


def bounds(model: Any, tokens: torch.Tensor) -> tuple[float, float]:
    """Ratio of the products: of theirs over the fewest that give the same, for both works."""
    cfg, length = model.cfg, tokens.shape[1]
    layers, size = cfg.n_layers, cfg.d_model
    unembedding = size * VOCABULARY
    block = 4 * size**2 + 2 * size * cfg.d_mlp + 2 * size * length
    n, ranges = 2 * layers, 3 * layers * (layers + 1) // 2
    theirs = (n + 1) * layers * block + (3 * n + 1) * unembedding
    ours = (layers + layers * (layers - 1)) * block + (2 * n + 2) * unembedding
    theirs_ranges = ranges * (layers * block + unembedding)
    tails = sum((end + 1) * (layers - end) for end in range(layers))
    ours_ranges = (3 * layers + 3 * tails) * block + (ranges + 3) * unembedding
    return theirs / ours, theirs_ranges / ours_ranges


def measured(setting: Setting) -> Iterator[Row]:
    """Both works, on one thread."""
    torch.set_num_threads(1)
    model = mi.load_model(directory(setting.shape, setting.root), device=setting.device)
    shape = (1, 8) if setting.small else (2, 128)
    tokens = torch.randint(1, VOCABULARY, shape, generator=torch.Generator().manual_seed(0))
    tokens = tokens.to(setting.device)
    mi.subupdate_importance(model, tokens[:, :4])  # what is made once a model
    works = {
        "subupdate_importance": (our_importance, plain_importance),
        "ablate_ranges, three kinds": (our_ranges, plain_ranges),
    }
    for (what, functions), bound in zip(works.items(), bounds(model, tokens), strict=True):
        ours, theirs = (partial(function, model, tokens) for function in functions)
        yield compare(
            f"{setting.shape}: {what}, {shape[0]} x {shape[1]} tokens, against plain loops",
            ours,
            theirs,
            repeats=setting.repeats,
            bound=f"products alone {bound:.2f}x",
            bar=BAR,
            clock=time.process_time if setting.device == "cpu" else time.perf_counter,
        )
