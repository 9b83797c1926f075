"""Forward and backward over a model's weights, for gradients with respect to activations only.

Autograd through a model computes what nobody asked for: gradients at positions where clean and
corrupted runs cannot differ, and in the last block at positions that the metric does not read. Here
each block is written out forward and backward, on views of the model's own weights (nothing is
copied, so nothing can be out of date), for the positions between the first differing token and the
last one that is read.
"""

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.gradients.span import Norm, Saved, Span, Tape
from mlp_interp.models import Forward, Weights
from mlp_interp.models.weights import Affine, Block

__all__ = ["Grads", "Lean", "Memory", "Observer"]

Memory = list[tuple[Tensor, Tensor]]
"""Rotated keys and values ``[head, item, pos, d_head]`` of each layer at the positions before."""

Grads = dict[str, Tensor]
"""Gradients by name of the site."""

Observer = Callable[[str, int, Tensor], None]
"""Shown each activation as ``(site name, layer, activation)``."""


class _Frame(Forward):
    """What a model's blocks need besides their weights."""

    def _projections(self, layer: int) -> Any:
        return None


class Lean:
    """A model's blocks, forward and backward, on views of its weights.

    Inside, heads come first: ``[head, item, row, d_head]``. Observers and gradients have the shapes
    of the model's own hooks, ``[item, row, head, d_head]`` and ``[item, head, row, source]``.
    """

    def __init__(self, weights: Weights) -> None:
        """Read the weights of a model that `Forward.of` accepts; nothing is copied."""
        self.weights = weights
        self.blocks = [weights.block(layer) for layer in range(weights.n_layers)]
        self.frame = _Frame(weights)
        norms = [norm for block in self.blocks for norm in (block.ln1, block.ln2)]
        self.folded = all(norm.folded for norm in norms)
        self._tables: dict[int, tuple[Tensor, Tensor] | None] = {}

    def embed(self, tokens: Int[Tensor, "item pos"]) -> Float[Tensor, "item pos d_model"]:
        """The stream before the first block."""
        return self.frame.embed(tokens)

    def past(self, resid: Float[Tensor, "item pos d_model"]) -> Memory:
        """Keys and values of all layers at the positions of `resid`, which begin a text."""
        memory: Memory = []
        span = Span(0, resid.shape[1], ())
        for layer in range(self.weights.n_layers if span.stop else 0):
            if layer == self.weights.n_layers - 1:
                block = self.blocks[layer]
                read = self.scaled(Norm.of(resid, self.weights.eps)[1], block.ln1)
                k = self.rotate(_heads(read, block.W_K, block.b_K), span.rows)
                memory.append((k, _heads(read, block.W_V, block.b_V)))
            else:
                resid, saved = self._block(layer, resid, span, None, _ignore)
                memory.append((saved.k, saved.v))
        return memory

    def run(
        self,
        resid: Float[Tensor, "item row d_model"],
        span: Span,
        memory: Memory,
        *,
        observe: Observer | None = None,
        keep: bool = False,
    ) -> Tape:
        """All blocks on the positions of `span`.

        Args:
            resid: The stream before the first block.
            span: Which positions those are.
            memory: Keys and values of the positions before.
            observe: Shown each activation, at the positions where it matters.
            keep: Keep what `backward` needs.
        """
        kept: list[Saved] = []
        for layer in range(self.weights.n_layers):
            past = memory[layer] if span.first else None
            resid, saved = self._block(layer, resid, span, past, observe or _ignore)
            if keep:
                kept.append(saved)
        return Tape(span, kept, resid)

    def backward(
        self, tape: Tape, grad: Float[Tensor, "item read d_model"], names: Collection[str]
    ) -> Iterator[tuple[int, Grads]]:
        """Gradients of every layer, the last first; the tape is used up.

        Args:
            tape: From `run`.
            grad: Gradient with respect to ``tape.final``.
            names: Which gradients are wanted: sites, and gradients at the stream through one reader
                of it alone, ``mlp_in`` and, for each head, ``q_in``, ``k_in``, ``v_in``.
        """
        for layer in reversed(range(self.weights.n_layers)):
            found: Grads = {}
            grad = self._back(layer, tape, grad, names, found)
            tape.saved.pop()
            yield layer, {name: found[name] for name in names if name in found}

    def _block(
        self,
        layer: int,
        resid: Tensor,
        span: Span,
        past: tuple[Tensor, Tensor] | None,
        show: Observer,
    ) -> tuple[Tensor, Saved]:
        block, outputs, part = self.blocks[layer], *self._outputs(layer, span)
        show("resid_pre", layer, resid)
        norm, standard = Norm.of(resid, self.weights.eps)
        read = self.scaled(standard, block.ln1)
        q = _heads(read[:, part], block.W_Q, block.b_Q)
        k, v = _heads(read, block.W_K, block.b_K), _heads(read, block.W_V, block.b_V)
        for name, x in (("q", q), ("k", k), ("v", v)):
            show(name, layer, x.permute(1, 2, 0, 3))
        q, k = self.rotate(q, outputs), self.rotate(k, span.rows)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        pattern = self.pattern(q, k, outputs)
        z = (pattern @ v).permute(1, 2, 0, 3)
        attn_out = _linear(z.flatten(2), block.W_O.flatten(0, 1), block.b_O)
        for name, x in (("pattern", pattern.transpose(0, 1)), ("z", z), ("attn_out", attn_out)):
            show(name, layer, x)
        resid, norm2, standard = resid[:, part], norm, standard[:, part]
        if self.weights.parallel:
            norm2 = norm[part]
        else:
            norm2, standard = Norm.of(resid + attn_out, self.weights.eps)
        pre = _linear(self.scaled(standard, block.ln2), block.W_in, block.b_in)
        post = self.frame._act(pre)
        mlp_out = _linear(post, block.W_out, block.b_out)
        for name, x in (("pre", pre), ("post", post), ("mlp_out", mlp_out)):
            show(name, layer, x)
        return resid + attn_out + mlp_out, Saved(norm, norm2, q, k, v, pattern, pre)

    def _back(
        self, layer: int, tape: Tape, grad: Tensor, names: Collection[str], found: Grads
    ) -> Tensor:
        block, saved = self.blocks[layer], tape.saved[layer]
        part = self._outputs(layer, tape.span)[1]
        found["mlp_out"] = grad
        found["post"] = grad @ block.W_out.T
        found["pre"] = self._act_backward(saved.pre, found["post"])
        from_mlp = self._unscaled(found["pre"] @ block.W_in.T, block.ln2)
        found["mlp_in"] = saved.norm2.backward(from_mlp)
        if self.weights.parallel:
            found["attn_out"], grad = grad, grad + found["mlp_in"]
        else:
            found["attn_out"] = grad = grad + found["mlp_in"]
        heads = self._back_attention(block, saved, tape.span, part, found)
        if layer == 0 and "resid_pre" not in names and "q_in" not in names:
            return grad  # nobody asks what is below
        resid = torch.zeros_like(saved.norm.x)
        resid[:, part] = grad
        if "q_in" in names:
            resid += self._head_inputs(block, saved, part, heads, found)
        else:
            resid += self._attention_input(block, saved, part, heads)
        found["resid_pre"] = resid
        return resid

    def _back_attention(
        self, block: Block, saved: Saved, span: Span, part: list[int] | slice, found: Grads
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients at q, k and v, heads first, before the rotary embedding."""
        grad, first = found["attn_out"], span.first
        z = _split(grad, block.W_O.transpose(1, 2))
        pattern = z @ saved.v.transpose(2, 3)
        v = saved.pattern[..., first:].transpose(2, 3) @ z
        scores = torch.ops.aten._softmax_backward_data(pattern, saved.pattern, -1, pattern.dtype)
        scores = scores * self.frame._scale
        q = scores @ saved.k
        k = scores[..., first:].transpose(2, 3) @ saved.q
        rows = span.rows
        outputs = rows[part] if isinstance(part, slice) else [rows[i] for i in part]
        q, k = self.rotate(q, outputs, back=True), self.rotate(k, rows, back=True)
        found["z"], found["pattern"] = z.permute(1, 2, 0, 3), pattern.transpose(0, 1)
        for name, x in (("q", q), ("k", k), ("v", v)):
            found[name] = x.permute(1, 2, 0, 3)
        return q, k, v

    def _attention_input(
        self, block: Block, saved: Saved, part: list[int] | slice, heads: tuple[Tensor, ...]
    ) -> Tensor:
        """Gradient at the stream through all of attention."""
        q, k, v = heads
        total = torch.zeros_like(saved.norm.x)
        flat = total.view(-1, total.shape[-1])
        for head in range(len(k)):
            flat.addmm_(k[head].flatten(0, 1), block.W_K[head].T)
            flat.addmm_(v[head].flatten(0, 1), block.W_V[head].T)
        total[:, part] += _join(q, block.W_Q).sum(0)
        return saved.norm.backward(self._unscaled(total, block.ln1))

    def _head_inputs(
        self,
        block: Block,
        saved: Saved,
        part: list[int] | slice,
        heads: tuple[Tensor, ...],
        found: Grads,
    ) -> Tensor:
        """Gradient at the stream through each head's q, k and v; gives their sum."""
        total = torch.zeros_like(saved.norm.x)
        weights = (block.W_Q, block.W_K, block.W_V)
        for name, x, weight in zip(("q_in", "k_in", "v_in"), heads, weights, strict=True):
            rows = part if name == "q_in" else slice(None)
            each = saved.norm[rows].backward_heads(self._unscaled(_join(x, weight), block.ln1))
            total[:, rows] += each.sum(0)
            found[name] = each.permute(1, 2, 0, 3)
        return total

    def _outputs(self, layer: int, span: Span) -> tuple[list[int], list[int] | slice]:
        """Positions of a block's outputs, and which of the rows they are."""
        outputs = span.outputs(layer == self.weights.n_layers - 1)
        if outputs == span.rows:
            return outputs, slice(None)
        return outputs, [p - span.first for p in outputs]

    def pattern(self, q: Tensor, k: Tensor, positions: list[int]) -> Tensor:
        """Attention of queries at `positions` to keys from the first position on, both rotated."""
        scores = q @ (k * self.frame._scale).transpose(-2, -1)
        rows = torch.tensor(positions, device=q.device)
        future = torch.arange(k.shape[-2], device=q.device) > rows[:, None]
        return scores.masked_fill_(future, -torch.inf).softmax(-1)

    def rotate(self, x: Tensor, positions: list[int], *, back: bool = False) -> Tensor:
        """Queries or keys ``[..., row, d_head]`` turned by their positions, or turned back."""
        length = max(positions, default=0) + 1
        if length not in self._tables:
            self._tables[length] = self.frame._rotary(length, x)
        tables = self._tables[length]
        if tables is None:
            return x
        cos, sin = (table[positions, 0] for table in tables)
        turned, kept = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
        first, second = turned.chunk(2, dim=-1)
        across = torch.cat((-second, first), dim=-1) * (-sin if back else sin)
        return torch.cat((turned * cos + across, kept), dim=-1)

    def scaled(self, standard: Tensor, norm: Affine) -> Tensor:
        """A LayerNorm's result with its scale and shift, where they are not folded away."""
        return standard if self.folded else standard * norm.w + norm.b

    def _unscaled(self, grad: Tensor, norm: Affine) -> Tensor:
        return grad if self.folded else grad * norm.w

    def _act_backward(self, pre: Tensor, grad: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = pre.detach().requires_grad_()
            return torch.autograd.grad(self.frame._act(leaf), leaf, grad)[0]


def _ignore(_name: str, _layer: int, _x: Tensor) -> None:
    """The observer that looks away."""


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.addmm(bias, x.flatten(0, 1), weight).view(*x.shape[:2], -1)


def _heads(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``[item, row, d_model]`` through ``[head, d_model, d_head]``, heads first."""
    return _split(x, weight) + bias[:, None, None]


def _split(x: Tensor, weight: Tensor) -> Tensor:
    return (x.flatten(0, 1) @ weight).view(len(weight), *x.shape[:2], -1)


def _join(x: Tensor, weight: Tensor) -> Tensor:
    """``[head, item, row, d_head]`` back to ``[head, item, row, d_model]``."""
    return (x.flatten(1, 2) @ weight.transpose(1, 2)).view(*x.shape[:3], -1)
