"""What is summed up of a dictionary over a corpus, position by position and latent by latent."""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mlp_interp.dictionaries import Dictionary
from mlp_interp.results import variable

__all__ = ["Sums"]


@dataclass
class Sums:
    """Sums over tokens, in double precision.

    The share of variance left over is a ratio of these sums, not a mean of the ratios of batches.
    """

    dictionary: Dictionary
    length: int
    tokens: Tensor = field(init=False)
    error: Tensor = field(init=False)
    square: Tensor = field(init=False)
    total: Tensor = field(init=False)
    cosine: Tensor = field(init=False)
    ratio: Tensor = field(init=False)
    active: Tensor = field(init=False)
    fired: Tensor = field(init=False)
    strength: Tensor = field(init=False)
    l0: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("tokens", "error", "square", "cosine", "ratio", "active"):
            setattr(self, name, torch.zeros(self.length, dtype=torch.float64))
        self.total = torch.zeros(self.length, self.dictionary.d_out, dtype=torch.float64)
        self.fired = torch.zeros(self.dictionary.n_latents, dtype=torch.float64)
        self.strength = torch.zeros(self.dictionary.n_latents, dtype=torch.float64)

    def add(
        self,
        read: Float[Tensor, "batch pos d_in"],
        written: Float[Tensor, "batch pos d_out"],
        counts: Bool[Tensor, "batch pos"],
    ) -> None:
        """Sum up some sequences at the tokens that count."""
        rebuilt, latents = self.dictionary(read[counts])
        target = written[counts].to(rebuilt)
        pos = counts.nonzero()[:, 1].cpu()
        l0 = latents.active.sum(-1).cpu()
        sizes = rebuilt.norm(dim=-1), target.norm(dim=-1).clamp_min(1e-30)
        dots = (rebuilt * target).sum(-1) / (sizes[0] * sizes[1]).clamp_min(1e-30)
        by_token = {
            "tokens": torch.ones_like(dots),
            "error": (rebuilt - target).square().sum(-1),
            "square": target.square().sum(-1),
            "cosine": dots,
            "ratio": sizes[0] / sizes[1],
            "active": l0,
        }
        for name, values in by_token.items():
            getattr(self, name).index_add_(0, pos, values.cpu().double())
        self.total.index_add_(0, pos, target.cpu().double())
        on = latents.active
        chosen, values = latents.indices[on].cpu(), latents.values[on].cpu().double()
        self.fired.index_add_(0, chosen, torch.ones_like(values))
        self.strength.index_add_(0, chosen, values)
        self.l0.append(l0.double())

    @property
    def mean(self) -> Float[Tensor, " d_out"]:
        """The mean of what is written."""
        return self.total.sum(0) / self.tokens.sum()

    def fvu(self) -> tuple[float, Float[Tensor, " pos"]]:
        """The share of variance left over: over all tokens, and by position around its own mean."""
        around = self.square.sum() - self.total.sum(0).square().sum() / self.tokens.sum()
        each = self.square - self.total.square().sum(-1) / self.tokens
        return float(self.error.sum() / around), self.error / each.clamp_min(1e-30)

    def variables(self) -> dict[str, Any]:
        """What is said of it in a result."""
        tokens, (fvu, by_position) = self.tokens.sum(), self.fvu()
        l0, density = torch.cat(self.l0), self.fired / self.tokens.sum()
        told = [0.05, 0.5, 0.95]
        shares = torch.quantile(l0[: 2**24], torch.tensor(told, dtype=torch.float64))
        few = by_position.masked_fill(self.tokens < 2, torch.nan)
        return {
            "fvu": _one(fvu, "fraction", "variance left over, of what is written"),
            "l0": _one(l0.mean(), "latents", "active latents of a token, mean"),
            "l0_quantile": variable("quantile", shares, unit="latents"),
            "dead": _one((density == 0).double().mean(), "fraction", "latents never active"),
            "dense": _one((density > 0.1).double().mean(), "fraction", "active at over a tenth"),
            "cosine": _one(self.cosine.sum() / tokens, "cosine", "of what is made and what is"),
            "norm_ratio": _one(self.ratio.sum() / tokens, "ratio", "length of the two, mean"),
            "fvu_by_pos": variable("pos", few, unit="fraction"),
            "l0_by_pos": variable("pos", self.active / self.tokens, unit="latents"),
            "density": variable("latent", density, unit="fraction"),
            "mean_active": variable("latent", self.strength / self.fired, unit="activation"),
        }


def _one(value: Any, unit: str, long_name: str) -> Any:
    return variable((), float(value), unit=unit, long_name=long_name)
