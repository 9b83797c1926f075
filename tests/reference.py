"""Slow references: plain library calls, one forward a question, float64; no fast path of ours.

Nothing here imports the package. Components are vectors, ablations are subtractions or hooks,
effects are differences of two log-softmaxes in float64.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def full_cache(model: Any, tokens: Tensor) -> Any:
    """Everything the library caches."""
    with torch.no_grad():
        return model.run_with_cache(tokens)[1]


def vectors(model: Any, cache: Any, level: str = "component", layers: int | None = None) -> dict:
    """What each component wrote, ``label -> [batch, pos, d_model]``, in the order of writing."""
    n_layers, n_heads, d_mlp = model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_mlp
    found = {"embed": cache["hook_embed"]}
    if model.cfg.positional_embedding_type == "standard":
        found["pos_embed"] = cache["hook_pos_embed"].expand_as(cache["hook_embed"])
    for layer in range(n_layers if layers is None else layers):
        block, name = model.blocks[layer], f"blocks.{layer}"
        like = torch.ones_like(cache["hook_embed"])
        if level == "component":
            found[f"{layer}.attn"] = cache[f"{name}.hook_attn_out"]
        else:
            z = cache[f"{name}.attn.hook_z"]
            for head in range(n_heads):
                found[f"L{layer}H{head}"] = z[:, :, head] @ block.attn.W_O[head]
            found[f"{layer}.b_O"] = like * _bias(block.attn.b_O)
        if level == "neuron":
            post = cache[f"{name}.mlp.hook_post"]
            for neuron in range(d_mlp):
                found[f"L{layer}N{neuron}"] = post[..., neuron, None] * block.mlp.W_out[neuron]
            found[f"{layer}.b_out"] = like * _bias(block.mlp.b_out)
        else:
            found[f"{layer}.mlp"] = cache[f"{name}.hook_mlp_out"]
    return {label: value.detach() for label, value in found.items()}


def _bias(found: Any) -> Any:
    """A bias that is not there is zero."""
    return 0.0 if found is None else found


def any_vector(model: Any, cache: Any, label: str) -> Tensor:
    """What one component of any level wrote."""
    for level in ("component", "head", "neuron"):
        found = vectors(model, cache, level)
        if label in found:
            return found[label]
    raise KeyError(label)


def final_stream(model: Any, cache: Any) -> Tensor:
    """The final residual stream."""
    return cache[f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"].detach()


def logits(model: Any, stream: Tensor) -> Tensor:
    """Logits through the model's own final modules."""
    with torch.no_grad():
        return model.unembed(model.ln_final(stream))


def scale(model: Any, stream: Tensor) -> Tensor:
    """What the final norm divides by, from its definition."""
    return (kept(model, stream).square().mean(-1, keepdim=True) + model.cfg.eps).sqrt()


def kept(model: Any, stream: Tensor) -> Tensor:
    """What a norm keeps of a vector: a LayerNorm takes the mean out, Llama's does not."""
    return stream if is_rms(model) else stream - stream.mean(-1, keepdim=True)


def is_rms(model: Any) -> bool:
    """Whether the model has Llama's norms; only one of the two classes has the flag."""
    return model.cfg.uses_rms_norm or "RMS" in str(model.cfg.normalization_type)


def frozen_logits(model: Any, stream: Tensor, clean: Tensor) -> Tensor:
    """Logits of `stream` with the final LayerNorm's scale held at that of `clean`."""
    norm = model.ln_final
    x = kept(model, stream) / scale(model, clean)
    w, b = getattr(norm, "w", None), getattr(norm, "b", None)
    x = x if w is None else x * w
    x = x if b is None else x + b
    return (x @ model.W_U + model.b_U).detach()


