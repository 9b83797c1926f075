"""A lean forward pass over a model's weights that can start at any layer.

TransformerLens' own forward passes through every hook point, and `TransformerBridge` cannot start
at a layer. An analysis that runs the upper half of a network hundreds of times needs neither cost:
this pass reads the weights once (LayerNorm scales folded into the projections that follow them),
and computes what the model computes. `Forward.of` compares the two on a few tokens before it is
used, so a model with a feature that is not implemented here is refused instead of being wrong.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mlp_interp.models.attention import attention_scale as _attention_scale
from mlp_interp.models.attention import attention_unsupported
from mlp_interp.models.norm import Norm
from mlp_interp.models.probe import probe_tokens
from mlp_interp.models.protocol import Model
from mlp_interp.models.rotary import Rotary, rotary_at
from mlp_interp.models.weights import Affine, Weights
from mlp_interp.sites import Site

__all__ = ["Forward", "KVCache", "Observer", "UnsupportedModel", "keep"]

EmbeddedAt = Literal["resid_pre", "embed"]

Observer = Callable[[str, int, Tensor], Tensor]
"""Sees each activation as ``(site name, layer, activation)``; gives back what goes on instead."""

_gelu_tanh = partial(F.gelu, approximate="tanh")
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "silu": F.silu,
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": F.relu,
}


class UnsupportedModel(ValueError):
    """The lean forward does not compute what this model computes; run the model itself."""


@dataclass(frozen=True)
class Projections:
    """One block's matrices in `F.linear` layout, the norms' scales and shifts folded in.

    ``qkv`` has the queries' rows first, then the keys', then the values'. Of a gated MLP, what the
    activation function is given is read with ``gate``, and ``mlp_in`` reads what it is multiplied
    by. What queries and keys are multiplied by after their norms, where they have some, is in
    `q_norm` and `k_norm`.
    """

    qkv: Tensor
    qkv_bias: Tensor
    out: Tensor
    out_bias: Tensor
    mlp_in: Tensor
    mlp_in_bias: Tensor
    mlp_out: Tensor
    mlp_out_bias: Tensor
    gate: Tensor | None = None
    gate_bias: Tensor | None = None
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None

    def project(self, name: str, x: Tensor, rows: slice = slice(None)) -> Tensor:
        """What one of the matrices, or some of its rows, makes of `x`, with its bias."""
        bias = None if name in self._unbiased else getattr(self, f"{name}_bias")[rows]
        return F.linear(x, getattr(self, name)[rows], bias)

    @cached_property
    def _unbiased(self) -> frozenset[str]:
        """Matrices whose biases are zeros, as models without biases have: a bias costs a pass."""
        biases = {field.name: getattr(self, field.name) for field in fields(self)}
        return frozenset(
            name.removesuffix("_bias")
            for name, bias in biases.items()
            if name.endswith("_bias") and bias is not None and not bias.any()
        )

    def to(self, device: torch.device) -> "Projections":
        """The same on a device."""
        return self._with(lambda x: x.to(device))

    def outside_inference(self) -> "Projections":
        """The same, of copies of matrices that were made in inference mode."""
        return self._with(lambda x: x.clone() if x.is_inference() else x)

    def _with(self, change: Callable[[Tensor], Tensor]) -> "Projections":
        mine = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: Any = {k: x if x is None else change(x) for k, x in mine.items()}
        return Projections(**changed)


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

    def branch(self) -> "KVCache":
        """The same positions, to be extended in another way: this one stays as it is."""
        other = KVCache()
        other._layers = dict(self._layers)
        return other

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
        self.norm = weights.norm
        self._scale = _attention_scale(weights)
        # Attention-only models need not name any.
        self._act = _ACTIVATIONS.get(weights.model.cfg.act_fn, torch.nn.Identity())
        self._groups = weights.n_heads // weights.n_kv_heads
        self._widths = [
            heads * weights.d_head
            for heads in (weights.n_heads, weights.n_kv_heads, weights.n_kv_heads)
        ]
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

    def embeddings(self, at: EmbeddedAt = "resid_pre") -> Float[Tensor, "token d_model"]:
        """What each token begins its stream with, positions apart; or what ``hook_embed`` shows."""
        return self.weights.W_E

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
        written: Mapping[str, Tensor] = MappingProxyType({}),
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
            written: What block `start`'s attention or MLP writes, by the names ``attn_out`` and
                ``mlp_out``, where it is known: it is shown, and not computed. Not beside a
                `kv_cache`, which would lack the block's keys.

        Returns:
            The stream at the input of block `stop`.
        """
        first = kv_cache.length if kv_cache else 0
        positions = torch.arange(first, first + resid.shape[1], device=resid.device)
        rotary = self.rotary(positions, like=resid)
        for layer in range(start, self.weights.n_layers if stop is None else stop):
            known = written if layer == start else {}
            resid = self._block(layer, resid, rotary, observe, layer in patterns, kv_cache, known)
        return resid

    @property
    def attention_scale(self) -> float:
        """What attention scores are multiplied by, as a rule one over the root of ``d_head``."""
        return self._scale

    def projections(self, layer: int) -> Projections:
        """One block's matrices, its LayerNorms' scales and shifts folded in."""
        return self.blocks[layer]

    def normalize(self, resid: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_model"]:
        """What every block's folded matrices read: the stream without scale and shift."""
        return self.norm.standardize(resid)

    def activate(self, pre: Float[Tensor, "*rest d_mlp"]) -> Float[Tensor, "*rest d_mlp"]:
        """The MLPs' nonlinearity, before any gated product."""
        return self._act(pre)

    def heads(
        self, layer: int, normalized: Float[Tensor, "*rest d_model"]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ``[*rest, head, d_head]``, before the rotary embedding.

        Keys and values may have fewer heads: `shared` repeats them for the queries' heads.
        """
        p = self.blocks[layer]
        parts = p.project("qkv", normalized).split(self._widths, dim=-1)
        q, k, v = (x.unflatten(-1, (-1, self.weights.d_head)) for x in parts)
        return q, k, v

    def queries(self, layer: int, normalized: Float[Tensor, "*rest d_model"]) -> Tensor:
        """The first of `heads` alone."""
        p, width = self.blocks[layer], self._widths[0]
        q = p.project("qkv", normalized, slice(width))
        return q.unflatten(-1, (-1, self.weights.d_head))

    def keys_and_values(
        self, layer: int, normalized: Float[Tensor, "*rest d_model"]
    ) -> tuple[Tensor, Tensor]:
        """The other two of `heads` alone."""
        p, width = self.blocks[layer], self._widths[0]
        both = p.project("qkv", normalized, slice(width, None)).chunk(2, dim=-1)
        k, v = (x.unflatten(-1, (-1, self.weights.d_head)) for x in both)
        return k, v

    def inner_norm(self, layer: int, name: str) -> Tensor | None:
        """What ``q`` or ``k`` is multiplied by after its own norm; None where it has none."""
        p = self.blocks[layer]
        return p.q_norm if name == "q" else p.k_norm

    def turned(
        self, layer: int, name: str, x: Float[Tensor, "*rest head d_head"], rotary: Rotary
    ) -> Float[Tensor, "*rest head d_head"]:
        """Queries or keys as they meet each other: normalised, where the model does, and rotated.

        Args:
            layer: The block.
            name: ``"q"`` or ``"k"``.
            x: As `heads` gives them.
            rotary: At their positions.
        """
        if (scale := self.inner_norm(layer, name)) is not None:
            x = self.head_norm.standardize(x) * scale
        return rotary(x)

    @property
    def head_norm(self) -> Norm:
        """How single queries and keys are normalised."""
        return Norm("rms", self.norm.eps)

    def shared(self, x: Tensor, dim: int) -> Tensor:
        """Keys or values once for each head that reads them."""
        return x if self._groups == 1 else x.repeat_interleave(self._groups, dim)

    def summed(self, x: Tensor, dim: int) -> Tensor:
        """The sum over the heads that read one key or value, as gradients go through `shared`."""
        return x if self._groups == 1 else x.unflatten(dim, (-1, self._groups)).sum(dim + 1)

    def mix(
        self,
        q: Float[Tensor, "batch query head d_head"],
        k: Float[Tensor, "batch pos kv_head d_head"],
        v: Float[Tensor, "batch pos kv_head d_head"],
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
            self.shared(k, 2).transpose(1, 2),
            self.shared(v, 2).transpose(1, 2),
            attn_mask=mask,
            is_causal=mask is None,
            scale=self._scale,
        )
        return z.transpose(1, 2)

    def scores(
        self,
        q: Float[Tensor, "batch query head d_head"],
        k: Float[Tensor, "batch pos kv_head d_head"],
    ) -> Float[Tensor, "batch head query pos"]:
        """Attention scores of rotated queries, which come last, and keys; -inf on later keys."""
        scores = q.transpose(1, 2) @ self.shared(k, 2).permute(0, 2, 3, 1) * self._scale
        return scores.masked_fill(~_causal(q, k), -torch.inf)

    def linear(self, layer: int, normalized: Float[Tensor, "*rest d_model"]) -> Tensor | None:
        """What gated neurons multiply their activations by; None where MLPs have no gates."""
        p = self.blocks[layer]
        return None if p.gate is None else p.project("mlp_in", normalized)

    def pre(self, layer: int, normalized: Float[Tensor, "*rest d_model"]) -> Tensor:
        """What neurons' activation functions are given."""
        p = self.blocks[layer]
        return p.project("mlp_in" if p.gate is None else "gate", normalized)

    def mlp(self, layer: int, resid: Float[Tensor, "*rest d_model"]) -> Tensor:
        """What a block's MLP writes when it reads the stream `resid`."""
        return self.mlp_of(layer, self.normalize(resid))

    def mlp_of(self, layer: int, normalized: Float[Tensor, "*rest d_model"]) -> Tensor:
        """The same when it reads what `normalize` gives."""
        return self._mlp(layer, normalized, keep)

    def readers(self, layer: int) -> list[tuple[Tensor, Tensor]]:
        """What each head reads the normalised stream with, for queries, keys and values.

        Returns:
            Matrices ``[head, d_head, d_model]`` and biases ``[head, d_head]``.
        """
        p = self.blocks[layer]
        return [
            (W.unflatten(0, (-1, self.weights.d_head)), b.unflatten(0, (-1, self.weights.d_head)))
            for W, b in zip(p.qkv.split(self._widths), p.qkv_bias.split(self._widths), strict=True)
        ]

    def rotary(self, positions: Int[Tensor, " row"], like: Tensor) -> Rotary:
        """The rotary embedding at these positions, in the data type and on the device of `like`."""
        return rotary_at(self.weights.model, positions, like)

    def _block(
        self,
        layer: int,
        resid: Tensor,
        rotary: Rotary,
        observe: Observer,
        pattern: bool,
        kv_cache: KVCache | None,
        written: Mapping[str, Tensor],
    ) -> Tensor:
        resid = observe("resid_pre", layer, resid)
        normalized = self.normalize(resid)

        def attn_out() -> Tensor:
            if "attn_out" in written:
                return observe("attn_out", layer, written["attn_out"])
            return self._attention(layer, normalized, rotary, observe, pattern, kv_cache)

        if self.weights.parallel:
            # The MLP first: who looks at no more than what it reads can stop before the attention.
            mlp_out = self._mlp(layer, normalized, observe, written.get("mlp_out"))
            resid = resid + attn_out() + mlp_out
        else:
            resid = resid + attn_out()
            normalized = self.normalize(resid)
            resid = resid + self._mlp(layer, normalized, observe, written.get("mlp_out"))
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
        q, k = self.turned(layer, "q", q, rotary), self.turned(layer, "k", k, rotary)
        if kv_cache is not None:
            k, v = kv_cache.extend(layer, k, v)
        if pattern:
            weights = observe("pattern", layer, self.scores(q, k).softmax(-1))
            z = (weights @ self.shared(v, 2).transpose(1, 2)).transpose(1, 2)
        else:
            z = self.mix(q, k, v, mask=None if q.shape[1] == k.shape[1] else _causal(q, k))
        z = observe("z", layer, z)
        return observe("attn_out", layer, p.project("out", z.flatten(2)))

    def _mlp(
        self, layer: int, normalized: Tensor, observe: Observer, written: Tensor | None = None
    ) -> Tensor:
        if written is not None:
            return observe("mlp_out", layer, written)
        p = self.blocks[layer]
        post = self._act(observe("pre", layer, self.pre(layer, normalized)))
        if (linear := self.linear(layer, normalized)) is not None:
            linear = observe("pre_linear", layer, linear)
            # No one else has what the activation function gave; fresh memory costs more than this.
            post = post * linear if torch.is_grad_enabled() else post.mul_(linear)
        post = observe("post", layer, post)
        return observe("mlp_out", layer, p.project("mlp_out", post))

    def _projections(self, layer: int) -> Projections:
        b = self.weights.block(layer)
        each = [rearrange(W, "head d d_head -> d (head d_head)") for W in (b.W_Q, b.W_K, b.W_V)]
        qkv_bias = torch.cat([b.b_Q.flatten(), b.b_K.flatten(), b.b_V.flatten()])
        qkv, qkv_bias = _fold(b.ln1, torch.cat(each, dim=1), qkv_bias)
        mlp_in, mlp_in_bias = _fold(b.ln2, b.W_in, b.b_in)
        gate = gate_bias = None
        if b.W_gate is not None and b.b_gate is not None:
            gate, gate_bias = _fold(b.ln2, b.W_gate, b.b_gate)
        return Projections(
            qkv=qkv,
            qkv_bias=qkv_bias,
            out=rearrange(b.W_O, "head d_head d_model -> d_model (head d_head)").contiguous(),
            out_bias=b.b_O,
            mlp_in=mlp_in,
            mlp_in_bias=mlp_in_bias,
            mlp_out=b.W_out.T.contiguous(),
            mlp_out_bias=b.b_out,
            gate=gate,
            gate_bias=gate_bias,
            q_norm=b.q_norm,
            k_norm=b.k_norm,
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
    """Weight in `F.linear` layout and bias that take a norm's scale and shift in."""
    return (norm.w[:, None] * weight).T.contiguous(), norm.b @ weight + bias


def _causal(q: Tensor, k: Tensor) -> Tensor:
    """Which keys each query reads, ``[query, key]``; the queries are the last positions."""
    queries, keys = q.shape[1], k.shape[1]
    every = torch.ones(queries, keys, dtype=torch.bool, device=q.device)
    return every.tril(keys - queries)


def _unsupported(weights: Weights) -> str | None:
    """Why the lean forward cannot stand in for this model, or None."""
    cfg = weights.model.cfg
    reasons = {
        f"has activation {cfg.act_fn!r}": (weights.has_mlps and cfg.act_fn not in _ACTIVATIONS),
        "has mixture-of-experts MLPs": bool(cfg.num_experts),
        "normalises what attention and MLP write": weights.post_norms,
    }
    of_attention = attention_unsupported(weights)
    return next((reason for reason, holds in reasons.items() if holds), of_attention)
