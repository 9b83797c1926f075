"""Speed on a trained model, SmolLM2, against bare Hugging Face: ``make bench-real``.

Processor time of one thread, so that a busy machine counts for little; medians over runs in turn.
A grid is held against one forward pass a cell through hooks that unembed the last position only,
timed on some of the cells; a sweep against the bare body; importance against the least that its
question asks for, counted in times that are measured here: every block that an ablation changes run
once more, and every changed final stream unembedded.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM

import mlp_interp as mi
from mlp_interp.corpus.reducers import Fraction, Moments
from mlp_interp.models.smollm2 import smollm2_place

ANSWER, FOIL = 5, 60
SITES = ("resid_pre", "mlp_out")


def seconds(function: Callable[[], Any]) -> float:
    """Processor time of one call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def medians(repeats: int, *functions: Callable[[], Any]) -> list[float]:
    """Median processor times of functions that run in turn."""
    times = [[seconds(function) for function in functions] for _ in range(repeats)]
    return [statistics.median(each) for each in zip(*times, strict=True)]


def tokens_of(size: tuple[int, int]) -> torch.Tensor:
    """Random tokens; what they say does not change what they cost."""
    return torch.randint(10, 40_000, size, generator=torch.Generator().manual_seed(0))


def pair(length: int) -> mi.Contrast:
    """One pair of random prompts that differ at every position after the first."""
    clean, other = tokens_of((2, length)).split(1)
    corrupted = torch.cat([clean[:, :1], other[:, 1:]], 1)
    return mi.Contrast(
        clean_tokens=clean,
        corrupted_tokens=corrupted,
        answers=torch.tensor([ANSWER]),
        foils=torch.tensor([FOIL]),
    )


@torch.no_grad()
def clean_activations(source: Any, contrast: mi.Contrast) -> dict[tuple[str, int], torch.Tensor]:
    """What every block reads and every MLP writes in the clean run."""
    kept, hooks = {}, []
    for n, block in enumerate(source.model.layers):
        reads = lambda _m, args, n=n: kept.__setitem__(("resid_pre", n), args[0])
        writes = lambda _m, _args, out, n=n: kept.__setitem__(("mlp_out", n), out)
        hooks.append(block.register_forward_pre_hook(reads))
        hooks.append(block.mlp.register_forward_hook(writes))
    source.model(contrast.clean_tokens, use_cache=False)
    for hook in hooks:
        hook.remove()
    return kept


@torch.no_grad()
def by_hooks(
    source: Any, contrast: mi.Contrast, kept: Any, cells: list[tuple[str, int, int]]
) -> torch.Tensor:
    """The logit difference of each cell, one forward pass of the bare model a cell."""
    values = []
    for site, layer, position in cells:

        def put(x: torch.Tensor, site: str = site, n: int = layer, p: int = position) -> Any:
            x = x.clone()
            x[:, p] = kept[site, n][:, p]
            return x

        block = source.model.layers[layer]
        if site == "resid_pre":
            hook = block.register_forward_pre_hook(lambda _m, args, p=put: (p(args[0]), *args[1:]))
        else:
            hook = block.mlp.register_forward_hook(lambda _m, _args, out, p=put: p(out))
        last = source.model(contrast.corrupted_tokens, use_cache=False).last_hidden_state[:, -1]
        hook.remove()
        logits = source.lm_head(last)[0]
        values.append(logits[ANSWER] - logits[FOIL])
    return torch.stack(values)


def grid(model: Any, source: Any, length: int, every: int, repeats: int) -> str:
    """Patches of two sites by layer and position."""
    contrast, layers = pair(length), range(model.cfg.n_layers)
    cells = [(site, n, p) for site in SITES for n in layers for p in range(length)][::every]
    ours = lambda: mi.patch(model, contrast, sites=SITES)
    kept = clean_activations(source, contrast)  # not timed, where ours times both base runs
    theirs = lambda: by_hooks(source, contrast, kept, cells)
    raw = ours().raw.isel(prompt=0)
    mine = torch.tensor([float(raw.sel(site=s, layer=n, pos=p)) for s, n, p in cells])
    error = float((mine - theirs()).abs().max())
    fast, slow = medians(repeats, ours, theirs)
    slow *= len(SITES) * len(layers) * length / len(cells)
    return (
        f"{slow / fast:6.2f}x  grids of {' and '.join(SITES)}, T={length}, one pair, against hooks "
        f"on Hugging Face (bar 8x): {fast:.2f} s against {slow:.1f} s (timed on {len(cells)} "
        f"cells); largest difference {error:.0e}"
    )


