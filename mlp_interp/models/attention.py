"""What of a model's attention the package computes itself, and what it refuses by name."""

from typing import Any

from mlp_interp.models.weights import Weights

__all__ = ["attention_scale", "attention_unsupported"]


def attention_scale(weights: Weights) -> float:
    """What attention scores are multiplied by, as a rule one over the root of ``d_head``."""
    cfg = weights.model.cfg
    if not cfg.use_attn_scale:
        return 1.0
    # TransformerLens writes -1 for "the usual square root".
    return 1.0 / (cfg.attn_scale if cfg.attn_scale > 0 else weights.d_head**0.5)


def attention_unsupported(weights: Weights) -> str | None:
    """What a model's attention has that scores from queries and keys leave out, or None."""
    cfg = weights.model.cfg
    reasons = {
        "has local attention": cfg.use_local_attn or _window(weights) is not None,
        "scales attention by layer": cfg.scale_attn_by_inverse_layer_idx,
        f"has positions of type {cfg.positional_embedding_type!r}": (
            cfg.positional_embedding_type not in ("rotary", "standard")
        ),
        # The bridge, which keeps Hugging Face's tables, says so of models that do not.
        "rotates adjacent pairs": (
            cfg.rotary_adjacent_pairs and not hasattr(weights.model, "rotary_emb")
        ),
        "caps attention scores": cfg.attn_scores_soft_cap > 0,
        "attends in both directions": cfg.attention_dir != "causal",
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _window(weights: Weights) -> int | None:
    """How many tokens back some layer attends, where that is less than the context."""
    source: Any = getattr(weights.model, "original_model", None)
    window = getattr(getattr(source, "config", None), "sliding_window", None)
    return window if window is not None and window < int(weights.model.cfg.n_ctx) else None