def effects(clean: Tensor, changed: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """KL, loss change and top-1 change per token, by their definitions in float64."""
    a, b = clean.double().log_softmax(-1), changed.double().log_softmax(-1)
    loss = torch.full(tokens.shape, torch.nan, dtype=torch.float64)
    following = tokens[:, 1:, None]
    loss[:, :-1] = (a - b)[:, :-1].gather(-1, following)[..., 0]
    return {
        "kl": (a.exp() * (a - b)).sum(-1),
        "delta_loss": loss,
        "top1_changed": (clean.argmax(-1) != changed.argmax(-1)).double(),
    }


def counted(tokens: Tensor, first: int = 1, bos: int = 0) -> list[list[int]]:
    """Positions of each row that count: from the first on, and no BOS unless all count."""
    return [
        [pos for pos, token in enumerate(row) if pos >= first and (first == 0 or token != bos)]
        for row in tokens.tolist()
    ]


def loss(clean: Tensor, tokens: Tensor, counted: list[list[int]] | None = None) -> Tensor:
    """Loss per sequence, nats per token, of predictions at positions that count; None for all."""
    counted = [[*range(len(row))] for row in tokens] if counted is None else counted
    found = []
    for logits, row, places in zip(clean.double(), tokens.tolist(), counted, strict=True):
        logs = logits.log_softmax(-1)
        losses = [-logs[pos, row[pos + 1]] for pos in places if pos + 1 < len(row)]
        found.append(torch.stack(losses).mean())
    return torch.stack(found)


def replacement(
    values: Tensor,
    baseline: str,
    counted: list[list[int]],
    donors: Sequence[int] | None = None,
) -> Tensor:
    """What stands in for an activation ``[batch, pos, ...]``: itself where nothing counts."""
    found = values.clone()
    places = [(row, pos) for row, chosen in enumerate(counted) for pos in chosen]
    mean = torch.stack([values[place] for place in places]).mean(0)
    for row, pos in places:
        if baseline == "resample":
            found[row, pos] = values[(donors or ())[row], pos]
        else:
            found[row, pos] = 0 if baseline == "zero" else mean
    return found


def hooked_logits(model: Any, tokens: Tensor, hooks: Mapping[str, Callable[..., Tensor]]) -> Tensor:
    """Logits of the library's own forward with hooks."""
    with torch.no_grad():
        return model.run_with_hooks(tokens, fwd_hooks=list(hooks.items()))


def ablating_hooks(
    model: Any,
    cache: Any,
    labels: Sequence[str],
    counted: list[list[int]],
    baseline: str = "zero",
    donors: Sequence[int] | None = None,
) -> dict[str, Callable[..., Tensor]]:
    """Hooks that replace components in the forward pass; several of one activation are merged."""
    chosen: dict[str, list[Any]] = {}
    for label in labels:
        name, unit = _place(label)
        chosen.setdefault(name, []).append(unit)
    return {
        name: _replacing(cache[name], units, counted, baseline, donors)
        for name, units in chosen.items()
    }


def _place(label: str) -> tuple[str, Any]:
    if label in ("embed", "pos_embed"):
        return f"hook_{label}", None
    if label.startswith("L"):
        kind = "H" if "H" in label else "N"
        layer, unit = label[1:].split(kind)
        inner = "attn.hook_z" if kind == "H" else "mlp.hook_post"
        return f"blocks.{layer}.{inner}", int(unit)
    layer, name = label.split(".")
    return f"blocks.{layer}.hook_{name}_out", None


def _replacing(
    clean: Tensor,
    units: list[Any],
    counted: list[list[int]],
    baseline: str,
    donors: Sequence[int] | None,
) -> Callable[..., Tensor]:
    new = replacement(clean.detach(), baseline, counted, donors)

    def hook(x: Tensor, hook: Any = None) -> Tensor:
        x = x.clone()
        for unit in units:
            for row, places in enumerate(counted):
                if unit is None:
                    x[row, places] = new[row, places]
                else:
                    x[row, places, unit] = new[row, places, unit]
        return x

    return hook


def assert_areas(
    areas: np.ndarray, values: np.ndarray, truth: np.ndarray, *, rounding: float = 1e-5
) -> None:
    """Areas are the shares of pairs ``[document, ...]`` in which a true document has more.

    Only pairs so near that rounding orders them may be told otherwise.
    """
    have, have_not = values[truth][:, None].astype(float), values[~truth][None].astype(float)
    more = (have > have_not) + 0.5 * (have == have_not)
    near = (np.abs(have - have_not) < rounding) & ((have != 0) | (have_not != 0))
    assert (np.abs(areas - more.mean((0, 1))) <= near.mean((0, 1)) + 1e-6).all()
    assert near.mean() < 0.01
