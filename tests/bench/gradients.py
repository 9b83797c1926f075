"""Speed of gradients against the library's recipes and a bare Hugging Face body.

Processor time of one thread, so that a busy machine counts for
little; medians over runs in turn; random weights of a Pythia shape; one pair of prompts that differ
at every position after the first, which favours nobody. The bound is the ratio of floating-point
operations in matrix products, counted as they run.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rows import VOCABULARY, Row, Setting, compare, directory
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers import GPTNeoXForCausalLM

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


def counted(what: str, ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int) -> Row:
    """Processor times of both, with the ratio of their products."""
    for _ in range(2):  # what is made and checked once is not counted
        ours(), theirs()
    bound = f"{operations(theirs) / operations(ours):.2g}x in products"
    return compare(what, ours, theirs, repeats=repeats, bound=bound, clock=time.process_time)


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


def bare_body(body: Any, head: torch.Tensor, contrast: mi.Contrast) -> None:
    """Two forwards and one backward to the embeddings; no hooks, two columns of the unembedding."""
    with torch.no_grad():
        body(contrast.clean_tokens)
    embedded = body.get_input_embeddings()(contrast.corrupted_tokens).detach().requires_grad_()
    last = body(inputs_embeds=embedded).last_hidden_state[:, -1]
    value = (last @ (head[contrast.answers] - head[contrast.foils]).T).sum()
    torch.autograd.grad(value, embedded)


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


def library_edges(model: Any, contrast: mi.Contrast) -> None:
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


def node_rows(model: Any, path: Path, contrast: mi.Contrast, repeats: int) -> list[Row]:
    """All sites of all layers."""
    body: Any = GPTNeoXForCausalLM.from_pretrained(path).eval().requires_grad_(False)
    ours = lambda: attribution_patch(model, contrast, sites=SITES)
    sizes = f"{model.cfg.n_layers} layers, {len(SITES)} sites"
    rows = [
        counted(
            f"attribution of {sizes}, against two forwards and a backward of the bare body",
            lambda: ours().z.values,
            lambda: bare_body(body.gpt_neox, body.get_output_embeddings().weight, contrast),
            2 * repeats,
        )
    ]
    if type(model).__name__ == "HookedTransformer":
        theirs = lambda: library_nodes(model, contrast)
        what = f"attribution of {sizes}, against the library's recipe"
        z = lambda: ours().z.values[..., 0]
        rows.append(counted(what, z, theirs, repeats))
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
    try:
        return [counted(what, ours, lambda: theirs(model, contrast), repeats)]
    except NotImplementedError as error:
        print(f"  {what}: {error}")
        return []


def measured(setting: Setting) -> Iterator[Row]:
    """Nodes and edges of both classes, on one thread of the processor."""
    torch.set_num_threads(1)
    path, contrast = directory(setting.shape, setting.root), pair(8 if setting.small else 64)
    for backend in ("hooked", "bridge"):
        try:
            model = mi.load_model(path, backend=backend)
        except ValueError:  # TransformerLens 4 has one class
            continue
        for part in (partial(node_rows, model, path), partial(edge_rows, model)):
            for row in part(contrast, setting.repeats):
                yield replace(row, work=f"{setting.shape}, {backend}: {row.work}")
