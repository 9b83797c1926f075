"""The last blocks as a decoder of one position, among the clean run's other positions."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from mlp_interp.models import Forward, HookForward
from mlp_interp.models.forward import Observer
from mlp_interp.runs.attention import Attention

__all__ = ["in_clean_context"]


def in_clean_context(
    forward: Forward | HookForward,
    clean: dict[int, Float[Tensor, "batch pos d_model"]],
    early: Float[Tensor, "batch pos d_model"],
    observe: Observer,
) -> Float[Tensor, "batch pos d_model"]:
    """Each position of a stream after the last blocks, with the others as they are in the run.

    A position attends to what it is itself, and to the earlier ones of the clean run.

    Args:
        forward: The model's forward pass.
        clean: The run's stream at the input of each block that is run.
        early: The stream that enters the first of them instead, at one position at a time.
        observe: Called on what the blocks compute of it.
    """
    start = min(clean)
    if isinstance(forward, Forward):
        return forward.run(early, start=start, observe=_Mixing(forward, clean, observe))
    at = torch.arange(early.shape[1], device=early.device)
    found = torch.empty_like(early)
    for row, stream in enumerate(early):
        # Nothing that a position changes gets to earlier ones: one pass for each.
        each = clean[start][row].expand(len(at), -1, -1).clone()
        each[at, at] = stream
        found[row] = forward.run(each, start=start, observe=observe)[at, at]
    return found


@dataclass
class _Mixing:
    """Mixes values anew: a position's own, and the clean run's of the earlier ones."""

    forward: Forward
    clean: dict[int, Float[Tensor, "batch pos d_model"]]
    observe: Observer
    seen: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, name: str, layer: int, x: Tensor) -> Tensor:
        """What the pass goes on with."""
        if name in ("q", "k", "v"):
            self.seen[name] = x
        return self.observe(name, layer, self._mixed(layer, x) if name == "z" else x)

    def _mixed(
        self, layer: int, z: Float[Tensor, "batch pos head d_head"]
    ) -> Float[Tensor, "batch pos head d_head"]:
        forward, q = self.forward, self.seen["q"]
        own = Attention.of(forward, layer, q, self.seen["k"], self.seen["v"], z)
        keys, values = forward.keys_and_values(layer, forward.normalize(self.clean[layer]))
        others = Attention.of(forward, layer, q, keys, values, z)
        scores = forward.scores(own.q, others.k)
        itself = (own.q * forward.shared(own.k, 2)).sum(-1) * forward.attention_scale
        scores.diagonal(dim1=-2, dim2=-1).copy_(itself.transpose(1, 2))
        weights = scores.softmax(-1)
        v, mine = (forward.shared(x.v, 2).transpose(1, 2) for x in (others, own))
        mixed = weights @ v + weights.diagonal(dim1=-2, dim2=-1)[..., None] * (mine - v)
        return mixed.transpose(1, 2)
