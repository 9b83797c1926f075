"""A lean forward pass over a model's weights that can start at any layer.

TransformerLens' own forward passes through every hook point, and `TransformerBridge` cannot start
at a layer. An analysis that runs the upper half of a network hundreds of times needs neither cost:
this pass reads the weights once (LayerNorm scales folded into the projections that follow them),
and computes what the model computes. `Forward.of` compares the two on a few tokens before it is
used, so a model with a feature that is not implemented here is refused instead of being wrong.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mlp_interp.models.probe import probe_tokens
from mlp_interp.models.protocol import Model
from mlp_interp.models.rotary import Rotary
from mlp_interp.models.weights import Affine, Weights
from mlp_interp.sites import Site

__all__ = ["Forward", "KVCache", "Observer", "UnsupportedModel", "keep"]

Observer = Callable[[str, int, Tensor], Tensor]
"""Sees each activation as ``(site name, layer, activation)``; gives back what goes on instead."""

_gelu_tanh = partial(F.gelu, approximate="tanh")
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": F.relu,
}


class UnsupportedModel(ValueError):
    """The lean forward does not compute what this model computes; run the model itself."""


@dataclass(frozen=True)
class Projections:
    """One block's matrices in `F.linear` layout, LayerNorm scale and shift folded in."""

    qkv: Tensor
    qkv_bias: Tensor
    out: Tensor
    out_bias: Tensor
    mlp_in: Tensor
    mlp_in_bias: Tensor
    mlp_out: Tensor
    mlp_out_bias: Tensor


def keep(_name: str, _layer: int, x: Tensor) -> Tensor:
    """The observer that changes nothing."""
    return x


class KVCache:
    """Keys (rotated) and values of the positions that have been run, for `Forward.run` to extend.

    Each pass adds the positions it is given after those that are there, so a text can be run token
    by token, with edits of earlier positions in force as they were when those were run.
    """

    def __init__(self) -> None:
        """Start with no positions."""
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def length(self) -> int:
        """How many positions it holds."""
        return next((keys.shape[1] for keys, _ in self._layers.values()), 0)

    def extend(
        self,
        layer: int,
        keys: Float[Tensor, "batch pos head d_head"],
        values: Float[Tensor, "batch pos head d_head"],
    ) -> tuple[
        Float[Tensor, "batch all_pos head d_head"], Float[Tensor, "batch all_pos head d_head"]
    ]:
        """Add positions to a layer; give all of its keys and values back."""
        if layer in self._layers:
            earlier = self._layers[layer]
            keys, values = torch.cat((earlier[0], keys), 1), torch.cat((earlier[1], values), 1)
        self._layers[layer] = keys, values
        return keys, values


