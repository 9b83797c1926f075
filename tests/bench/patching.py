"""Speed of patching grids against the library, the bridge and a bare Hugging Face body.

``python tests/bench/patching.py``: random weights of a Pythia shape, one pair of prompts that
differ at every position after the first (so that no cell is free), logit difference at the last
position. Both sides include the base runs. The slow side is one forward pass a cell: it is timed on
every k-th cell, times k (``--full`` runs them all). Medians of interleaved runs.

Each line also has the ratio of the floating-point products that both sides make (`products`). Where
the measured ratio is larger, the slow side spends its time on something else: HookedTransformer 3.9
copies its unembedding matrix in every forward pass.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")  # before the library imports it

import torch
from transformers import GPTNeoXForCausalLM

sys.path.insert(0, str(Path(__file__).parent))
from run import SHAPES, VOCABULARY, directory

import mlp_interp as mi
from mlp_interp.sites import Site


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
    for layer in range(n_layers):
        for position in range(length):
            first, rows = layer + entry, length - position
            if first < n_layers - 1:  # first block: attention of later rows, all of one row
                ours += rows + 12 + 12 * rows * (n_layers - 2 - first) + 2 * rows
    return cells * forward / max(ours, 1)


def compare(
    name: str,
    ours: Callable[[], torch.Tensor],
    theirs: Callable[[], torch.Tensor],
    every: int,
    repeats: int,
    bound: float,
) -> None:
    """Interleaved medians and the largest difference of the values."""
    error = float((ours().flatten()[::every] - theirs().flatten().cpu()).abs().max())
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for measured, function in zip(times, (ours, theirs), strict=True):
            start = time.perf_counter()
            function().cpu()  # waits for a GPU
            measured.append(time.perf_counter() - start)
    fast, slow = statistics.median(times[0]), statistics.median(times[1]) * every
    print(
        f"  {slow / fast:6.1f}x  {name}: {fast * 1e3:.0f} ms against {slow * 1e3:.0f} ms"
        f"{f' (timed on one cell in {every})' if every > 1 else ''}; ratio of products "
        f"{bound:.0f}x; largest difference {error:.0e}",
        flush=True,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="*", default=["70m", "14m", "160m"], choices=list(SHAPES))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--lengths", nargs="*", type=int, default=[16, 64, 128])
    parser.add_argument("--sites", nargs="*", default=["resid_pre", "mlp_out", "attn_out", "z"])
    parser.add_argument(
        "--peers", nargs="*", default=["library", "batch", "bridge", "body", "nnsight"]
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="time every cell of the slow side")
    options = parser.parse_args()
    print(
        f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads, float32"
    )
    with tempfile.TemporaryDirectory() as root:
        for shape in options.shapes:
            path = directory(shape, Path(root))
            hooked = mi.load_model(path, device=options.device)
            print(f"{shape}, {type(hooked).__name__}", flush=True)
            for length in options.lengths:
                if shape == "70m" or length <= 64:  # the bars are on 70m
                    _one_length(hooked, path, length, options)


def _one_length(model: Any, path: Path, length: int, options: argparse.Namespace) -> None:
    contrast = pairs(length).to(options.device)
    every = 1 if options.full else max(1, length // 4 - 1)  # odd, to visit every layer and place

    def ours(site: str, contrast: mi.Contrast, model: Any = model) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            found = mi.patch(model, contrast, sites=site)
            return torch.tensor(found.raw.mean("prompt").values)

        return run

    def bound(site: str) -> float:
        return products(site, model, contrast)

    if "library" in options.peers and type(model).__name__ == "HookedTransformer":
        for site in options.sites:
            compare(
                f"{site}, T={length}, against transformer_lens.patching",
                ours(site, contrast),
                lambda site=site: by_library(model, contrast, site, every),
                every,
                options.repeats,
                bound(site),
            )
        if "batch" in options.peers and length == 16:
            several = pairs(length, 8).to(options.device)
            compare(
                f"resid_pre, T={length}, 8 prompts, against transformer_lens.patching",
                ours("resid_pre", several),
                lambda: by_library(model, several, "resid_pre", every),
                every,
                options.repeats,
                bound("resid_pre"),
            )
            late = pairs(length, same=10).to(options.device)
            late.corrupted_tokens[:, 11:] = late.clean_tokens[:, 11:]
            compare(
                f"resid_pre, T={length}, one token differs, against transformer_lens.patching",
                ours("resid_pre", late),
                lambda: by_library(model, late, "resid_pre", every),
                every,
                options.repeats,
                bound("resid_pre"),
            )
    if "bridge" in options.peers:
        bridge = mi.load_model(path, backend="bridge", device=options.device)
        compare(
            f"resid_pre, T={length}, both on TransformerBridge, against its hooks",
            ours("resid_pre", contrast, bridge),
            lambda: by_plain_hooks(bridge, contrast, "resid_pre", every),
            every,
            options.repeats,
            bound("resid_pre"),
        )
    if "nnsight" in options.peers and find_spec("nnsight"):
        traced = GPTNeoXForCausalLM.from_pretrained(path).to(options.device).eval()
        compare(
            f"resid_pre, T={length}, against nnsight",
            ours("resid_pre", contrast),
            lambda: by_nnsight(traced, contrast, every),
            every,
            options.repeats,
            bound("resid_pre"),
        )
    if "body" in options.peers:
        body = GPTNeoXForCausalLM.from_pretrained(path).to(options.device).eval()
        compare(
            f"resid_pre, T={length}, against hooks on the Hugging Face body",
            ours("resid_pre", contrast),
            lambda: by_body(body, contrast, every),
            every,
            options.repeats,
            bound("resid_pre"),
        )


if __name__ == "__main__":
    main()
