"""A forward pass that can be sent to another process: numbers only, no hooks."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from mlp_interp.models.forward import Forward, Projections
from mlp_interp.models.unembed import check_readout

__all__ = ["portable"]

_CONFIG = (
    *("model_name", "normalization_type", "n_layers", "n_heads", "d_model", "d_head", "d_mlp"),
    *("n_ctx", "eps", "act_fn", "parallel_attn_mlp", "positional_embedding_type"),
    *("use_attn_scale", "attn_scale", "gated_mlp", "attn_only"),
)


@dataclass(frozen=True)
class _Attention:
    """What analyses read of a block's heads, out of the matrices that the pass has already."""

    block: Projections
    by_rows: bool
    n_heads: int
    rotary_cos: Tensor | None = None
    rotary_sin: Tensor | None = None
    W_O = property(
        lambda self: _laid_out(self.block.out, self.by_rows).unflatten(0, (self.n_heads, -1))
    )
    b_O = property(lambda self: self.block.out_bias)


@dataclass(frozen=True)
class _MLP:
    """The same of its neurons."""

    block: Projections
    by_rows: bool
    W_in = property(lambda self: self.block.mlp_in.T)
    W_out = property(lambda self: _laid_out(self.block.mlp_out, self.by_rows))
    b_out = property(lambda self: self.block.mlp_out_bias)


def _laid_out(matrix: Tensor, by_rows: bool) -> Tensor:
    """Turned around, laid out in memory as the model has it, lest products round differently."""
    return matrix.T.contiguous() if by_rows else matrix.T


class _Model:
    """Looks like a model as far as `Weights` reads one."""

    def __init__(self, **numbers: Any) -> None:
        vars(self).update(numbers)


@torch.no_grad()
def portable(forward: Forward, device: str | torch.device | None = None) -> Forward:
    """The same forward pass on weights of its own, which pickle can take.

    Models of TransformerLens hold closures (`TransformerBridge`) and much that a forward pass does
    not need. What comes back has embeddings, folded blocks with the matrices that write to the
    stream, rotary tables and the readout; it gives the same numbers to the last bit on the same
    kind of processor.

    Args:
        forward: A lean forward pass.
        device: Where to put it; None leaves it where it is. Elsewhere it is a copy.

    Raises:
        ValueError: The model's logits are not those of its folded readout.
    """
    weights = forward.weights
    check_readout(weights)  # the copy, which has no forward pass of its own, is taken at its word
    target = weights.device if device is None else torch.device(device)
    numbers: dict[str, Any] = {
        "W_E": weights.W_E.to(target),
        "W_U": weights.W_U.to(target),
        "b_U": weights.b_U.to(target),
        "ln_final": SimpleNamespace(
            w=weights.ln_final.w.to(target), b=weights.ln_final.b.to(target)
        ),
    }
    if weights.has_pos_embed:
        numbers["pos_embed"] = SimpleNamespace(W_pos=weights.W_pos.to(target))
    cfg = weights.model.cfg
    config = SimpleNamespace(**{name: getattr(cfg, name) for name in _CONFIG})
    config.output_logits_soft_cap = weights.cap
    config.n_key_value_heads = weights.n_kv_heads
    config.uses_rms_norm = weights.norm.kind == "rms"
    config.final_rms = weights.final_norm != weights.norm
    blocks = [block.to(target) for block in forward.blocks]
    tables = _rotary_tables(forward, target)
    parts = []
    for layer, block in enumerate(blocks):
        heads, mlp = (weights.parameter(layer, n).is_contiguous() for n in ("W_O", "W_out"))
        attention = _Attention(block, heads, weights.n_heads, **tables)
        parts.append(SimpleNamespace(attn=attention, mlp=_MLP(block, mlp)))
    model: Any = _Model(cfg=config, blocks=parts, **numbers)
    return Forward(type(weights)(model), blocks)


def _rotary_tables(forward: Forward, device: torch.device) -> dict[str, Any]:
    """Cosines and sines of every position, as `Forward.rotary` reads them."""
    weights = forward.weights
    positions = torch.arange(int(weights.model.cfg.n_ctx), device=weights.device)
    rotary = forward.rotary(positions, like=weights.W_E)
    if rotary.cos is None or rotary.sin is None:
        return {}
    return {
        "rotary_cos": rotary.cos.squeeze(1).to(device),
        "rotary_sin": rotary.sin.squeeze(1).to(device),
    }
