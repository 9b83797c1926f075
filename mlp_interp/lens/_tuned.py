"""`tuned`: affine translators trained so that what is read is near the final prediction."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from mlp_interp.checkpoint import TENSORS, Checkpoint, Tensors
from mlp_interp.lens.lens import Lens, about
from mlp_interp.metrics import rows_for
from mlp_interp.models import Forward, HookForward, Weights, fingerprint, forward_of
from mlp_interp.models.indices import count
from mlp_interp.models.options import checked_number, checked_seed
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.padding import Padded, first_token, which_count
from mlp_interp.models.padding import counted as counting
from mlp_interp.models.protocol import Model
from mlp_interp.models.stream import check_stream
from mlp_interp.models.unembed import Unembed, capped
from mlp_interp.prompts.texts import padded_texts, warn_of_one
from mlp_interp.results import single

__all__ = ["tuned"]

_KEEP_EVERY = 25
_WARMUP = 0.05
_BETAS, _EPS = (0.9, 0.99), 1e-8


@own_mode()
def tuned(
    model: Model,
    corpus: Any,
    *,
    attention_mask: Any = None,
    start: Lens | None = None,
    steps: int = 256,
    batch_size: int = 16,
    lr: float = 3e-3,
    first: int = 1,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = False,
) -> Lens:
    """Train, for every layer, the affine map after which the readout is nearest to the final one.

    What is least is KL(final‖layer), averaged over tokens, by Adam with a warmup and a linear
    decay. A tuned lens reads what a layer *makes possible to say* with one affine map: some of that
    may be the map's knowledge of the corpus rather than the model's at that layer. `logit` and
    `decoder` are not trained, and `mean` and `linear` say how much a shift or least squares buy.

    Args:
        model: The model.
        corpus: A `Corpus`; tokens ``[sequence, pos]``, padded or not; texts. Compare on others.
        attention_mask: 1 where text is, 0 where padding is; None tells it by the rule of
            `mlp_interp.models.padding`.
        start: A `mean`, `linear` or `tuned` lens to start from; None for the logit lens, which is a
            better start than least squares.
        steps: How many batches.
        batch_size: Texts in each.
        lr: The largest learning rate.
        first: Position of each text from which on tokens count: 1 leaves out the first, and BOS.
        seed: Of the order of the texts.
        checkpoint: A directory in which the training is kept as it goes on. Called again with the
            same one and the same arguments, it goes on where it stopped, with the same numbers.
        progress: Show a bar.

    Raises:
        ValueError: An option out of range, a `start` that is no affine map of this model, texts of
            another model, a stream that is not finite.

    References:
        Belrose et al., "Eliciting Latent Predictions from Transformers with the Tuned Lens", 2023.

    Example:
        >>> from mlp_interp import load_corpus, load_model
        >>> model = load_model("nano")
        >>> tuned(model, load_corpus("nano", model, sequences=2, length=32), steps=2, batch_size=2)
        Lens('tuned', model='nano')
    """
    count("steps", steps)
    count("batch_size", batch_size)
    lr = checked_number("lr", lr, lambda x: 0 < x < math.inf, "a finite number above 0")
    seed, weights = checked_seed(seed), Weights.of(model)
    texts = padded_texts(model, corpus, attention_mask)
    warn_of_one(texts, "a tuned lens")
    which_count(model, texts.tokens, texts.real, first)
    weights.checked(texts.tokens)
    state = _start(model, start)
    options = {
        "lens": "tuned", "steps": steps, "batch_size": batch_size, "lr": lr, "first": first,
        "seed": seed, "start": "none" if start is None else start.digest(),
    }  # fmt: skip
    folder = None
    if checkpoint is not None:
        lengths = {} if texts.lengths is None else {"lengths": texts.lengths.tolist()}
        name = fingerprint(model, texts.tokens, {**options, **lengths})
        folder = Path(checkpoint) / f"tuned-{name}"
    kept = Checkpoint(folder, TENSORS)
    state = kept.read("state") or state
    with torch.no_grad():
        training = _Training(forward_of(model), Unembed.of(model), lr, steps)
        done = int(state["step"])
        bar = tqdm(total=steps, initial=done, desc="tuned lens", disable=not progress)
        with bar:
            for rows in _order(len(texts.tokens), batch_size, seed, done, steps):
                training.step(state, *_batch(model, texts, rows, first))
                bar.update()
                if int(state["step"]) % _KEEP_EVERY == 0 or int(state["step"]) == steps:
                    kept.keep("state", state)
    made = replace(
        Lens(**about(model, "tuned")), weight=state["weight"].clone(), bias=state["bias"].clone()
    )
    said = {k: v for k, v in texts.attrs.items() if isinstance(v, str | int | float)}
    return made.named(**{**said, **options})


def _start(model: Model, start: Lens | None) -> Tensors:
    """What training begins with: the maps, the optimiser's moments, and how far it has come."""
    weights = Weights.of(model)
    layers, d_model = weights.n_layers + 1, weights.d_model
    weight = torch.eye(d_model).repeat(layers, 1, 1)
    bias = torch.zeros(layers, d_model)
    if start is not None:
        if not isinstance(start, Lens):
            raise ValueError(f"start={start!r}; wanted a Lens, as mi.lens.mean(model, corpus)")
        start.check(model)
        if start.blocks or start.ahead or not start.centred:
            raise ValueError(f"start={start!r}; wanted a mean, linear or tuned lens, or None")
        weight = weight if start.weight is None else start.weight.float().cpu().clone()
        bias = bias if start.bias is None else start.bias.float().cpu().clone()
    moments = {
        f"{name}.{moment}": torch.zeros_like(x)
        for name, x in (("weight", weight), ("bias", bias))
        for moment in ("first", "second")
    }
    return {"weight": weight, "bias": bias, "step": torch.zeros((), dtype=torch.int64), **moments}


