"""One training step of a dictionary after the other: TopK and BatchTopK, with Adam."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from mlp_interp.checkpoint import Tensors

__all__ = ["Kind", "Learner", "beginning"]

Kind = Literal["topk", "batch_topk"]

_NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")
_BETAS, _EPS = (0.9, 0.999), 1e-8
_WARMUP, _DECAY = 0.05, 0.3  # shares of the steps
_AUXILIARY = 1 / 32
_ROUNDING = 1e-6
_MEMORY = 0.02  # of the running mean of thresholds


def beginning(
    x: Float[Tensor, "row d_in"],
    y: Float[Tensor, "row d_out"],
    n_latents: int,
    seed: int,
) -> Tensors:
    """What training begins with: random directions, and the scales of what is read and written.

    Of an SAE latents read what they write.

    Raises:
        ValueError: What is read or written is the same at all tokens.
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32)

    W_dec = F.normalize(drawn(n_latents, y.shape[1]), dim=-1)
    W_enc = W_dec.T
    if x is not y:
        W_enc = F.normalize(drawn(x.shape[1], n_latents), dim=0)
    state = {
        # A copy: of a single latent the two are one tensor otherwise.
        "W_enc": W_enc.clone(memory_format=torch.contiguous_format).to(x),
        "b_enc": torch.zeros(n_latents).to(x),
        "W_dec": W_dec.to(x),
        "b_dec": torch.zeros(y.shape[1]).to(x),
        "threshold": torch.zeros(()),
        "idle": torch.zeros(n_latents, dtype=torch.int64, device=x.device),
        "step": torch.zeros((), dtype=torch.int64),
    }
    for name in _NAMES:
        state |= {f"{name}.{moment}": torch.zeros_like(state[name]) for moment in ("1", "2")}
    for side, values in (("x", x), ("y", y)):
        mean = values.mean(0)
        scale = (values - mean).square().mean().sqrt()
        if not scale > _ROUNDING * values.abs().max():
            raise ValueError(
                f"what is {'read' if side == 'x' else 'written'} is the same at all {len(values)} "
                "tokens that count; wanted others, or a place that they tell apart"
            )
        state |= {f"{side}.mean": mean, f"{side}.scale": scale}
    return state


@dataclass(frozen=True)
class Learner:
    """How a dictionary is trained.

    Attributes:
        kind: Whether the largest activations are taken of each token or of a whole batch.
        k: How many of each token, or of each on average.
        lr: The largest learning rate.
        steps: How many there are in all.
        dead: After how many steps without it a latent counts as dead, and is pulled to what the
            others leave unexplained.
    """

    kind: Kind
    k: int
    lr: float
    steps: int
    dead: int

    def step(self, state: Tensors, x: Tensor, y: Tensor) -> float:
        """Learn from a batch, in place; the share of its variance that was left unexplained."""
        x = (x - state["x.mean"]) / state["x.scale"]
        y = (y - state["y.mean"]) / state["y.scale"]
        held = {name: state[name].requires_grad_() for name in _NAMES}
        with torch.enable_grad():
            pre = torch.addmm(held["b_enc"], x, held["W_enc"])
            rebuilt, active = self._rebuilt(state, held, pre)
            error = rebuilt - y
            loss = error.square().mean()
            total = loss + _AUXILIARY * self._revived(state, held, pre, error.detach())
            gradients = torch.autograd.grad(total, [held[name] for name in _NAMES])
        for name in _NAMES:
            state[name].requires_grad_(False)
        state["step"] += 1
        state["idle"] += 1
        state["idle"][active] = 0
        for name, gradient in zip(_NAMES, gradients, strict=True):
            self._adam(state, name, gradient)
        state["W_dec"].div_(state["W_dec"].norm(dim=-1, keepdim=True))
        return float(loss.detach())

    def _rebuilt(
        self, state: Tensors, held: Tensors, pre: Float[Tensor, "row latent"]
    ) -> tuple[Tensor, Bool[Tensor, " latent"]]:
        """What is made of a batch, and which latents are active in it."""
        if self.kind == "topk":
            values, indices = pre.topk(self.k, dim=-1)
            values = values.relu()
            rebuilt = held["b_dec"] + F.embedding_bag(
                indices, held["W_dec"], per_sample_weights=values, mode="sum"
            )
            active = torch.zeros_like(state["idle"], dtype=torch.bool)
            active[indices[values > 0]] = True
            return rebuilt, active
        running, first = state["threshold"], not int(state["step"])
        least = _least(pre.detach(), self.k * len(pre), float("-inf" if first else running / 2))
        chosen = (pre.detach() >= least) & (pre.detach() > 0)
        rows, indices = chosen.nonzero(as_tuple=True)
        each = chosen.sum(-1)
        # As many products as there are active latents: a dense one takes thirty times as many.
        rebuilt = held["b_dec"] + F.embedding_bag(
            indices,
            held["W_dec"],
            each.cumsum(0) - each,
            per_sample_weights=pre[rows, indices],
            mode="sum",
        )
        running += (least.cpu() - running) * (1.0 if first else _MEMORY)
        return rebuilt, chosen.any(0)

    def _revived(self, state: Tensors, held: Tensors, pre: Tensor, error: Tensor) -> Tensor:
        """How badly dead latents explain what the others leave over, as a share of that."""
        dead = (state["idle"] >= self.dead).nonzero()[:, 0]
        if not len(dead):
            return error.new_zeros(())
        k = min(len(dead), max(1, error.shape[1] // 2))
        values, indices = pre[:, dead].topk(k, dim=-1)
        rebuilt = F.embedding_bag(
            dead[indices], held["W_dec"], per_sample_weights=values.relu(), mode="sum"
        )
        return (rebuilt + error).square().mean() / error.square().mean().clamp_min(1e-12)

    def _adam(self, state: Tensors, name: str, gradient: Tensor) -> None:
        if name == "W_dec":  # whose rows keep their length
            along = (gradient * state[name]).sum(-1, keepdim=True)
            gradient = gradient - along * state[name]
        step = int(state["step"])
        mean, square = state[f"{name}.1"], state[f"{name}.2"]
        mean.lerp_(gradient, 1 - _BETAS[0])
        square.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
        size = (square / (1 - _BETAS[1] ** step)).sqrt_().add_(_EPS)
        state[name].addcdiv_(mean, size, value=-self._rate(step) / (1 - _BETAS[0] ** step))

    def _rate(self, step: int) -> float:
        warm, left = max(1.0, _WARMUP * self.steps), self.steps - step + 1
        return self.lr * min(1.0, step / warm, left / max(1.0, _DECAY * self.steps))


def _least(values: Float[Tensor, "row latent"], k: int, guess: float) -> Float[Tensor, ""]:
    """The k-th largest of all values, 0 where that is below zero.

    Args:
        values: The values.
        k: Which.
        guess: Something that at least so many are probably above: then the others need no sorting.
    """
    few = values[values > max(guess, 0.0)]
    if len(few) < k:
        few = values.flatten()
    return few.topk(k, sorted=False).values.min().clamp_min(0)
