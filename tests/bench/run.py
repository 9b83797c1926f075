"""Speed and memory against TransformerLens, side by side in one run: ``make bench``.

Every row is a ratio: the median time of the library's way over the median of ours, the two run in
turn so that a busy machine slows both. Random weights of Pythia's shapes; float32; the bound is the
ratio of floating-point operations (or says what else limits).
"""

import argparse
import gc
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))
from random_models import tiny_tokenizer

import mlp_interp as mi
from mlp_interp.ablation import ablate_direct, ablate_total
from mlp_interp.sites import Site

SHAPES = {
    "14m": {"hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4},
    "70m": {"hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8},
    "160m": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
}
VOCABULARY = 50_304


@dataclass(frozen=True)
class Row:
    """One comparison."""

    what: str
    ratio: float
    ours: float
    theirs: float
    bound: str
    error: float


def directory(shape: str, root: Path) -> Path:
    """A random model of a Pythia shape, saved as a Hugging Face directory."""
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        **SHAPES[shape],
        intermediate_size=4 * SHAPES[shape]["hidden_size"],
        vocab_size=VOCABULARY,
        rotary_pct=0.25,
        use_parallel_residual=True,
        tie_word_embeddings=False,
        max_position_embeddings=2048,
    )
    path = root / f"pythia-{shape}-random"
    GPTNeoXForCausalLM(config).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def compare(
    what: str, ours: Callable[[], Any], theirs: Callable[[], Any], *, repeats: int, bound: str
) -> Row:
    """Run both in turn; medians; and the largest difference of what they return."""
    difference = float((torch.as_tensor(ours()) - torch.as_tensor(theirs())).abs().max())
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(repeats):
        for name, function in (("ours", ours), ("theirs", theirs)):
            gc.collect()
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    fast, slow = statistics.median(times["ours"]), statistics.median(times["theirs"])
    return Row(what, slow / fast, fast, slow, bound, difference)


@torch.no_grad()
def library_direct(model: Any, cache: Any, components: list[torch.Tensor]) -> torch.Tensor:
    """KL per component and position as one writes it with the library's own modules."""
    last = cache[Site("resid_post", model.cfg.n_layers - 1).hook_name]
    clean = model.unembed(model.ln_final(last)).log_softmax(-1)
    rows = []
    for component in components:
        ablated = model.unembed(model.ln_final(last - component)).log_softmax(-1)
        rows.append((clean.exp() * (clean - ablated)).sum(-1))
    return torch.stack(rows)


@torch.no_grad()
def library_neurons(model: Any, cache: Any, layer: int, position: int) -> torch.Tensor:
    """KL of each neuron of a layer at one position, 64 neurons an unembedding."""
    last = cache[Site("resid_post", model.cfg.n_layers - 1).hook_name][:, position]
    clean = model.unembed(model.ln_final(last[:, None])).log_softmax(-1)
    post = cache[Site("post", layer).hook_name][:, position]
    vectors = (post[..., None] * model.blocks[layer].mlp.W_out)[0]
    rows = []
    for chunk in vectors.split(64):
        ablated = model.unembed(model.ln_final(last - chunk)[None]).log_softmax(-1)
        rows.append((clean.exp() * (clean - ablated)).sum(-1)[0])
    return torch.cat(rows)


@torch.no_grad()
def library_total(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """KL of ablating each attention and MLP output by hooks, a whole forward pass each."""
    clean = model(tokens).log_softmax(-1)
    rows = []
    for layer in range(model.cfg.n_layers):
        for name in ("attn_out", "mlp_out"):
            hook = (Site(name, layer).hook_name, lambda x, hook=None: torch.zeros_like(x))
            ablated = model.run_with_hooks(tokens, fwd_hooks=[hook]).log_softmax(-1)
            rows.append((clean.exp() * (clean - ablated)).sum(-1))
    return torch.stack(rows)


@torch.no_grad()
def library_attribution(model: Any, cache: Any, token: int) -> torch.Tensor:
    """Every neuron's share of one logit at the last position, as the library stacks them."""
    direction = model.W_U[:, token]
    stacked = cache.stack_neuron_results(layer=-1, pos_slice=-1)
    scaled = cache.apply_ln_to_stack(stacked, layer=-1, pos_slice=-1)
    return (scaled @ direction)[:, 0]


def attribution(model: Any, tokens: torch.Tensor, cache: Any, repeats: int) -> list[Row]:
    """All neurons of all layers for one logit at one position: against a forward, the library."""
    last = torch.tensor([7])
    kept = mi.cache_for(model, tokens, level="neuron")

    def ours() -> torch.Tensor:
        shares = mi.attribute_logits(model, kept, last, level="neuron", positions=-1)
        shares = shares if "pos" not in shares.dims else shares.isel(pos=0)
        return torch.tensor(shares.sel(component=shares.kind == "neuron").values[0])

    def forward() -> torch.Tensor:
        with torch.no_grad():
            model(tokens)
        return torch.zeros(1)

    rows = [
        compare(
            "attribution of one logit to every neuron, against one forward pass (bar 33x)",
            lambda: ours()[:0].sum(),
            lambda: forward().sum(),
            repeats=4 * repeats,
            bound="reads each activation and value vector once",
        )
    ]
    if hasattr(cache, "stack_neuron_results"):
        rows.append(
            compare(
                "attribution of one logit to every neuron, against stack_neuron_results",
                ours,
                lambda: library_attribution(model, cache, 7),
                repeats=repeats,
                bound="reads each activation and value vector once",
            )
        )
    return rows


def comparisons(model: Any, tokens: torch.Tensor, repeats: int) -> list[Row]:
    """Everything that is compared, for one model."""
    n_layers = model.cfg.n_layers
    _, cache = model.run_with_cache(tokens)
    subupdates = [
        cache[Site(name, layer).hook_name]
        for layer in range(n_layers)
        for name in ("attn_out", "mlp_out")
    ]
    rows = [
        compare(
            f"direct ablation, {2 * n_layers} sub-updates at {tokens.shape[1]} positions",
            lambda: ablate_direct(model, cache).kl.values,
            lambda: library_direct(model, cache, subupdates),
            repeats=repeats,
            bound="equal unembeddings",
        ),
        compare(
            f"total ablation, {2 * n_layers} sub-updates",
            lambda: ablate_total(model, tokens).kl.values,
            lambda: library_total(model, tokens),
            repeats=repeats,
            bound="equal unembeddings, half the blocks",
        ),
    ]
    last = n_layers - 1
    neurons = [f"L{last}N{n}" for n in range(model.cfg.d_mlp)]

    def every_neuron() -> torch.Tensor:
        return torch.cat([library_neurons(model, cache, layer, -1) for layer in range(n_layers)])

    return [
        *attribution(model, tokens, cache, repeats),
        *rows,
        compare(
            f"every neuron of layer {last} at the last position, exact",
            lambda: ablate_direct(model, cache, neurons, positions=-1).kl.values[:, 0, 0],
            lambda: library_neurons(model, cache, last, -1),
            repeats=max(1, repeats // 2),
            bound="equal products",
        ),
        compare(
            f"all {n_layers * model.cfg.d_mlp} neurons at the last position, second order",
            lambda: (
                ablate_direct(model, cache, "neuron", positions=-1, method="second_order").kl.values
            )[:, 0, 0],
            every_neuron,
            repeats=max(1, repeats // 2),
            bound=f"{model.cfg.d_mlp * n_layers / model.cfg.d_model:.0f}x in products",
        ),
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="*", default=["14m", "70m"], choices=list(SHAPES))
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5, help="medians of so many")
    parser.add_argument("--backends", nargs="*", default=["hooked", "bridge"])
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, T={options.length}")
    with tempfile.TemporaryDirectory() as root:
        for shape in options.shapes:
            path = directory(shape, Path(root))
            for backend in options.backends:
                try:
                    model = mi.load_model(path, backend=backend)
                except ValueError as error:
                    print(f"\n{shape}, {backend}: {error}")
                    continue
                generator = torch.Generator().manual_seed(0)
                tokens = torch.randint(VOCABULARY, (1, options.length), generator=generator)
                print(f"\n{shape}, {type(model).__name__}")
                for row in comparisons(model, tokens, options.repeats):
                    print(
                        f"  {row.ratio:6.1f}x  {row.what}: {row.ours * 1e3:.0f} ms against "
                        f"{row.theirs * 1e3:.0f} ms; bound: {row.bound}; "
                        f"largest difference of the KLs {row.error:.0e} nats"
                    )
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
                print(f"  peak memory of the process so far {peak:.0f} MiB")


if __name__ == "__main__":
    main()
