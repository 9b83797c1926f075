"""The run that branches leave, with the keys and values that they go on reading."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.models import Forward
from mlp_interp.sites import Site

__all__ = ["Trunk"]


@dataclass(frozen=True)
class Trunk:
    """One forward pass of a batch of prompts, kept.

    Attributes:
        forward: The model's lean forward pass.
        streams: The stream at every block's input, and the final one last.
        q: Queries by layer, after the rotary embedding.
        k: Keys by layer, after the rotary embedding.
        v: Values by layer.
        z: Each head's mix of values, by layer.
        seen: Further activations that were asked for.
    """

    forward: Forward
    streams: tuple[Float[Tensor, "prompt pos d_model"], ...]
    q: tuple[Float[Tensor, "prompt pos head d_head"], ...]
    k: tuple[Float[Tensor, "prompt pos head d_head"], ...]
    v: tuple[Float[Tensor, "prompt pos head d_head"], ...]
    z: tuple[Float[Tensor, "prompt pos head d_head"], ...]
    seen: dict[Site, Tensor]

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        forward: Forward,
        source: Int[Tensor, "prompt pos"] | Float[Tensor, "prompt pos d_model"],
        *,
        keep: Collection[str] = (),
    ) -> "Trunk":
        """Run the model on tokens, or on embeddings, and keep what branches need.

        Args:
            forward: The lean forward pass.
            source: Tokens, or the stream before the first block.
            keep: Names of further sites to keep at every layer (``attn_out``, ``mlp_out``,
                ``pre``, ``post``).
        """
        embedded = source if source.is_floating_point() else forward.embed(source)
        found: dict[str, list[Tensor]] = {name: [] for name in ("resid_pre", "q", "k", "v", "z")}
        seen: dict[Site, Tensor] = {}

        def observe(name: str, layer: int, x: Tensor) -> Tensor:
            if name in found:
                found[name].append(x)
            elif name in keep:
                seen[Site(name, layer)] = x
            return x

        final = forward.run(embedded, observe=observe)
        positions = torch.arange(embedded.shape[1], device=embedded.device)
        rotary = forward.rotary(positions, like=embedded)
        return cls(
            forward=forward,
            streams=(*found["resid_pre"], final),
            q=tuple(rotary(q) for q in found["q"]),
            k=tuple(rotary(k) for k in found["k"]),
            v=tuple(v.contiguous() for v in found["v"]),
            z=tuple(z.contiguous() for z in found["z"]),
            seen=seen,
        )

    @property
    def length(self) -> int:
        """Positions of every prompt."""
        return int(self.streams[0].shape[1])

    @property
    def prompts(self) -> int:
        """How many prompts were run."""
        return int(self.streams[0].shape[0])

    @property
    def n_layers(self) -> int:
        """Blocks of the model."""
        return len(self.q)

    def with_attention(
        self, layer: int, change: Float[Tensor, "*rest d_model"], at: Any = ...
    ) -> Float[Tensor, "*rest d_model"]:
        """The stream after a block to whose attention output `change` has been added.

        Args:
            layer: The block.
            change: What is added.
            at: To which ``[prompt, pos]``, as an index; all if left out.
        """
        end = self.streams[layer + 1][at]
        if self.forward.weights.parallel:
            return end + change
        p = self.forward.projections(layer)
        middle = self.streams[layer][at] + F.linear(
            self.z[layer][at].flatten(-2), p.out, p.out_bias
        )

        def mlp(resid: Tensor) -> Tensor:
            pre = F.linear(self.forward.normalize(resid), p.mlp_in, p.mlp_in_bias)
            return F.linear(self.forward.activate(pre), p.mlp_out)

        return end + change + mlp(middle + change) - mlp(middle)

    def pattern(self, layer: int) -> Float[Tensor, "prompt head query key"]:
        """Attention pattern of one layer: how much each position attends to each."""
        return self.scores(layer).softmax(-1)

    def scores(self, layer: int) -> Float[Tensor, "prompt head query key"]:
        """Attention scores of one layer, minus infinity where a query may not look."""
        q, k = self.q[layer].transpose(1, 2), self.k[layer].permute(0, 2, 3, 1)
        ahead = torch.ones(self.length, self.length, dtype=torch.bool, device=q.device).triu(1)
        return (q @ k * self.forward.attention_scale).masked_fill(ahead, -torch.inf)
