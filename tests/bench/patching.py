"""Speed of patching grids against the library, the bridge and a bare Hugging Face body.

One pair of prompts that differ at every position after the first (so that no cell is free), logit
difference at the last position. Both sides include the base runs. The slow side is one forward pass
a cell: it is timed on every k-th cell, times k.

Each line also has the ratio of the floating-point products that both sides make (`products`). Where
the measured ratio is larger, the slow side spends its time on something else: HookedTransformer 3.9
copies its unembedding matrix in every forward pass.
"""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
from rows import VOCABULARY, Row, Setting, compare, directory
from transformers import GPTNeoXForCausalLM

import mlp_interp as mi
from mlp_interp.sites import Site

BARS = {"resid_pre": 60, "mlp_out": 100, "attn_out": 100}
"""Of grids of 64 positions against `transformer_lens.patching`."""


def pairs(length: int, prompts: int = 1, *, same: int = 1) -> mi.Contrast:
    """Random prompts whose first `same` tokens agree."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(1, VOCABULARY - 1, (prompts, length), generator=generator)
    corrupted = clean + 1
    corrupted[:, :same] = clean[:, :same]
    return mi.Contrast(
        clean_tokens=clean,
        corrupted_tokens=corrupted,
        answers=torch.full((prompts,), 7),
        foils=torch.full((prompts,), 11),
    )


def cells_of(site: str, model: Any, length: int) -> list[tuple[int, int]]:
    """Layer and position, or layer and head."""
    second = model.cfg.n_heads if site == "z" else length
    return [(layer, n) for layer in range(model.cfg.n_layers) for n in range(second)]


def difference(logits: torch.Tensor, contrast: mi.Contrast) -> torch.Tensor:
    """Mean logit difference at the last position."""
    rows = torch.arange(len(contrast))
    return (logits[rows, -1, contrast.answers] - logits[rows, -1, contrast.foils]).mean()


def by_library(model: Any, contrast: mi.Contrast, site: str, every: int) -> torch.Tensor:
    """`transformer_lens.patching` on every `every`-th cell."""
    import pandas as pd
    from transformer_lens import patching

    cells = cells_of(site, model, contrast.length)[::every]
    setter = (
        patching.layer_head_vector_patch_setter
        if site == "z"
        else (patching.layer_pos_patch_setter)
    )
    axes = ("layer", "head") if site == "z" else ("layer", "pos")
    with torch.no_grad():
        _, cache = model.run_with_cache(contrast.clean_tokens)
        return patching.generic_activation_patch(
            model,
            contrast.corrupted_tokens,
            cache,
            lambda logits: difference(logits, contrast),
            patch_setter=setter,
            activation_name=site,
            index_df=pd.DataFrame(cells, columns=list(axes)),
        )


def by_plain_hooks(model: Any, contrast: mi.Contrast, site: str, every: int) -> torch.Tensor:
    """One `run_with_hooks` a cell: any class of the library."""
    values = []
    with torch.no_grad():
        _, cache = model.run_with_cache(contrast.clean_tokens)
        for layer, n in cells_of(site, model, contrast.length)[::every]:
            name = Site(site, layer).hook_name

            def put(
                x: torch.Tensor, hook: Any = None, name: str = name, n: int = n
            ) -> torch.Tensor:
                at = (slice(None), slice(None), n) if site == "z" else (slice(None), n)
                x[at] = cache[name][at]
                return x

            logits = model.run_with_hooks(contrast.corrupted_tokens, fwd_hooks=[(name, put)])
            values.append(difference(logits, contrast))
    return torch.stack(values)


def by_body(body: GPTNeoXForCausalLM, contrast: mi.Contrast, every: int) -> torch.Tensor:
    """Hooks on the bare body, resid_pre only, unembedding the last position only."""
    layers, kept, values = body.gpt_neox.layers, {}, []
    with torch.no_grad():
        hooks = [
            layer.register_forward_pre_hook(lambda _m, args, n=n: kept.__setitem__(n, args[0]))
            for n, layer in enumerate(layers)
        ]
        body.gpt_neox(contrast.clean_tokens)
        for hook in hooks:
            hook.remove()
        cells = [(n, p) for n in range(len(layers)) for p in range(contrast.length)][::every]
        for n, position in cells:

            def put(_m: Any, args: Any, n: int = n, position: int = position) -> Any:
                args[0][:, position] = kept[n][:, position]
                return args

            hook = layers[n].register_forward_pre_hook(put)
            last = body.gpt_neox(contrast.corrupted_tokens).last_hidden_state[:, -1:]
            hook.remove()
            values.append(difference(body.get_output_embeddings()(last), contrast))
    return torch.stack(values)


def by_nnsight(body: GPTNeoXForCausalLM, contrast: mi.Contrast, every: int) -> torch.Tensor:
    """One nnsight trace a cell, resid_pre only."""
    import nnsight

    model = nnsight.NNsight(body)
    n_layers, kept, values = body.config.num_hidden_layers, [], []
    with torch.no_grad():
        with model.trace(contrast.clean_tokens):
            for n in range(n_layers):
                kept.append(model.gpt_neox.layers[n].input.save())  # noqa: PERF401 (it is traced)
        cells = [(n, p) for n in range(n_layers) for p in range(contrast.length)][::every]
        for n, position in cells:
            with model.trace(contrast.corrupted_tokens):
                model.gpt_neox.layers[n].input[:, position] = kept[n][:, position]
                logits = model.output.logits[:, -1:].save()
            values.append(difference(logits, contrast))
    return torch.stack(values)


def products(site: str, model: Any, contrast: mi.Contrast) -> float:
    """Multiplications of one forward a cell over those of the exact grid, ``d_model^2`` a token."""
    cfg, length = model.cfg, contrast.length
    n_layers, unembed = cfg.n_layers, cfg.d_vocab / cfg.d_model
    forward = length * (12 * n_layers + unembed)
    if site == "z":
        cells, rows, entry = n_layers * cfg.n_heads, length, 1
        ours = sum(
            cfg.n_heads * rows * (12 * (n_layers - 2 - layer) + 2 * (layer < n_layers - 1))
            for layer in range(n_layers)
        )
        return cells * forward / max(ours, 1)
    cells, ours = n_layers * length, 0.0
    entry = 0 if site == "resid_pre" else 1
    rotated = 0.25  # of each key, in Pythia
    for layer in range(n_layers):
        for position in range(length):
            first, rows = layer + entry, length - position
            if first < n_layers - 1:  # first block: attention of later rows, all of one row
                # Of the last block, which one position reads, rows need but their rotated keys.
                ours += rows + 12 + 12 * rows * (n_layers - 2 - first) + rotated * rows
    return cells * forward / max(ours, 1)


def measured(setting: Setting) -> Iterator[Row]:
    """Grids of several lengths; those of the longest prompts take long: some of them, once."""
    path = directory(setting.shape, setting.root)
    model = mi.load_model(path, device=setting.device)
    for length in (16,) if setting.small else (16, 64, 128):
        yield from _one_length(model, path, length, setting)


def _one_length(model: Any, path: Any, length: int, setting: Setting) -> Iterator[Row]:
    contrast = pairs(length).to(setting.device)
    every = 13 if setting.small else max(1, length // 4 - 1)  # odd, to visit every layer and place
    long = length > 64

    def row(
        against: str,
        theirs: Callable[[mi.Contrast], torch.Tensor],
        *,
        site: str = "resid_pre",
        contrast: mi.Contrast = contrast,
        ours: Any = model,
        bar: float | None = None,
    ) -> Row:
        return compare(
            f"{setting.shape}: patches of {site}, T={length}, {against}",
            lambda: mi.patch(ours, contrast, sites=site).raw.mean("prompt").values,
            lambda: theirs(contrast),
            repeats=1 if long else setting.repeats,
            every=every,
            bar=bar if length == 64 else None,
            bound=f"{products(site, ours, contrast):.0f}x in products",
        )

    if type(model).__name__ == "HookedTransformer":
        against = "against transformer_lens.patching"
        for site in ("resid_pre", "mlp_out", "z", *(() if long else ("attn_out",))):
            theirs = lambda c, s=site: by_library(model, c, s, every)
            yield row(against, theirs, site=site, bar=BARS.get(site))
        if length == 16:
            theirs = lambda c: by_library(model, c, "resid_pre", every)
            several = pairs(length, 8).to(setting.device)
            yield row(f"8 prompts, {against}", theirs, contrast=several)
            late = pairs(length, same=10).to(setting.device)
            late.corrupted_tokens[:, 11:] = late.clean_tokens[:, 11:]
            yield row(f"one token differs, {against}", theirs, contrast=late)
    if not long:
        bridge = mi.load_model(path, backend="bridge", device=setting.device)
        yield row(
            "both on TransformerBridge, against its hooks",
            lambda c: by_plain_hooks(bridge, c, "resid_pre", every),
            ours=bridge,
        )
    body = GPTNeoXForCausalLM.from_pretrained(path).to(setting.device).eval()
    if find_spec("nnsight") and not long:
        yield row("against nnsight", lambda c: by_nnsight(body, c, every))
    yield row("against hooks on the Hugging Face body", lambda c: by_body(body, c, every), bar=18)
