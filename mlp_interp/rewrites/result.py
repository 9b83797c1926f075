"""A rewrite: pairs of vectors that are added to MLPs' output weights, and where they are from."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mlp_interp.edits import Action, Edit
from mlp_interp.edits.selection import Selection
from mlp_interp.models import Weights, describe
from mlp_interp.models.output_weights import added_to_outputs
from mlp_interp.models.protocol import Model
from mlp_interp.models.vectors import Vectors
from mlp_interp.results import load, save
from mlp_interp.rewrites.facts import Fact
from mlp_interp.sites import Site

__all__ = ["Rewrite", "checked_rewrite", "edits_of_parts", "reads_of", "rewritten"]

# By what share of the longest reading direction the same model may differ, as its weights are held.
_SINGLE, _HALF = 1e-4, 1e-2


@dataclass(frozen=True, eq=False)
class Rewrite:
    """What is added to the output weights of some MLPs: ``W ← W + Σ u δᵀ``, a term for each fact.

    Made by `rewrite` and `rewrite_many`; `rewritten` puts it into a model for a while. It holds two
    vectors a layer and fact, never a matrix.

    Attributes:
        data: A Dataset along ``layer`` and ``fact`` with `u` (neuron), `delta` (d_model), `key`
            (neuron: the mean of its contexts), `fires` (context: the key in each context times
            `u`; 1 on average, or less where several facts share), `length` (of δ, in lengths of
            the MLP's output), `footprint` (along ``layer``: root mean square of what is
            added to the MLP's output at the tokens that the keys' second moment is of, NaN where
            that is rounding), `loss` (way, fact: nats of the target before and after the search
            for δ) and `reads` (neuron: how long what each neuron reads with is, by which the model
            is known again, however it is processed).

    Example:
        >>> from mlp_interp import load_corpus, load_model
        >>> from mlp_interp.rewrites import associations, rewrite
        >>> model = load_model("nano")
        >>> keys = associations(model, load_corpus("nano", model, sequences=16), layers=[0])
        >>> found = rewrite(
        ...     model, "France", "The capital of France is", " Rome", layer=0, keys=keys
        ... )
        >>> found
        Rewrite('The capital of France is' -> ' Rome'; layer 0)
        >>> found.u.shape, found.delta.shape
        (torch.Size([1, 1, 768]), torch.Size([1, 1, 192]))
    """

    data: xr.Dataset

    def __post_init__(self) -> None:
        wanted = {"u", "delta", "key", "subject", "prompt", "target"}
        if not isinstance(self.data, xr.Dataset):
            raise ValueError(f"data={type(self.data).__name__}; wanted that of a rewrite")
        if missing := wanted - {*map(str, self.data.variables)}:
            raise ValueError(f"data lacks {', '.join(sorted(missing))}; wanted that of a rewrite")

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that are changed."""
        return tuple(map(int, self.data["layer"].values))

    @property
    def facts(self) -> list[Fact]:
        """What was written."""
        columns = (self.data[name].values.tolist() for name in Fact._fields)
        return [Fact(*texts) for texts in zip(*columns, strict=True)]

    @property
    def u(self) -> Float[Tensor, "layer fact d_mlp"]:
        """What reads the keys."""
        return torch.from_numpy(self.data["u"].values)

    @property
    def delta(self) -> Float[Tensor, "layer fact d_model"]:
        """What is written where they are read."""
        return torch.from_numpy(self.data["delta"].values)

    def change(self, layer: int) -> Float[Tensor, "d_mlp d_model"]:
        """The whole matrix that is added to a layer's ``W_out``, in double precision.

        Raises:
            ValueError: It is a layer that is not changed.
        """
        if layer not in self.layers:
            raise ValueError(f"layer={layer}; wanted one of {list(self.layers)}")
        at = self.layers.index(layer)
        return self.u[at].double().T @ self.delta[at].double()

    def as_edits(self, model: Model) -> list[Edit]:
        """Edits after which the stream is that of the rewritten model.

        For runs and analyses that take edits, so that weights stay as they are and only blocks from
        the first changed one on are run. They are at ``post``, one for each layer: what is added
        there, the least that ``W_out`` turns into δ, is not what the rewritten model's neurons
        hold, which are the same as before; what the MLP writes, and all that follows, agrees.

        Args:
            model: The model.

        Raises:
            ValueError: It is of another model, or the model's ``W_out`` cannot write some δ.

        Example:
            >>> from mlp_interp import load_corpus, load_model, run
            >>> from mlp_interp.rewrites import associations, rewrite
            >>> model = load_model("nano")
            >>> keys = associations(model, load_corpus("nano", model, sequences=16), layers=[0])
            >>> found = rewrite(
            ...     model, "France", "The capital of France is", " Rome", layer=0, keys=keys
            ... )
            >>> after = run(model, "The capital of France is", edits=found.as_edits(model))
            >>> model.tokenizer.decode(after.logits(-1).argmax())
            ' Rome'
        """
        parts = zip(self.layers, self.u, self.delta, strict=True)
        return edits_of_parts(self.check(model), {layer: part for layer, *part in parts})

    def check(self, model: Model) -> Weights:
        """The weights of a model that this can be done to.

        Raises:
            ValueError: It has not these layers, neurons or width, or neurons that read otherwise.
        """
        weights = Weights.of(model)
        sizes = self.u.shape[-1], self.delta.shape[-1], max(self.layers)
        if sizes[:2] != (weights.d_mlp, weights.d_model) or sizes[2] >= weights.n_layers:
            raise ValueError(
                f"rewrite of {sizes[0]} neurons and width {sizes[1]} at layers {self.layers} for "
                f"model={model.cfg.model_name!r} of {weights.d_mlp}, {weights.d_model} and "
                f"{weights.n_layers} layers; wanted the model that it was made for"
            )
        if "reads" in self.data:
            self._check_reads(weights)
        return weights

    def _check_reads(self, weights: Weights) -> None:
        made, own = self.data.attrs, describe(weights.model)
        half = not {str(made.get("dtype")), own["dtype"]} <= {"float32", "float64"}
        wanted = self.data["reads"].values
        apart = np.abs(reads_of(weights, self.layers) - wanted).max() / wanted.max()
        if apart > (_HALF if half else _SINGLE):
            raise ValueError(
                f"rewrite is of model={made.get('model')!r}, whose neurons in layers "
                f"{list(self.layers)} read otherwise than those of model={own['model']!r} (by up "
                f"to {apart:.1e} of the longest); wanted the model that it was made for"
            )

    def save(self, path: str | Path) -> Path:
        """Write it to a file, as `mlp_interp.save` does."""
        return save(self.data, path)

    @classmethod
    def load(cls, path: str | Path) -> "Rewrite":
        """Read what `save` wrote.

        Raises:
            ValueError: The file is of something else.
        """
        found = load(path)
        if not isinstance(found, xr.Dataset):
            raise ValueError(f"path={str(path)!r} holds one array; wanted what save wrote")
        return cls(found)

    def __repr__(self) -> str:
        first, *more = self.facts
        others = f" and {len(more)} more" if more else ""
        layers = f"layer{'s' if len(self.layers) > 1 else ''} {', '.join(map(str, self.layers))}"
        return f"Rewrite({first.prompt!r} -> {first.target!r}{others}; {layers})"


