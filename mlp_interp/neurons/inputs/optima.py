"""Optima of a search, looked at from all sides."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.neurons.inputs.space import Space
from mlp_interp.neurons.inputs.target import AscentTarget
from mlp_interp.neurons.inputs.vectors import decoded, nearest, read_aloud
from mlp_interp.prompts.reading import ids_and_texts
from mlp_interp.results import strings, to_numpy, variable
from mlp_interp.runs import Runner

__all__ = ["Optima"]

_NEAREST = 5


@dataclass(frozen=True)
class Optima:
    """Optima, one for each restart.

    Attributes:
        target: What was driven.
        space: Where the optima lie.
        vectors: Embeddings at the free positions.
        tokens: Indices of the vocabulary, where the optima are texts; else None.
        trace: The score at every step.
    """

    target: AscentTarget
    space: Space
    vectors: Float[Tensor, "restart pos d_model"]
    tokens: Int[Tensor, "restart pos"] | None
    trace: Float[Tensor, "restart step"]

    @property
    def model(self) -> Any:
        """The model."""
        return self.target.forward.weights.model

    @cached_property
    def near(self) -> tuple[Float[Tensor, "restart pos rank"], Int[Tensor, "restart pos rank"]]:
        """Cosine and index of the tokens nearest each vector."""
        top = min(_NEAREST, len(self.space.vocabulary))
        return nearest(self.space.rows, self.vectors, norm=self.space.norm, top=top)

    def dataset(self, *, batch_size: int, max_new_tokens: int) -> xr.Dataset:
        """Everything about them, the best first."""
        indices = self.near[1][..., 0] if self.tokens is None else self.tokens
        whole = self.space.texts(indices)
        of_tokens = self.target.of_tokens(whole, batch_size=batch_size)
        if self.tokens is None:
            activation, score = self.target(self.space.stream(self.vectors))
        else:
            activation, score = of_tokens
        after_tokens = self._after_tokens(whole, max_new_tokens)
        after = after_tokens if self.tokens is not None else self._after_vectors(max_new_tokens)
        unit = f"activation of {self.target.site.label}"
        restart, place = "restart", ("restart", "pos")
        joined = decoded(self.model, whole[:, -self.space.length :])

        def text(values: Sequence[str], long_name: str) -> xr.Variable:
            return variable(restart, strings(values), unit="text", long_name=long_name)

        result = xr.Dataset(
            {
                "activation": variable(restart, activation, unit=unit, long_name="of the optimum"),
                "trace": variable(
                    (restart, "step"),
                    self.target.sign * self.trace,
                    unit=unit,
                    long_name="what is climbed, at every step",
                ),
                "activation_of_tokens": variable(
                    restart, of_tokens[0], unit=unit, long_name="of the tokens"
                ),
                "text": text(joined, "the tokens, joined"),
                "continuation": text(after, "greedy text after the optimum"),
                "continuation_of_tokens": text(after_tokens, "greedy text after the tokens"),
                **self._tokens("token", place, indices, "found, or nearest"),
                **self._geometry(),
            },
            coords={
                "restart": np.arange(len(indices)),
                "pos": np.arange(indices.shape[1]),
                "step": np.arange(self.trace.shape[1]),
            },
        )
        order = to_numpy(score.cpu()).argsort(kind="stable")[::-1].copy()
        return result.isel(restart=order).assign_coords(restart=np.arange(len(order)))

    def _geometry(self) -> dict[str, xr.Variable]:
        cosine, near = self.near
        place, ranked = ("restart", "pos"), ("restart", "pos", "rank")
        return {
            "embedding": variable(
                (*place, "d_model"),
                self.vectors,
                unit="embedding",
                long_name="of the optimum, centred",
            ),
            **self._tokens("nearest", ranked, near, "tokens nearest by angle"),
            "cosine": variable(ranked, cosine, unit="cosine", long_name="with the nearest tokens"),
            "distance": variable(
                place,
                self.space.distance(self.vectors),
                unit="squared mean norm of the tokens' embeddings",
                long_name="squared distance to the nearest token",
            ),
        }

    def _tokens(
        self, name: str, dims: tuple[str, ...], indices: Tensor, long_name: str
    ) -> dict[str, xr.Variable]:
        ids = to_numpy(self.space.vocabulary[indices.cpu()])
        return ids_and_texts(self.model, name, dims, ids, long_name)

    def _after_tokens(self, whole: Int[Tensor, "restart all_pos"], steps: int) -> list[str]:
        if not steps:
            return [""] * len(whole)
        runner = Runner(self.target.forward)
        added = runner.generate(whole, max_new_tokens=steps, eos=None).new
        return decoded(self.model, added)

    def _after_vectors(self, steps: int) -> list[str]:
        forward = self.target.forward
        stream = self.space.stream(self.vectors)
        unembed = Runner(forward).unembed
        return decoded(self.model, read_aloud(forward, unembed, stream, steps=steps))
