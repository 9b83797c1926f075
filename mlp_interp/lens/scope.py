"""Prompts that streams of other texts are put into."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.edits import Edit
from mlp_interp.lens.labels import stream_site
from mlp_interp.models.stream import check_stream
from mlp_interp.prompts.tokenizing import decode
from mlp_interp.runs import Runner
from mlp_interp.runs.generation import end_token

__all__ = ["Scope"]


@dataclass(frozen=True)
class Scope:
    """Prompts that streams are put into.

    Attributes:
        runner: Of the model.
        prompts: One for each stream that is read.
        at: At which position.
    """

    runner: Runner
    prompts: Int[Tensor, "batch pos"]
    at: int

    def unpatched(self) -> Float[Tensor, "batch d_model"]:
        """The final streams at the end, with nothing put in."""
        return self.runner.run(self.prompts).final[:, -1]

    def final(
        self, streams: Float[Tensor, "draw batch d_model"], layer: int
    ) -> Float[Tensor, "draw batch d_model"]:
        """The final streams at the end, with these put in."""
        prompts, edit = self._put(streams, layer)
        final = self.runner.run(prompts, edits=edit).final[:, -1]
        check_stream(final)
        return final.unflatten(0, streams.shape[:2])

    def continued(
        self, streams: Float[Tensor, "draw batch d_model"], layer: int, new: int
    ) -> list[list[str]]:
        """What the prompts are continued by, with these put in."""
        prompts, edit = self._put(streams, layer)
        flat = self._texts(prompts, new, [edit])
        return [flat[n : n + len(self.prompts)] for n in range(0, len(flat), len(self.prompts))]

    def continued_unpatched(self, new: int) -> list[str]:
        """What the prompts are continued by as they are."""
        return self._texts(self.prompts, new, [])

    def _put(
        self, streams: Float[Tensor, "draw batch d_model"], layer: int
    ) -> tuple[Int[Tensor, "row pos"], Edit]:
        site = stream_site(layer, self.runner.weights.n_layers)
        values = streams.flatten(0, 1)[:, None]
        return self.prompts.repeat(len(streams), 1), Edit.set(site, values, positions=self.at)

    def _texts(self, prompts: Int[Tensor, "row pos"], new: int, edits: Sequence[Edit]) -> list[str]:
        model = self.runner.weights.model
        end = end_token(model, "model", self.runner.weights.d_vocab)
        rows = self.runner.generate(prompts, edits=edits, max_new_tokens=new).new.tolist()
        kept = [row[: row.index(end)] if end in row else row for row in rows]
        return [decode(getattr(model, "tokenizer", None), row) for row in kept]