def reads_of(weights: Weights, layers: Sequence[int]) -> Float[np.ndarray, "layer neuron"]:
    """How long the directions are that neurons read the normed stream with, of any processing.

    Rewrites leave them as they are, so that one may be made, or done, on top of another.
    """
    folded = [Vectors.of(weights, layer).receptor.folded for layer in layers]
    return torch.stack([x.norm(dim=-1) for x in folded]).float().cpu().numpy()


@contextmanager
def rewritten(model: Model, *rewrites: Rewrite) -> Iterator[Model]:
    """Put rewrites into a model's own weights for as long as a block of code runs.

    Whatever runs in the block, in this package or not, sees a model that was trained so. Blocks may
    be nested. When the block is left, also by an error, every weight is as it was to the last bit.

    Args:
        model: The model.
        *rewrites: What is added, in this order.

    Yields:
        The model.

    Raises:
        ValueError: A rewrite is of another model, or the model does not compute with the weights
            that it shows.

    Example:
        >>> from mlp_interp import load_corpus, load_model
        >>> from mlp_interp.rewrites import associations, rewrite
        >>> model = load_model("nano")
        >>> keys = associations(model, load_corpus("nano", model, sequences=16), layers=[0])
        >>> prompt = "The capital of France is"
        >>> found = rewrite(model, "France", prompt, " Rome", layer=0, keys=keys)
        >>> with rewritten(model, found):
        ...     model.tokenizer.decode(model(prompt)[0, -1].argmax())
        ' Rome'
        >>> model.tokenizer.decode(model(prompt)[0, -1].argmax())
        ' Paris'
    """
    for found in rewrites:
        checked_rewrite(found).check(model)
    with ExitStack() as stack:
        for found in rewrites:
            changes = {layer: found.change(layer) for layer in found.layers}
            stack.enter_context(added_to_outputs(model, changes))
        yield model


def checked_rewrite(given: Any) -> Rewrite:
    """What was given, if it is a rewrite.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(given, Rewrite):
        raise ValueError(f"rewrite={type(given).__name__}; wanted what rewrite gave")
    return given


def edits_of_parts(
    weights: Weights, parts: Mapping[int, Sequence[Float[Tensor, "fact _width"]]]
) -> list[Edit]:
    """The edits that stand for ``u`` and ``δ`` of some layers."""
    return [
        Edit(Site("post", layer), _Rewritten(u, _written_by(weights, layer, delta)))
        for layer, (u, delta) in parts.items()
    ]


@dataclass(frozen=True, eq=False)
class _Rewritten(Action):
    """Add, for each fact, how much the neurons are along `along`, times what stands for its δ."""

    along: Float[Tensor, "fact d_mlp"]
    added: Float[Tensor, "fact d_mlp"]
    name: ClassVar[str] = "rewrite"

    @property
    def values(self) -> tuple[Tensor, ...]:
        """One row of either: the widths are to fit."""
        return (self.along[0], self.added[0])

    def __call__(self, old: Tensor, selection: Selection, *read: Tensor) -> Tensor:
        """The activations and what is added to them."""
        return old + (old @ self.along.to(old).T) @ self.added.to(old)


def _written_by(
    weights: Weights, layer: int, delta: Float[Tensor, "fact d_model"]
) -> Float[Tensor, "fact d_mlp"]:
    """The smallest activations that ``W_out`` turns into some vectors."""
    matrix, delta = weights.parameter(layer, "W_out").double().cpu(), delta.double()
    # Weights that are centred lack a direction.
    inverse = torch.linalg.pinv(matrix.T @ matrix, hermitian=True, rtol=1e-10)
    found = delta @ inverse @ matrix.T
    apart = float((found @ matrix - delta).norm() / delta.norm().clamp_min(1e-12))
    if apart > 1e-4:
        raise ValueError(
            f"W_out of layer {layer} cannot write {apart:.1e} of δ, so that no edit of its neurons "
            "does what the rewrite does; wanted `rewritten`"
        )
    return found
