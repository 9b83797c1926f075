"""Ablation and attribution against TransformerLens' own ways."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from importance import without
from rows import VOCABULARY, Row, Setting, compare, directory

import mlp_interp as mi
from mlp_interp.ablation import ablate_direct, ablate_total
from mlp_interp.sites import Site


@torch.no_grad()
def library_direct(model: Any, cache: Any, components: list[torch.Tensor]) -> torch.Tensor:
    """KL per component and position as one writes it with the library's own modules."""
    last = cache[Site("resid_post", model.cfg.n_layers - 1).hook_name]
    clean = model.unembed(model.ln_final(last)).log_softmax(-1)
    rows = []
    for component in components:
        ablated = model.unembed(model.ln_final(last - component + without(component)))
        ablated = ablated.log_softmax(-1)
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
            hook = (Site(name, layer).hook_name, without)
            ablated = model.run_with_hooks(tokens, fwd_hooks=[hook]).log_softmax(-1)
            rows.append((clean.exp() * (clean - ablated)).sum(-1))
    return torch.stack(rows)


@torch.no_grad()
def library_total_neurons(
    model: Any, tokens: torch.Tensor, layer: int, neurons: range
) -> torch.Tensor:
    """Mean KL of removing each neuron by a hook, a whole forward pass each."""
    clean = model(tokens).log_softmax(-1)
    rows = []
    for neuron in neurons:

        def hook(x: torch.Tensor, hook: Any = None, neuron: int = neuron) -> torch.Tensor:
            x[:, 1:, neuron] = 0
            return x

        hooks = [(Site("post", layer).hook_name, hook)]
        ablated = model.run_with_hooks(tokens, fwd_hooks=hooks).log_softmax(-1)
        rows.append((clean.exp() * (clean - ablated)).sum(-1)[:, 1:].mean())
    return torch.stack(rows)


@torch.no_grad()
def library_attribution(model: Any, cache: Any, token: int) -> torch.Tensor:
    """Every neuron's share of one logit at the last position, as the library stacks them."""
    direction = model.W_U[:, token]
    stacked = cache.stack_neuron_results(layer=-1, pos_slice=-1)
    scaled = cache.apply_ln_to_stack(stacked, layer=-1, pos_slice=-1)
    return (scaled @ direction)[:, 0]


def attribution(model: Any, tokens: torch.Tensor, cache: Any, repeats: int) -> Iterator[Row]:
    """All neurons of all layers for one logit at one position: against a forward, the library."""
    last = torch.tensor([7])
    kept = mi.cache_for(model, tokens, level="neuron")

    def ours() -> torch.Tensor:
        shares = mi.attribute_logits(model, kept, last, level="neuron", positions=-1)
        shares = shares if "pos" not in shares.dims else shares.isel(pos=0)
        return torch.tensor(shares.sel(component=shares.kind == "neuron").values[0])

    def forward() -> None:
        with torch.no_grad():
            model(tokens)

    bound = "reads each activation and value vector once"
    yield compare(
        "attribution of one logit to every neuron, against one forward pass",
        ours,
        forward,
        repeats=4 * repeats,
        bound=bound,
        bar=33,
    )
    if hasattr(cache, "stack_neuron_results"):
        yield compare(
            "attribution of one logit to every neuron, against stack_neuron_results",
            ours,
            lambda: library_attribution(model, cache, 7),
            repeats=repeats,
            bound=bound,
        )


def comparisons(model: Any, tokens: torch.Tensor, repeats: int) -> Iterator[Row]:
    """Everything that is compared, for one model."""
    n_layers = model.cfg.n_layers
    _, cache = model.run_with_cache(tokens)
    subupdates = [
        cache[Site(name, layer).hook_name]
        for layer in range(n_layers)
        for name in ("attn_out", "mlp_out")
    ]
    last = n_layers - 1
    neurons = [f"L{last}N{n}" for n in range(model.cfg.d_mlp)]

    def every_neuron() -> torch.Tensor:
        return torch.cat([library_neurons(model, cache, layer, -1) for layer in range(n_layers)])

    yield from attribution(model, tokens, cache, repeats)
    yield compare(
        f"direct ablation, {2 * n_layers} sub-updates at {tokens.shape[1]} positions",
        lambda: ablate_direct(model, cache).kl.values,
        lambda: library_direct(model, cache, subupdates),
        repeats=repeats,
        bound="equal unembeddings",
    )
    yield compare(
        f"total ablation, {2 * n_layers} sub-updates",
        lambda: ablate_total(model, tokens).kl.values,
        lambda: library_total(model, tokens),
        repeats=repeats,
        bound="equal unembeddings, half the blocks",
    )
    middle, some = n_layers // 3, range(0, model.cfg.d_mlp, model.cfg.d_mlp // 64)
    yield compare(
        f"total effect of {len(some)} neurons of layer {middle}, one pass each",
        lambda: ablate_total(model, tokens, [f"L{middle}N{n}" for n in some]).kl_mean.values,
        lambda: library_total_neurons(model, tokens, middle, some[::16]),
        repeats=repeats,
        every=16,
        bound="equal unembeddings, half the blocks",
    )
    yield compare(
        f"every neuron of layer {last} at the last position, exact",
        lambda: ablate_direct(model, cache, neurons, positions=-1).kl.values[:, 0, 0],
        lambda: library_neurons(model, cache, last, -1),
        repeats=repeats,
        bound="equal products",
    )
    yield compare(
        f"all {n_layers * model.cfg.d_mlp} neurons at the last position, second order",
        lambda: (
            ablate_direct(model, cache, "neuron", positions=-1, method="second_order").kl.values
        )[:, 0, 0],
        every_neuron,
        repeats=1,
        bound=f"{model.cfg.d_mlp * n_layers / model.cfg.d_model:.0f}x in products",
    )


def measured(setting: Setting) -> Iterator[Row]:
    """Everything that is compared, on both classes."""
    path = directory(setting.shape, setting.root)
    for backend in ("hooked", "bridge"):
        try:
            model = mi.load_model(path, backend=backend, device=setting.device)
        except ValueError:  # TransformerLens 4 has one class
            continue
        shape = (1, 8 if setting.small else 64)
        tokens = torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(0))
        for row in comparisons(model, tokens.to(setting.device), setting.repeats):
            yield replace(row, work=f"{setting.shape}, {backend}: {row.work}")