def swept(model: Any, source: Any, size: tuple[int, int], batch: int, repeats: int) -> str:
    """Fractions and moments of all neurons of all layers."""
    tokens, options = tokens_of(size), mi.SweepOptions(batch_size=batch)

    @torch.no_grad()
    def body() -> None:
        for rows in tokens.split(batch):
            source.model(rows, use_cache=False)

    ours = lambda: mi.sweep(model, tokens, [Fraction(), Moments()], options=options)
    ours()
    body()
    mine, bare = medians(repeats, ours, body)
    return (
        f"{bare / mine:6.2f}x  sweep of fractions and moments of all layers, {size[0]} x {size[1]} "
        f"tokens in batches of {batch}, against the bare body (bar 0.95x): "
        f"{tokens.numel() / mine:.0f} against {tokens.numel() / bare:.0f} tokens a second"
    )


@torch.no_grad()
def important(model: Any, source: Any, size: tuple[int, int], repeats: int) -> str:
    """Direct and total importance of every sub-update."""
    tokens, n_layers = tokens_of(size), model.cfg.n_layers
    options = mi.SweepOptions(batch_size=len(tokens), shard=len(tokens))
    final = source.model(tokens, use_cache=False).last_hidden_state
    took, body, unembed = medians(
        repeats,
        lambda: mi.subupdate_importance(model, tokens, sweep=options),
        lambda: source.model(tokens, use_cache=False),
        lambda: source.lm_head(final),
    )
    # Without an attention, its own block's MLP runs again, and all later blocks; without an MLP,
    # these. One block is its share of the body, of which an MLP makes up as many products.
    config = source.config
    mlp = 3 * config.hidden_size * config.intermediate_size
    heads = config.num_attention_heads + config.num_key_value_heads
    attention = 2 * config.hidden_size * config.head_dim * heads
    again = n_layers * (n_layers - 1) + n_layers * mlp / (mlp + attention)
    blocks, readouts = again * body / n_layers, (2 * 2 * n_layers + 1) * unembed
    return (
        f"{took / blocks:6.2f}   importance of {2 * n_layers} sub-updates, direct and total, "
        f"{size[0]} x {size[1]} tokens: {took:.0f} s, over the blocks that run again "
        f"(bar 1.3): {again:.0f} of {body / n_layers:.3f} s, {blocks:.0f} s; with "
        f"{4 * n_layers + 1} unembeddings of {unembed:.2f} s {took / (blocks + readouts):.2f}"
    )


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--length", type=int, default=16, help="of the grids")
    parser.add_argument("--every", type=int, default=37, help="cells of the slow side")
    parser.add_argument("--sweep", type=int, nargs=2, default=(16, 128), help="its tokens")
    parser.add_argument("--importance", type=int, nargs=2, default=(2, 128), help="its tokens")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=("grid", "sweep", "importance"))
    options = parser.parse_args()
    if not (smollm2_place() / "config.json").exists():
        print("SmolLM2 is not there; `make real` puts it there")
        return
    torch.set_num_threads(1)
    source: Any = AutoModelForCausalLM.from_pretrained(
        smollm2_place(), dtype=torch.float32, local_files_only=True
    ).eval()
    model = mi.load_model("smollm2", device="cpu")
    print(f"torch {torch.__version__}, one thread, SmolLM2, {type(model).__name__}", flush=True)
    rows = {
        "grid": lambda: grid(model, source, options.length, options.every, options.repeats),
        "sweep": lambda: swept(model, source, tuple(options.sweep), 8, options.repeats),
        "importance": lambda: important(model, source, tuple(options.importance), 1),
    }
    for name, row in rows.items():
        if options.only in (None, name):
            print(f"  {row()}", flush=True)


if __name__ == "__main__":
    main()
