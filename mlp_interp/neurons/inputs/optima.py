"""What was found, looked at from all sides."""

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
from mlp_interp.neurons.weights.vocabulary import texts
from mlp_interp.results import to_numpy
from mlp_interp.runs import Runner

__all__ = ["Found"]

_NEAREST = 5


@dataclass(frozen=True)
class Found:
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
        return nearest(self.space.rows, self.vectors, top=top)

    def dataset(self, *, batch_size: int, max_new_tokens: int) -> xr.Dataset:
        """Everything about them, the best first."""
        chosen = self.near[1][..., 0] if self.tokens is None else self.tokens
        whole = self.space.texts(chosen)
        of_tokens = self.target.of_tokens(whole, batch_size=batch_size)
        if self.tokens is None:
            activation, score = self.target(self.space.stream(self.vectors))
        else:
            activation, score = of_tokens
        after_tokens = self._after_tokens(whole, max_new_tokens)
        after = after_tokens if self.tokens is not None else self._after_vectors(max_new_tokens)
        unit = {"unit": f"activation of {self.target.site.label}"}
        restart, place = ("restart",), ("restart", "pos")
        result = xr.Dataset(
            {
                "activation": (
                    restart,
                    to_numpy(activation),
                    {**unit, "long_name": "of the optimum"},
                ),
                "trace": (
                    ("restart", "step"),
                    to_numpy(self.target.sign * self.trace),
                    {**unit, "long_name": "what is climbed, at every step"},
                ),
                "activation_of_tokens": (
                    restart,
                    to_numpy(of_tokens[0]),
                    {**unit, "long_name": "of the tokens"},
                ),
                "text": (
                    restart,
                    _strings(decoded(self.model, whole[:, -self.space.length :])),
                    _about("text", "the tokens, joined"),
                ),
                "continuation": (
                    restart,
                    _strings(after),
                    _about("text", "greedy text after the optimum"),
                ),
                "continuation_of_tokens": (
                    restart,
                    _strings(after_tokens),
                    _about("text", "greedy text after the tokens"),
                ),
                "token_id": (place, self._ids(chosen), _about("token", "found, or nearest")),
                "token_text": (place, self._named(chosen), _about("text", "found, or nearest")),
                **self._geometry(),
            },
            coords={
                "restart": np.arange(len(chosen)),
                "pos": np.arange(chosen.shape[1]),
                "step": np.arange(self.trace.shape[1]),
            },
        )
        order = to_numpy(score.cpu()).argsort(kind="stable")[::-1].copy()
        return result.isel(restart=order).assign_coords(restart=np.arange(len(order)))

    def _geometry(self) -> dict[str, Any]:
        cosine, near = self.near
        ranked = ("restart", "pos", "rank")
        distance = to_numpy(self.space.distance(self.vectors))
        return {
            "embedding": (
                ("restart", "pos", "d_model"),
                to_numpy(self.vectors),
                _about("embedding", "of the optimum, centred"),
            ),
            "nearest_id": (ranked, self._ids(near), _about("token", "tokens nearest by angle")),
            "nearest_text": (ranked, self._named(near), _about("text", "tokens nearest by angle")),
            "cosine": (ranked, to_numpy(cosine), _about("cosine", "with the nearest tokens")),
            "distance": (
                ("restart", "pos"),
                distance,
                {
                    "long_name": "squared distance to the nearest token",
                    "unit": "squared mean norm of the tokens' embeddings",
                },
            ),
        }

    def _ids(self, chosen: Tensor) -> np.ndarray:
        return to_numpy(self.space.vocabulary[chosen.cpu()])

    def _named(self, chosen: Tensor) -> np.ndarray:
        return texts(self.model, self._ids(chosen)).astype(str)

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


def _about(unit: str, long_name: str) -> dict[str, str]:
    return {"unit": unit, "long_name": long_name}


def _strings(values: Sequence[str]) -> np.ndarray:
    """Strings as netCDF keeps them."""
    return np.array(values, dtype=object).astype(str)
