"""What each component of a stream says, some components at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mlp_interp.lens.asked import Asked
from mlp_interp.lens.promotion import Promotion
from mlp_interp.metrics.rows import read_changes
from mlp_interp.metrics.stream import BothNorms
from mlp_interp.models.unembed import Unembed
from mlp_interp.residual import Part, Residual
from mlp_interp.results import single, to_numpy
from mlp_interp.sites import EDITED

__all__ = ["Said"]

_NUMBERS = 2**23  # of vectors held at a time: 32 MiB in float32
_ATTENTION = ("attn_out", "z", "b_O")
_ALONE = ("embed", "pos_embed", *EDITED)

Found = dict[str, Tensor]


@dataclass(frozen=True)
class Said:
    """Reads the components of a stream.

    Attributes:
        unembed: The readout.
        promotion: Reads vectors as tokens.
        residual: The stream as a sum of components, at the positions asked for.
        asked: Which of them in each text, and what about.
        scale: ``"stream"``, its scale for everything, or each its ``"own"``.
        parallel: Whether a block's MLP is given the stream that its attention is given.
    """

    unembed: Unembed
    promotion: Promotion
    residual: Residual
    asked: Asked
    scale: str
    parallel: bool

    def arrays(self) -> dict[str, np.ndarray]:
        """Along prompt, position and component; NaN and -1 where nothing is asked."""
        shape = (*self.residual.total.shape[:2], len(self.residual))
        text, place = (x.numpy() for x in self.asked.rows())
        result: dict[str, np.ndarray] = {}
        for some, found in self._pieces():
            for name, x in found.items():
                values = to_numpy(x.transpose(0, 1))
                if name not in result:
                    fill = -1 if values.dtype.kind == "i" else np.nan
                    result[name] = np.full((*shape, *values.shape[2:]), fill, dtype=values.dtype)
                result[name][text, place, some] = values
        return result

    def _pieces(self) -> Iterator[tuple[slice, Found]]:
        """What is found of some components after the others, along component and row."""
        before, start = torch.zeros_like(self.residual.total), 0
        step = max(1, _NUMBERS // before.numel())
        for _, parts in groupby(self.residual.parts, key=self._given_with):
            added = torch.zeros_like(before)
            for part in parts:
                added += part.sum()
                for some in torch.arange(len(part.sites)).split(step):
                    vectors = part.take(some.tolist()).vectors()
                    yield slice(start, start + len(some)), self._read(before, vectors)
                    start += len(some)
            before += added

    def _given_with(self, part: Part) -> tuple[str | bool, int | None]:
        """Parts with which the same is given the same stream: of a block's half, or of a block."""
        site = part.sites[0]
        if site.name in _ALONE:
            return site.name, site.layer
        return not self.parallel and site.name in _ATTENTION, site.layer

    def _read(
        self,
        before: Float[Tensor, "batch pos d_model"],
        vectors: Float[Tensor, "batch pos component d_model"],
    ) -> Found:
        text, place = (x.to(before.device) for x in self.asked.rows())
        norm, final = self.unembed.norm, self.residual.total[text, place]
        stream = norm.keep(before[text, place])
        kept = norm.keep(vectors[text, place].transpose(0, 1))
        if self.scale == "stream":
            scale = norm.scale(final)
            said = change = kept / scale
            stream = stream / scale
        else:
            said = norm.standardize(kept)
            change = BothNorms.of(self.unembed, stream, -kept).recomputed
            stream = norm.standardize(stream)
        found = self.promotion.read(said.flatten(0, 1))
        found = {name: x.unflatten(0, said.shape[:2]) for name, x in found.items()}
        return {**found, "kl_added": self._kl(stream, change), **self._targets(said, text)}

    def _kl(
        self,
        normalized: Float[Tensor, "row d_model"],
        change: Float[Tensor, "component row d_model"],
    ) -> Float[Tensor, "component row"]:
        unknown = torch.full((len(normalized), 1), -1, device=normalized.device)
        effects = read_changes(self.unembed, normalized[:, None], unknown, change[:, :, None])
        return effects.kl[..., 0]

    def _targets(self, said: Float[Tensor, "component row d_model"], text: Tensor) -> Found:
        columns = self.promotion.tokens.columns
        logits = {
            name: (single(said) * columns(ids.to(text.device)[text])).sum(-1)
            for name, ids in self.asked.targets.items()
        }
        found = {"logit_target": logits["target"]} if logits else {}
        if "foil" in logits:
            found["logit_difference"] = logits["target"] - logits["foil"]
        return found