class Forward:
    """The residual stream of a model, computed block by block from its weights.

    Example:
        >>> import torch
        >>> from mlp_interp import load_model
        >>> model = load_model("nano")
        >>> forward, tokens = Forward.of(model), torch.tensor([[0, 5, 6]])
        >>> middle = forward.run(forward.embed(tokens), stop=2)
        >>> final = forward.run(middle, start=2)
        >>> bool(torch.allclose(final, forward.run(forward.embed(tokens)), atol=1e-5))
        True
    """

    engine = "lean"

    def __init__(self, weights: Weights, blocks: Sequence[Projections] | None = None) -> None:
        """Read the weights; `Forward.of` also checks them against the model.

        Args:
            weights: The model's weights.
            blocks: Its blocks as `Forward.blocks` gave them before, if they are known.
        """
        self.weights = weights
        self._scale = _attention_scale(weights)
        self._act = _ACTIVATIONS[weights.model.cfg.act_fn]
        if blocks is None:
            blocks = [self._projections(layer) for layer in range(weights.n_layers)]
        self.blocks = tuple(blocks)

    @classmethod
    def of(cls, model: Model) -> "Forward":
        """Read a model's weights and check on 64 tokens that the result is the model's own.

        Raises:
            UnsupportedModel: The model has a feature that is not implemented here, or its own
                forward gives other numbers.
        """
        weights = Weights.of(model)
        if reason := _unsupported(weights):
            raise UnsupportedModel(f"model={model.cfg.model_name!r} {reason}")
        try:
            forward = cls(weights)
            forward._compare_with_model()
        except (AttributeError, RuntimeError) as error:
            raise UnsupportedModel(f"model={model.cfg.model_name!r}: {error}") from error
        return forward

    def embed(
        self, tokens: Int[Tensor, "batch pos"], *, first: int = 0, observe: Observer = keep
    ) -> Float[Tensor, "batch pos d_model"]:
        """The stream before the first block.

        Args:
            tokens: Token ids.
            first: Position of the first of them.
            observe: Called on ``embed``, as if it were of layer 0.
        """
        embedded = F.embedding(tokens.to(self.weights.W_E.device), self.weights.W_E)
        embedded = observe("embed", 0, embedded)
        if self.weights.has_pos_embed:
            embedded = embedded + self.weights.W_pos[first : first + tokens.shape[1]]
        return embedded

    def run(
        self,
        resid: Float[Tensor, "batch pos d_model"],
        *,
        start: int = 0,
        stop: int | None = None,
        observe: Observer = keep,
        patterns: Collection[int] = (),
        kv_cache: KVCache | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """Run blocks ``start`` to ``stop`` (not included) on the stream that enters ``start``.

        Args:
            resid: The stream at the input of block `start`. It is not changed.
            start: First block to run.
            stop: Block before which to stop; None runs all.
            observe: Called on ``resid_pre``, ``q``, ``k``, ``v`` (before the rotary embedding),
                ``z``, ``attn_out``, ``pre``, ``post``, ``mlp_out`` and ``resid_post`` of every
                block; of a parallel block on the MLP's before the attention's. What it returns is
                what the block goes on with, so it can both record and edit.
            patterns: Layers whose attention pattern ``[batch, head, pos, source pos]`` is shown
                too, as ``pattern``: it is computed as a matrix there, and only there.
            kv_cache: Positions that were run before those of `resid`. It is extended.

        Returns:
            The stream at the input of block `stop`.
        """
        first = kv_cache.length if kv_cache else 0
        positions = torch.arange(first, first + resid.shape[1], device=resid.device)
        rotary = self.rotary(positions, like=resid)
        for layer in range(start, self.weights.n_layers if stop is None else stop):
            resid = self._block(layer, resid, rotary, observe, layer in patterns, kv_cache)
        return resid

    @property
    def attention_scale(self) -> float:
        """What attention scores are multiplied by, as a rule one over the root of ``d_head``."""
        return self._scale

    def projections(self, layer: int) -> Projections:
        """One block's matrices, its LayerNorms' scales and shifts folded in."""
        return self.blocks[layer]

    def normalize(self, resid: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_model"]:
        """What every block's folded matrices read: the stream, centred and at unit variance."""
        return F.layer_norm(resid, (resid.shape[-1],), eps=self.weights.eps)

    def activate(self, pre: Float[Tensor, "*rest d_mlp"]) -> Float[Tensor, "*rest d_mlp"]:
        """The MLPs' nonlinearity."""
        return self._act(pre)

    def heads(
        self, layer: int, normalized: Float[Tensor, "*rest d_model"]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ``[*rest, head, d_head]``, before the rotary embedding."""
        p, weights = self.blocks[layer], self.weights
        qkv = F.linear(normalized, p.qkv, p.qkv_bias)
        q, k, v = qkv.unflatten(-1, (3, weights.n_heads, weights.d_head)).unbind(-3)
        return q, k, v

    def mix(
        self,
        q: Float[Tensor, "batch query head d_head"],
        k: Float[Tensor, "batch pos head d_head"],
        v: Float[Tensor, "batch pos head d_head"],
        *,
        mask: Bool[Tensor, "query pos"] | None = None,
    ) -> Float[Tensor, "batch query head d_head"]:
        """Each head's `z`: values mixed by how rotated queries attend to rotated keys.

        Args:
            q: Queries.
            k: Keys.
            v: Values.
            mask: Which keys each query reads; None where both are of the same positions, in order.
        """
        z = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=mask,
            is_causal=mask is None,
            scale=self._scale,
        )
        return z.transpose(1, 2)

    def scores(
        self,
        q: Float[Tensor, "batch query head d_head"],
        k: Float[Tensor, "batch pos head d_head"],
    ) -> Float[Tensor, "batch head query pos"]:
        """Attention scores of rotated queries, which come last, and keys; -inf on later keys."""
        scores = q.transpose(1, 2) @ k.permute(0, 2, 3, 1) * self._scale
        return scores.masked_fill(~_causal(q, k), -torch.inf)

    def mlp(self, layer: int, resid: Float[Tensor, "*rest d_model"]) -> Tensor:
        """What a block's MLP writes when it reads the stream `resid`."""
        return self._mlp(layer, self.normalize(resid), keep)

    def rotary(self, positions: Int[Tensor, " row"], like: Tensor) -> Rotary:
        """The rotary embedding at these positions, in the data type and on the device of `like`."""
        model = self.weights.model
        if model.cfg.positional_embedding_type != "rotary":
            return Rotary()
        if hasattr(model, "rotary_emb"):  # TransformerBridge keeps Hugging Face's module
            cos, sin = model.rotary_emb._original_component(like, positions[None])
            return Rotary(cos[0, :, None], sin[0, :, None])
        attn = model.blocks[0].attn
        cos, sin = (
            table.to(positions.device)[positions, None].to(like)
            for table in (attn.rotary_cos, attn.rotary_sin)
        )
        return Rotary(cos, sin)

    def _block(
        self,
        layer: int,
        resid: Tensor,
        rotary: Rotary,
        observe: Observer,
        pattern: bool = False,
        kv_cache: KVCache | None = None,
    ) -> Tensor:
        resid = observe("resid_pre", layer, resid)
        normalized = self.normalize(resid)
        if self.weights.parallel:
            # The MLP first: who looks at no more than what it reads can stop before the attention.
            mlp_out = self._mlp(layer, normalized, observe)
            attn_out = self._attention(layer, normalized, rotary, observe, pattern, kv_cache)
            resid = resid + attn_out + mlp_out
        else:
            resid = resid + self._attention(layer, normalized, rotary, observe, pattern, kv_cache)
            resid = resid + self._mlp(layer, self.normalize(resid), observe)
        return observe("resid_post", layer, resid)

    def _attention(
        self,
        layer: int,
        normalized: Tensor,
        rotary: Rotary,
        observe: Observer,
        pattern: bool,
        kv_cache: KVCache | None,
    ) -> Tensor:
        p = self.blocks[layer]
        q, k, v = self.heads(layer, normalized)
        q, k, v = observe("q", layer, q), observe("k", layer, k), observe("v", layer, v)
        q, k = rotary(q), rotary(k)
        if kv_cache is not None:
            k, v = kv_cache.extend(layer, k, v)
        if pattern:
            weights = observe("pattern", layer, self.scores(q, k).softmax(-1))
            z = (weights @ v.transpose(1, 2)).transpose(1, 2)
        else:
            z = self.mix(q, k, v, mask=None if q.shape[1] == k.shape[1] else _causal(q, k))
        z = observe("z", layer, z)
        return observe("attn_out", layer, F.linear(z.flatten(2), p.out, p.out_bias))

    def _mlp(self, layer: int, normalized: Tensor, observe: Observer) -> Tensor:
        p = self.blocks[layer]
        pre = observe("pre", layer, F.linear(normalized, p.mlp_in, p.mlp_in_bias))
        post = observe("post", layer, self._act(pre))
        return observe("mlp_out", layer, F.linear(post, p.mlp_out, p.mlp_out_bias))

    def _projections(self, layer: int) -> Projections:
        b = self.weights.block(layer)
        qkv = rearrange([b.W_Q, b.W_K, b.W_V], "qkv head d d_head -> d (qkv head d_head)")
        qkv_bias = torch.stack([b.b_Q, b.b_K, b.b_V]).flatten()
        qkv, qkv_bias = _fold(b.ln1, qkv, qkv_bias)
        mlp_in, mlp_in_bias = _fold(b.ln2, b.W_in, b.b_in)
        return Projections(
            qkv=qkv,
            qkv_bias=qkv_bias,
            out=rearrange(b.W_O, "head d_head d_model -> d_model (head d_head)").contiguous(),
            out_bias=b.b_O,
            mlp_in=mlp_in,
            mlp_in_bias=mlp_in_bias,
            mlp_out=b.W_out.T.contiguous(),
            mlp_out_bias=b.b_out,
        )

    @torch.no_grad()
    def _compare_with_model(self) -> None:
        model = self.weights.model
        tokens = probe_tokens(self.weights)
        name = Site("resid_post", self.weights.n_layers - 1).hook_name
        _, cache = model.run_with_cache(tokens, names_filter=[name])
        theirs, ours = cache[name], self.run(self.embed(tokens))
        # NaN weights make NaN streams in both; that is for check_model to say, not a mismatch here.
        # Each position by its own norm: in trained models one may be a hundred times the others.
        apart = (theirs - ours).nan_to_num().norm(dim=-1)
        error = (apart / theirs.nan_to_num().norm(dim=-1).clamp_min(1e-12)).max()
        tolerance = 1e-4 if self.weights.dtype in (torch.float32, torch.float64) else 5e-2
        if error > tolerance:
            raise UnsupportedModel(
                f"model={model.cfg.model_name!r}: the lean forward differs from the model's own by "
                f"{float(error):.1e} of the stream; wanted at most {tolerance:.0e}"
            )


def _fold(norm: Affine, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Weight in `F.linear` layout and bias that take a LayerNorm's scale and shift in."""
    return (norm.w[:, None] * weight).T.contiguous(), norm.b @ weight + bias


def _causal(q: Tensor, k: Tensor) -> Tensor:
    """Which keys each query reads, ``[query, key]``; the queries are the last positions."""
    queries, keys = q.shape[1], k.shape[1]
    every = torch.ones(queries, keys, dtype=torch.bool, device=q.device)
    return every.tril(keys - queries)


def _attention_scale(weights: Weights) -> float:
    cfg = weights.model.cfg
    if not cfg.use_attn_scale:
        return 1.0
    # TransformerLens writes -1 for "the usual square root".
    return 1.0 / (cfg.attn_scale if cfg.attn_scale > 0 else weights.d_head**0.5)


def _unsupported(weights: Weights) -> str | None:
    """Why the lean forward cannot stand in for this model, or None."""
    cfg = weights.model.cfg
    kv_heads = getattr(cfg, "n_key_value_heads", None) or cfg.n_heads
    reasons = {
        "has gated MLPs": cfg.gated_mlp,
        f"has activation {cfg.act_fn!r}": cfg.act_fn not in _ACTIVATIONS,
        "has mixture-of-experts MLPs": bool(cfg.num_experts),
        "has grouped key/value heads": kv_heads != cfg.n_heads,
        "has local attention": cfg.use_local_attn,
        "scales attention by layer": cfg.scale_attn_by_inverse_layer_idx,
        f"has positions of type {cfg.positional_embedding_type!r}": (
            cfg.positional_embedding_type not in ("rotary", "standard")
        ),
        "rotates adjacent pairs": cfg.rotary_adjacent_pairs,
        "caps attention scores": cfg.attn_scores_soft_cap > 0,
        "attends in both directions": cfg.attention_dir != "causal",
    }
    return next((reason for reason, holds in reasons.items() if holds), None)
