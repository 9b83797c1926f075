"""Forward and backward over a model's weights, for gradients with respect to activations only.

Autograd through a model computes what nobody asked for: gradients at positions where clean and
corrupted runs cannot differ, and in the last block at positions that the metric does not read. Here
each block is written out forward and backward, on the matrices that `Forward` folded, for the
positions between the first differing token and the last one that is read.
"""

from collections.abc import Callable, Collection, Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mlp_interp.gradients.span import Normed, Saved, Span, Tape
from mlp_interp.models import Forward
from mlp_interp.models.forward import Projections
from mlp_interp.models.rotary import Rotary

__all__ = ["Grads", "Lean", "Observer", "Past"]

Past = list[tuple[Tensor, Tensor]]
"""Rotated keys and values ``[item, head, pos, d_head]`` of each layer at the positions before."""

Grads = dict[str, Tensor]
"""Gradients by name of the site."""

Rows = list[int] | slice
"""Which rows of a span."""

Observer = Callable[[str, int, Tensor], None]
"""Shown each activation as ``(site name, layer, activation)``."""


class Lean:
    """A model's blocks, forward and backward, on the matrices of its lean forward pass.

    Observers and gradients have the shapes of the model's own hooks, ``[item, row, head, d_head]``
    and ``[item, head, row, source]``; inside, heads come before rows.
    """

    def __init__(self, forward: Forward) -> None:
        """Wrap a lean forward pass; nothing is copied."""
        self.forward = forward
        self.weights = forward.weights
        self._places: dict[Span, tuple[Rotary, Tensor]] = {}

    def past(self, resid: Float[Tensor, "item pos d_model"]) -> Past:
        """Keys and values of all layers at the positions of `resid`, which begin a text."""
        past: Past = []
        span = Span(0, resid.shape[1], ())
        for layer in range(self.weights.n_layers if span.stop else 0):
            resid, saved = self._block(layer, resid, span, None, _ignore)
            past.append((saved.k, saved.v))
        return past

    def run(
        self,
        resid: Float[Tensor, "item row d_model"],
        span: Span,
        past: Past,
        *,
        observe: Observer | None = None,
        keep: bool = False,
    ) -> Tape:
        """All blocks on the positions of `span`.

        Args:
            resid: The stream before the first block.
            span: Which positions those are.
            past: Keys and values of the positions before; of so many items that those of `resid`
                are repetitions of them.
            observe: Shown each activation, at the positions where it matters.
            keep: Keep what `backward` needs.
        """
        kept: list[Saved] = []
        for layer in range(self.weights.n_layers):
            before = past[layer] if span.first else None
            resid, saved = self._block(layer, resid, span, before, observe or _ignore)
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

    def pattern(
        self,
        q: Float[Tensor, "*any head row d_head"],
        k: Float[Tensor, "*any kv_head source d_head"],
        future: Bool[Tensor, "row source"],
    ) -> Float[Tensor, "*any head row source"]:
        """Attention of rotated queries to rotated keys, none of which is in the future.

        Heads are the third axis from the end; keys may have fewer, which several queries read.
        """
        scores = (q @ self.forward.shared(k, -3).transpose(-2, -1)).mul_(
            self.forward.attention_scale
        )
        return scores.masked_fill_(future, -torch.inf).softmax(-1)

    def places(self, span: Span) -> tuple[Rotary, Bool[Tensor, "row source"]]:
        """What rotates queries and keys at the positions of `span`; and what lies in the future."""
        if span not in self._places:
            positions = torch.arange(span.stop, device=self.weights.device)
            rows = positions[span.first :]
            rotary = self.forward.rotary(rows, like=self.weights.W_E)
            self._places[span] = rotary, positions > rows[:, None]
        return self._places[span]

    def _block(
        self,
        layer: int,
        resid: Tensor,
        span: Span,
        past: tuple[Tensor, Tensor] | None,
        show: Observer,
    ) -> tuple[Tensor, Saved]:
        p, part = self.forward.projections(layer), self._outputs(layer, span)
        rotary, future = self.places(span)
        show("resid_pre", layer, resid)
        norm, standard = Normed.of(resid, self.forward.norm)
        q = self.forward.queries(layer, standard[:, part])
        k, v = self.forward.keys_and_values(layer, standard)
        for name, x in (("q", q), ("k", k), ("v", v)):
            show(name, layer, x)
        inner = None
        if p.q_norm is not None and p.k_norm is not None:
            (of_q, q), (of_k, k) = (Normed.of(x, self.forward.head_norm) for x in (q, k))
            q, k, inner = q * p.q_norm, k * p.k_norm, {"q": of_q, "k": of_k}
        q, k = _rotated(rotary, q, k, part)
        q, k, v = (x.transpose(1, 2).contiguous() for x in (q, k, v))
        if past is not None:
            k, v = (_after(old, new) for old, new in zip(past, (k, v), strict=True))
        pattern = self.pattern(q, k, future[part])
        z = (pattern @ self.forward.shared(v, 1)).transpose(1, 2)
        attn_out = p.project("out", z.flatten(2))
        for name, x in (("pattern", pattern), ("z", z), ("attn_out", attn_out)):
            show(name, layer, x)
        resid, norm2, standard = resid[:, part], norm, standard[:, part]
        if not self.weights.parallel:
            resid = resid + attn_out
            norm2, standard = Normed.of(resid, self.forward.norm)
        elif part != slice(None):
            norm2 = norm[part]
        pre, linear = self.forward.pre(layer, standard), self.forward.linear(layer, standard)
        post = self.forward.activate(pre)
        post = post if linear is None else post * linear
        mlp_out = p.project("mlp_out", post)
        if linear is not None:
            show("pre_linear", layer, linear)
        for name, x in (("pre", pre), ("post", post), ("mlp_out", mlp_out)):
            show(name, layer, x)
        resid = resid + attn_out + mlp_out if self.weights.parallel else resid + mlp_out
        return resid, Saved(norm, norm2, q, k, v, pattern, pre, linear, inner)

    def _back(
        self, layer: int, tape: Tape, grad: Tensor, names: Collection[str], found: Grads
    ) -> Tensor:
        p, saved = self.forward.projections(layer), tape.saved[layer]
        part = self._outputs(layer, tape.span)
        found["mlp_out"] = grad
        found["post"] = grad @ p.mlp_out
        read = self._back_neurons(p, saved, found)
        found["mlp_in"] = saved.norm2.backward(read)
        if self.weights.parallel:
            found["attn_out"], grad = grad, grad + found["mlp_in"]
        else:
            found["attn_out"] = grad = grad + found["mlp_in"]
        heads, turned = self._back_attention(p, saved, tape.span, part, found)
        if layer == 0 and "resid_pre" not in names and "q_in" not in names:
            return grad  # nobody asks what is below
        if "q_in" in names:
            resid = self._head_inputs(
                self.forward.readers(layer), saved, part, heads, turned, found
            )
        else:
            resid = self._attention_input(p, saved, part, heads)
        resid[:, part] += grad
        found["resid_pre"] = resid
        return resid

    def _back_attention(
        self, p: Projections, saved: Saved, span: Span, part: Rows, found: Grads
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Gradients at q, k and v, ``[item, row, head, d_head]``: before rotation, and after it."""
        found["z"] = (found["attn_out"] @ p.out).unflatten(-1, (self.weights.n_heads, -1))
        z, shared = found["z"].transpose(1, 2), self.forward.shared
        found["pattern"] = z @ shared(saved.v, 1).transpose(2, 3)
        scores = torch.ops.aten._softmax_backward_data(
            found["pattern"], saved.pattern, -1, z.dtype
        ).mul_(self.forward.attention_scale)
        # Positions before the span are the same in both runs: what they would get is not asked.
        own = slice(span.first, None)
        q, k = scores @ shared(saved.k, 1), scores[..., own].transpose(2, 3) @ saved.q
        v = saved.pattern[..., own].transpose(2, 3) @ z
        k, v = self.forward.summed(k, 1), self.forward.summed(v, 1)
        turned = [x.transpose(1, 2) for x in (q, k, v)]
        q, k = _rotated(_inverse(self.places(span)[0]), turned[0], turned[1], part)
        if saved.inner is not None and p.q_norm is not None and p.k_norm is not None:
            q = saved.inner["q"].backward(q * p.q_norm)
            k = saved.inner["k"].backward(k * p.k_norm)
        heads = [q, k, turned[2]]
        found.update(zip("qkv", heads, strict=True))
        return heads, turned

    def _attention_input(
        self, p: Projections, saved: Saved, part: Rows, heads: list[Tensor]
    ) -> Tensor:
        """Gradient at the stream through all of attention."""
        q, k, v = (x.flatten(2) for x in heads)
        readers = q.shape[-1]
        total = torch.cat((k, v), dim=-1) @ p.qkv[readers:]
        total[:, part] += q @ p.qkv[:readers]
        return saved.norm.backward(total)

    def _head_inputs(
        self,
        readers: list[tuple[Tensor, Tensor]],
        saved: Saved,
        part: Rows,
        heads: list[Tensor],
        turned: list[Tensor],
        found: Grads,
    ) -> Tensor:
        """Gradient at the stream through each head's q, k and v; gives their sum."""
        total = torch.zeros_like(saved.norm.x)
        for i, (name, whole) in enumerate(zip("qkv", (saved.q, saved.k, saved.v), strict=True)):
            rows = part if name == "q" else slice(None)
            # Along what the head reads without its bias. Turned both or neither: it is the same.
            own = whole.transpose(1, 2)[:, -turned[i].shape[1] :]
            matrices, biases = readers[i]
            grad = turned[i]
            if saved.inner is not None and name in saved.inner:
                grad, own = heads[i], saved.inner[name].x
            along = torch.linalg.vecdot(grad, own) - torch.linalg.vecdot(heads[i], biases)
            each = saved.norm[rows].backward_heads(heads[i], along, matrices)
            total[:, rows] += each.sum(0)
            found[f"{name}_in"] = each.permute(1, 2, 0, 3)
        return total

    def _outputs(self, layer: int, span: Span) -> Rows:
        """Which rows a block's outputs matter at."""
        outputs = span.outputs(layer == self.weights.n_layers - 1)
        return slice(None) if outputs == span.rows else [p - span.first for p in outputs]

    def _back_neurons(self, p: Projections, saved: Saved, found: Grads) -> Tensor:
        """From the gradient at ``post`` to those before it, and at what the MLP reads."""
        grad = found["post"]
        if saved.linear is None or p.gate is None:
            found["pre"] = self._act_backward(saved.pre, grad)
            return found["pre"] @ p.mlp_in
        found["pre"] = self._act_backward(saved.pre, grad * saved.linear)
        found["pre_linear"] = grad * self.forward.activate(saved.pre)
        return found["pre"] @ p.gate + found["pre_linear"] @ p.mlp_in

    def _act_backward(self, pre: Tensor, grad: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = pre.detach().requires_grad_()
            return torch.autograd.grad(self.forward.activate(leaf), leaf, grad)[0]


def _ignore(_name: str, _layer: int, _x: Tensor) -> None:
    """The observer that looks away."""


def _after(old: Tensor, new: Tensor) -> Tensor:
    """Rows after those that were there before, repeated for as many items."""
    return torch.cat([old.repeat(len(new) // len(old), 1, 1, 1), new], dim=2)


def _rotated(rotary: Rotary, q: Tensor, k: Tensor, part: Rows) -> tuple[Tensor, Tensor]:
    """Queries at some rows and keys at all, ``[item, row, head, d_head]``, turned."""
    if part == slice(None) and q.shape == k.shape:
        q, k = rotary(torch.cat((q, k), dim=2)).chunk(2, dim=2)
        return q, k
    return rotary[part](q), rotary(k)


def _inverse(rotary: Rotary) -> Rotary:
    """The rotation back, which is also how gradients go through a rotation."""
    return rotary if rotary.sin is None else Rotary(rotary.cos, -rotary.sin)
