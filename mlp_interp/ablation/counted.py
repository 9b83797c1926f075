"""What ablations do at the tokens that count, as means over each sequence."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mlp_interp.metrics import Effects, LogitChange
from mlp_interp.metrics.rows import distributions, next_tokens
from mlp_interp.models.unembed import Unembed
from mlp_interp.runs import Run

__all__ = ["Counted", "Ways"]

Ways = Callable[[Tensor, LogitChange], dict[str, Effects]]
"""From some rows, and their clean distributions, to effects ``[component, row]`` by way."""


@dataclass(frozen=True)
class Counted:
    """The tokens of a clean run that count, one row each.

    Attributes:
        unembed: The readout.
        counts: Which they are.
        final: The final stream there, as the final norm keeps it.
        targets: The token that follows, -1 where unknown.
    """

    unembed: Unembed
    counts: Bool[Tensor, "batch pos"]
    final: Float[Tensor, "row d_model"]
    targets: Int[Tensor, " row"]

    @classmethod
    def of(
        cls, unembed: Unembed, clean: Run, counts: Bool[Tensor, "batch pos"], real: Tensor | None
    ) -> "Counted":
        """Those of a run, in which text is where `real` says."""
        counts = counts.to(clean.final.device)
        targets = next_tokens(clean.tokens, real).to(counts.device)
        return cls(unembed, counts, unembed.norm.keep(clean.final)[counts], targets[counts])

    def rows(
        self, changes: Float[Tensor, "component batch pos d_model"]
    ) -> Float[Tensor, "component row d_model"]:
        """What stands at these tokens."""
        return changes[:, self.counts]

    def means(self, chunks: Iterable[Ways]) -> dict[str, Tensor]:
        """Means over each sequence, ``[component, batch]``, and the clean ``loss``, ``[batch]``.

        Args:
            chunks: For some components after the other, what their effects are.
        """
        normalized = self.final / self.unembed.scale(self.final)
        pieces: dict[str, list[Tensor]] = {}
        loss = torch.full_like(normalized[:, 0], torch.nan)
        for ways in chunks:
            columns: list[dict[str, Tensor]] = []
            for rows, clean in distributions(self.unembed, normalized, self.targets):
                columns.append(_by_measure(ways(rows, clean)))
                loss[rows] = clean.loss()
            for name in columns[0]:
                whole = torch.cat([column[name] for column in columns], dim=1)
                pieces.setdefault(name, []).append(self._over_sequences(whole))
        found = {name: torch.cat(parts) for name, parts in pieces.items()}
        return {**found, "loss": self._over_sequences(loss)}

    def _over_sequences(self, values: Float[Tensor, "*more row"]) -> Float[Tensor, "*more batch"]:
        whole = values.new_full((*values.shape[:-1], *self.counts.shape), torch.nan)
        whole[..., self.counts] = values
        return whole.nanmean(-1)


def _by_measure(ways: dict[str, Effects]) -> dict[str, Tensor]:
    return {
        f"{measure}_{way}": values
        for way, effects in ways.items()
        for measure, values in effects._asdict().items()
    }
