"""Speed of gradients against the library's recipes and a bare Hugging Face body.

``python tests/bench/gradients.py``: processor time of one thread, so that a busy machine counts for
little; medians over runs in turn; random weights of a Pythia shape; one pair of prompts that differ
at every position after the first, which favours nobody. The bound is the ratio of floating-point
operations in matrix products, counted as they run.
"""

import argparse
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers import GPTNeoXForCausalLM

sys.path.insert(0, str(Path(__file__).parent))
from run import VOCABULARY, Row, directory

import mlp_interp as mi
from mlp_interp import attribution_patch, edge_attribution
from mlp_interp.sites import Site

SITES = ("resid_pre", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern", "post")


class Operations(TorchDispatchMode):
    """Counts floating-point operations of matrix products, also those of backward passes."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count it."""
        found = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            formula = flop_registry[func._overloadpacket]
            self.count += formula(*args, **(kwargs or {}), out_val=found)
        return found


def operations(function: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products in a call."""
    with Operations() as counter:
        function()
    return counter.count


def compare(what: str, ours: Callable[[], Any], theirs: Callable[[], Any], *, repeats: int) -> Row:
    """Run both in turn: medians, the median ratio, and the largest difference of the results."""
    difference = float((torch.as_tensor(ours()) - torch.as_tensor(theirs())).abs().max())
    bound = operations(theirs) / operations(ours)
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(repeats):
        for name, function in (("ours", ours), ("theirs", theirs)):
            gc.collect()
            start = time.process_time()
            function()
            times[name].append(time.process_time() - start)
    ratio = statistics.median(b / a for a, b in zip(*times.values(), strict=True))
    fast, slow = statistics.median(times["ours"]), statistics.median(times["theirs"])
    return Row(what, ratio, fast, slow, f"{bound:.1f}x in products", difference)


def pair(length: int) -> mi.Contrast:
    """Random prompts of one pair."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(1, VOCABULARY - 1, (1, length), generator=generator)
    corrupted = (clean + 1).index_fill(1, torch.tensor([0]), 0)
    clean[:, 0] = 0
    return mi.Contrast(
        clean_tokens=clean,
        corrupted_tokens=corrupted,
        answers=torch.tensor([7]),
        foils=torch.tensor([11]),
    )


def difference(logits: torch.Tensor, contrast: mi.Contrast) -> torch.Tensor:
    """Logit difference at the last position, summed."""
    last = logits[:, -1]
    return (
        last.gather(1, contrast.answers[:, None]) - last.gather(1, contrast.foils[:, None])
    ).sum()


def library_nodes(model: Any, contrast: mi.Contrast) -> torch.Tensor:
    """The library's demo: cache one run, cache and back-propagate the other, by hooks."""
    names = [Site(name, layer).hook_name for layer in range(model.cfg.n_layers) for name in SITES]
    with torch.no_grad():
        _, clean = model.run_with_cache(contrast.clean_tokens, names_filter=names)
    acts, grads = {}, {}
    forward = lambda x, hook: acts.__setitem__(hook.name, x.detach())
    backward = lambda x, hook: grads.__setitem__(hook.name, x.detach())
    with model.hooks([(n, forward) for n in names], [(n, backward) for n in names]):
        difference(model(contrast.corrupted_tokens), contrast).backward()
    model.zero_grad(set_to_none=True)
    products = {n: (clean[n] - acts[n]) * grads[n] for n in names}
    z = [products[Site("z", layer).hook_name].sum(-1)[0].T for layer in range(model.cfg.n_layers)]
    return torch.stack(z)


def bare_body(body: Any, head: torch.Tensor, contrast: mi.Contrast) -> torch.Tensor:
    """Two forwards and one backward to the embeddings; no hooks, two columns of the unembedding."""
    with torch.no_grad():
        body(contrast.clean_tokens)
    embedded = body.get_input_embeddings()(contrast.corrupted_tokens).detach().requires_grad_()
    last = body(inputs_embeds=embedded).last_hidden_state[:, -1]
    value = (last @ (head[contrast.answers] - head[contrast.foils]).T).sum()
    return torch.autograd.grad(value, embedded)[0]


def package_edges(model: Any, contrast: mi.Contrast) -> torch.Tensor:
    """As the EAP-IG package does it: a tensor of changes, and a product in each backward hook."""
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    shape = (1, contrast.length, 1 + n_layers * (n_heads + 1), model.cfg.d_model)
    change = torch.zeros(shape)
    scores = torch.zeros(shape[2], n_layers * (3 * n_heads + 1) + 1)
    forward, corrupt, backward = [], [], []

    def note(index: Any, sign: int) -> Any:
        def hook(x: torch.Tensor, hook: Any = None) -> None:
            change[:, :, index] += sign * x.detach()

        return hook

    def score(index: Any, heard: int) -> Any:
        def hook(x: torch.Tensor, hook: Any = None) -> None:
            x = x.detach() if x.ndim == 4 else x.detach()[:, :, None]
            scores[:heard, index] += torch.einsum("bpsd,bprd->sr", change[:, :, :heard], x)

        return hook

    def sender(name: str, index: Any) -> None:
        forward.append((name, note(index, 1)))
        corrupt.append((name, note(index, -1)))

    sender("hook_embed", 0)
    for layer in range(n_layers):
        heard, at = 1 + layer * (n_heads + 1), layer * (3 * n_heads + 1)
        sender(f"blocks.{layer}.attn.hook_result", slice(heard, heard + n_heads))
        sender(f"blocks.{layer}.hook_mlp_out", heard + n_heads)
        for i, letter in enumerate("qkv"):
            where = slice(at + i * n_heads, at + (i + 1) * n_heads)
            backward.append((f"blocks.{layer}.hook_{letter}_input", score(where, heard)))
        where = slice(at + 3 * n_heads, at + 3 * n_heads + 1)
        backward.append((f"blocks.{layer}.hook_mlp_in", score(where, heard)))
    backward.append((f"blocks.{n_layers - 1}.hook_resid_post", score(slice(-1, None), shape[2])))
    with torch.no_grad(), model.hooks(forward):
        model(contrast.clean_tokens)
    with model.hooks(corrupt, backward):
        difference(model(contrast.corrupted_tokens), contrast).backward()
    model.zero_grad(set_to_none=True)
    return scores


def library_edges(model: Any, contrast: mi.Contrast) -> torch.Tensor:
    """TransformerLens 4.3's own; its sum over edges at each position is not collected."""
    from transformer_lens.tools.analysis.attribution_patching import (
        EdgeAttributionConfig,
        attribution_patch,
    )

    attribution_patch(
        model,
        contrast.clean_tokens,
        contrast.corrupted_tokens,
        lambda logits: difference(logits, contrast),
        EdgeAttributionConfig(granularity="edge"),
    )
    return torch.zeros(())


def node_rows(model: Any, path: Path, contrast: mi.Contrast, repeats: int) -> list[Row]:
    """All sites of all layers."""
    body: Any = GPTNeoXForCausalLM.from_pretrained(path).eval().requires_grad_(False)
    ours = lambda: attribution_patch(model, contrast, sites=SITES)
    sizes = f"{model.cfg.n_layers} layers, {len(SITES)} sites"
    rows = [
        compare(
            f"attribution of {sizes}, against two forwards and a backward of the bare body",
            lambda: ours().z.values.sum() * 0,
            lambda: (
                bare_body(body.gpt_neox, body.get_output_embeddings().weight, contrast).sum() * 0
            ),
            repeats=2 * repeats,
        )
    ]
    if type(model).__name__ == "HookedTransformer":
        theirs = lambda: library_nodes(model, contrast)
        what = f"attribution of {sizes}, against the library's recipe"
        z = lambda: ours().z.values[..., 0]
        rows.append(compare(what, z, theirs, repeats=repeats))
    return rows


def edge_rows(model: Any, contrast: mi.Contrast, repeats: int) -> list[Row]:
    """All edges."""
    ours = lambda: edge_attribution(model, contrast).estimate.fillna(0).values[..., 0]
    if type(model).__name__ == "HookedTransformer":
        for flag in ("attn_result", "split_qkv_input", "hook_mlp_in"):
            getattr(model, f"set_use_{flag}")(True)
        what, theirs = "edges, against the EAP-IG package's way", package_edges
    else:
        what, theirs = "edges, against the library's own attribution_patch", library_edges
        ours = lambda: edge_attribution(model, contrast).estimate.fillna(0).values.sum() * 0
    try:
        return [compare(what, ours, lambda: theirs(model, contrast), repeats=repeats)]
    except NotImplementedError as error:
        print(f"  {what}: {error}")
        return []


def rows(model: Any, path: Path, length: int, repeats: int) -> list[Row]:
    """Everything that is compared, for one model."""
    contrast = pair(length)
    return [*node_rows(model, path, contrast, repeats), *edge_rows(model, contrast, repeats)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="70m")
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5, help="medians of so many")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, T={options.length}")
    with tempfile.TemporaryDirectory() as root:
        path = directory(options.shape, Path(root))
        for backend in ("hooked", "bridge"):
            try:
                model = mi.load_model(path, backend=backend)
            except ValueError as error:
                print(f"{backend}: {error}")
                continue
            print(f"{options.shape}, {type(model).__name__}")
            for row in rows(model, path, options.length, options.repeats):
                print(
                    f"  {row.ratio:6.2f}x  {row.what}: {row.ours * 1e3:.0f} ms against "
                    f"{row.theirs * 1e3:.0f} ms; bound: {row.bound}; difference {row.error:.0e}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