def _order(texts: int, batch_size: int, seed: int, done: int, steps: int) -> Iterator[Tensor]:
    """Which texts are in each batch that is left: all of them in some order, again and again."""
    generator = torch.Generator().manual_seed(seed)
    waiting = torch.empty(0, dtype=torch.int64)
    for step in range(steps):
        while len(waiting) < batch_size:
            waiting = torch.cat([waiting, torch.randperm(texts, generator=generator)])
        rows, waiting = waiting[:batch_size], waiting[batch_size:]
        if step >= done:
            yield rows


def _batch(model: Model, texts: Padded, rows: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Some texts, and which of their tokens count."""
    tokens = Weights.of(model).checked(texts.tokens[rows.to(texts.tokens.device)].long())
    real = None if texts.real is None else texts.real[rows]
    return tokens, counting(tokens, real, first=first, bos=first_token(model))


@dataclass(frozen=True)
class _Training:
    """One step after the other.

    Attributes:
        forward: The model's forward pass.
        unembed: Its readout.
        lr: The largest learning rate.
        steps: How many there are in all.
    """

    forward: Forward | HookForward
    unembed: Unembed
    lr: float
    steps: int

    def step(self, state: Tensors, tokens: Tensor, counts: Tensor) -> None:
        """Change the maps, in place, by what one batch says."""
        streams: list[Tensor] = []

        def observe(name: str, _layer: int, x: Tensor) -> Tensor:
            if name == "resid_pre":
                streams.append(x[counts])
            return x

        final = self.forward.run(self.forward.embed(tokens), observe=observe)
        check_stream(final)
        state["step"] += 1
        if not bool(counts.any()):
            return
        norm = self.unembed.norm
        wanted = norm.standardize(single(final[counts]))
        kept = torch.stack([norm.keep(single(x)) for x in streams])
        grads = self._gradients(state, kept, wanted)
        for name, grad in grads.items():
            self._adam(state, name, grad.to(state[name]))

    def _gradients(
        self,
        state: Tensors,
        kept: Float[Tensor, "layer row d_model"],
        wanted: Float[Tensor, "row d_model"],
    ) -> Tensors:
        """How the mean KL of all layers goes with each map; nothing for the final stream's."""
        layers = len(kept)
        maps = {n: state[n][:layers].to(kept).requires_grad_() for n in ("weight", "bias")}
        with torch.enable_grad():
            translated = torch.baddbmm(maps["bias"][:, None], kept, maps["weight"])
            normalized = self.unembed.norm.standardize(translated)
        pull = torch.empty_like(normalized)
        for rows in torch.arange(len(wanted)).split(rows_for(self.unembed, 2**21)):
            p = self._logits(wanted[rows]).softmax(-1)
            for layer in range(layers):
                pull[layer, rows] = self._pull(normalized[layer, rows].detach(), p)
        found = torch.autograd.grad(normalized, list(maps.values()), pull / len(wanted))
        size = torch.stack([x.norm() for x in found]).norm().clamp_min(1.0)
        return {name: x / size for name, x in zip(maps, found, strict=True)}

    def _logits(self, normalized: Tensor) -> Tensor:
        weight, bias = (x.to(normalized.dtype) for x in (self.unembed.weight, self.unembed.bias))
        return capped(torch.addmm(bias, normalized, weight), self.unembed.cap)

    def _pull(
        self, normalized: Float[Tensor, "row d_model"], p: Float[Tensor, "row d_vocab"]
    ) -> Float[Tensor, "row d_model"]:
        """How KL(p‖what is read) goes with what the readout is given."""
        logits = self._logits(normalized)
        change = logits.softmax(-1).sub_(p)
        if (cap := self.unembed.cap) is not None:
            change *= 1 - (logits / cap).square()
        return change @ self.unembed.weight.to(change.dtype).T

    def _adam(self, state: Tensors, name: str, grad: Tensor) -> None:
        step, layers = int(state["step"]), len(grad)
        mean, square = (state[f"{name}.{moment}"][:layers] for moment in ("first", "second"))
        mean.lerp_(grad, 1 - _BETAS[0])
        square.lerp_(grad.square(), 1 - _BETAS[1])
        size = (square / (1 - _BETAS[1] ** step)).sqrt_().add_(_EPS)
        state[name][:layers] -= self._rate(step) * (mean / (1 - _BETAS[0] ** step)) / size

    def _rate(self, step: int) -> float:
        warm = max(1, round(_WARMUP * self.steps))
        return self.lr * min(step / warm, (self.steps - step + 1) / max(1, self.steps - warm))
