"""What a head's keys get from one earlier head, on texts: its part in attention and in loss."""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mlp_interp.heads._keys import attended
from mlp_interp.models import Unembed, forward_of
from mlp_interp.models.heads import Heads
from mlp_interp.models.rotary import rotary_at
from mlp_interp.results import single
from mlp_interp.sites import Site

__all__ = ["KeyPath"]


@dataclass(frozen=True)
class KeyPath:
    """From what a writer brings to each position to the keys of a reader.

    Attributes:
        writers: The earlier layer's heads.
        writer: Which of them.
        readers: The later layer's heads.
        reader: Which of them.
        tokens: The texts.
        unembed: The readout.
    """

    writers: Heads
    writer: int
    readers: Heads
    reader: int
    tokens: Int[Tensor, "batch pos"]
    unembed: Unembed

    def measured(self) -> tuple[float, Float[Tensor, " text"]]:
        """The path's share of the attention margin, and the rise of each text's loss without it.

        The margin is the score of the keys that induction is about less the mean score of the other
        keys. Without the path, each key gets what the writer brings on the average; the loss is
        that of the tokens after queries that have such a key.
        """
        seen: dict[str, Tensor] = {}
        forward = forward_of(self.readers.weights.model)
        watch = partial(_keep, seen, self.writers.layer, self.readers.layer)
        final = forward.run(forward.embed(self.tokens), observe=watch)
        brought = seen["z"][:, :, self.writer] - self.writers.b_v[self.writer]
        stream, norm = single(seen["resid_pre"]), self.readers.weights.norm
        scale = norm.scale(stream)
        # Less its mean: a constant may as well be in the bias, by how the weights are processed.
        keys = (brought @ self.writers.O[self.writer] / scale) @ self.readers.K[self.reader]
        keys = keys - keys.mean((0, 1))
        share = self._share(norm.standardize(stream), keys)
        groups = self.readers.weights.n_heads // self.readers.weights.n_kv_heads
        cut = partial(_cut, self.readers.layer, self.reader // groups, keys)
        without = forward.run(seen["resid_pre"], start=self.readers.layer, observe=cut)
        return share, self._loss(without) - self._loss(final)

    def _share(
        self, read: Float[Tensor, "batch pos d_model"], keys: Float[Tensor, "batch pos d_head"]
    ) -> float:
        heads, which = self.readers, self.reader
        rotary = rotary_at(
            heads.weights.model, torch.arange(read.shape[1], device=read.device), read
        )
        q = read @ heads.Q[which] + heads.b_q[which]
        k = read @ heads.K[which] + heads.b_k[which]
        q, k, keys = (rotary(x[:, :, None])[:, :, 0] for x in (q, k, keys))
        there = attended(self.tokens, "induction")
        later = torch.ones_like(there[0]).tril()
        other = later & ~there & there.any(-1, keepdim=True)
        weight = _mean_over(there) - _mean_over(other)
        whole, part = ((q @ x.mT * weight).sum() for x in (k, keys))
        return float(part / whole)

    def _loss(self, final: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, " text"]:
        """Mean over the queries that have a key of induction and a next token."""
        queries = attended(self.tokens, "induction").any(-1)[:, :-1]
        read = final[:, :-1][queries].to(self.unembed.weight.dtype)
        logits = single(self.unembed.logits(read))
        loss = F.cross_entropy(logits, self.tokens[:, 1:][queries], reduction="none").double()
        total = torch.zeros(queries.shape, dtype=torch.float64, device=loss.device)
        total[queries] = loss
        return total.sum(1) / queries.sum(1)


def _mean_over(where: Bool[Tensor, "batch pos source"]) -> Float[Tensor, "batch pos source"]:
    return where / where.sum(-1, keepdim=True).clamp_min(1)


def _keep(
    seen: dict[str, Tensor], writer: int, reader: int, name: str, layer: int, x: Tensor
) -> Tensor:
    """An observer that keeps what the writer's block mixed and the reader's block reads."""
    if (name, layer) in (("z", writer), ("resid_pre", reader)):
        seen[name] = x
    return x


def _cut(at: int, which: int, part: Tensor, name: str, layer: int, x: Tensor) -> Tensor:
    """An observer that takes a part of some keys away."""
    if Site(name, layer) != Site("k", at):
        return x
    x = x.clone()
    x[:, :, which] -= part.to(x.dtype)
    return x
