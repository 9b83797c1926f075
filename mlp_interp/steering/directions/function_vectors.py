"""Function vectors: what heads write when examples have shown them a task."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mlp_interp.edits import Edit
from mlp_interp.models import Weights, describe
from mlp_interp.models.indices import indices
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.prompts import Contrast
from mlp_interp.prompts.texts import texts_of_side
from mlp_interp.prompts.tokenizing import encode, tokenizer_of
from mlp_interp.results import mean_and_error, to_numpy
from mlp_interp.runs import Runner
from mlp_interp.sites import Site, SiteLike
from mlp_interp.steering.directions.activations import (
    Texts,
    activations,
    check_reading,
    texts_of,
)
from mlp_interp.steering.directions.few_shot import FewShot
from mlp_interp.steering.directions.result import as_direction

__all__ = ["function_vector", "head_effects"]


@own_mode()
@torch.no_grad()
def head_effects(
    model: Model, task: FewShot | Contrast, *, prepend_bos: bool = True, batch_size: int = 64
) -> xr.DataArray:
    r"""Which heads carry a task: the average indirect effect of each.

    A head's output at the last position of uninformative prompts is replaced by its mean over the
    prompts that show the task. The effect is how much the answer's log-probability rises.

    Args:
        model: The model.
        task: A `FewShot`; or a `Contrast` whose clean prompts show the task and whose corrupted
            ones ask for the same answer without showing it. (The corrupted prompts of
            `prompts.antonyms` ask for another word; see `function_vector` for what to do.)
        prepend_bos: Whether texts begin with BOS.
        batch_size: How many prompts run at once.

    Returns:
        ``[layer, head]`` in nats, with `effect_se`, the standard error over prompts; `baseline` in
        the attributes is the answer's mean log-probability without any replacement.

    Raises:
        ValueError: The task has no uninformative prompts, or an answer is no token of the model.

    References:
        Todd et al. 2023, "Function Vectors in Large Language Models", arXiv:2310.15213, eq. 4.
        They take the change of the probability; its logarithm does not saturate.

    Example:
        >>> from mlp_interp import load_model
        >>> from mlp_interp.steering import FewShot
        >>> task = FewShot(
        ...     prompts=["Q: king\nA: queen\nQ: hot\nA:", "Q: rich\nA: poor\nQ: big\nA:"],
        ...     answers=[" cold", " small"],
        ...     uninformative=["Q: run\nA: ran\nQ: hot\nA:", "Q: fall\nA: fell\nQ: big\nA:"],
        ... )
        >>> effects = head_effects(load_model("nano"), task)
        >>> effects.sizes
        Frozen({'layer': 4, 'head': 6})
    """
    read = _Task(model, task, prepend_bos, batch_size)
    return _effects(model, read, read.mean_z())


@own_mode()
@torch.no_grad()
def function_vector(
    model: Model,
    task: FewShot | Contrast,
    *,
    heads: Literal["auto"] | SiteLike | Sequence[SiteLike] = "auto",
    n_heads: int = 10,
    layers: int | Sequence[int] | None = None,
    prepend_bos: bool = True,
    batch_size: int = 64,
) -> xr.DataArray:
    """Sum of what a task's heads write at the last position: a direction that evokes the task.

    Args:
        model: The model.
        task: As of `head_effects`. With `heads` given, only its prompts are used.
        heads: Labels (``"L1H0"``), `Site` or pairs ``(layer, head)``; or ``"auto"`` for those with
            the largest `head_effects`.
        n_heads: How many with ``"auto"``. The paper takes 10 of 448; a small model has fewer.
        layers: At which layers it is to be added; None for all. The vector is the same at each.
            The paper adds it at about a third of the depth.
        prepend_bos: Whether texts begin with BOS.
        batch_size: How many prompts run at once.

    Returns:
        ``[layer, d_model]`` at ``resid_post``. The attributes name the `heads`, largest effect
        first, and with ``"auto"`` their `effects` in nats.

    Raises:
        ValueError: As `head_effects`; a label that is no head of the model; more heads than it has;
            a model that normalises what attention and MLP write.

    References:
        Todd et al. 2023, "Function Vectors in Large Language Models", arXiv:2310.15213, eq. 5.

    Example:
        >>> from mlp_interp import load_model, prompts
        >>> from mlp_interp.steering import FewShot
        >>> model = load_model("nano")
        >>> lists = prompts.antonyms(model, n=8, seed=0)
        >>> texts = [text.removeprefix("<|endoftext|>") for text in lists.clean_text]
        >>> task = FewShot(
        ...     texts, lists.answer_text, ["Q:" + text.rsplit("Q:", 1)[1] for text in texts]
        ... )
        >>> function_vector(model, task, n_heads=3).sizes
        Frozen({'layer': 4, 'd_model': 192})
    """
    weights = Weights.of(model)
    weights.check_no_post_norms("function_vector")
    where = indices("layers", layers, weights.n_layers)
    read = _Task(model, task, prepend_bos, batch_size)
    attrs: dict[str, Any] = {}
    if isinstance(heads, str) and heads == "auto":
        if not 1 <= n_heads <= weights.n_layers * weights.n_heads:
            raise ValueError(f"n_heads={n_heads}; wanted 1 to {weights.n_layers * weights.n_heads}")
        read.need_uninformative()
        z = read.mean_z()
        effects = _effects(model, read, z)
        order = np.argsort(-effects.values, axis=None, kind="stable")[:n_heads]
        places = [divmod(int(i), weights.n_heads) for i in order]
        attrs["effects"] = [float(effects.values[place]) for place in places]
    else:
        named = weights.places(heads, kind="head", argument="heads", words=["auto"])
        places = [(site.layer or 0, site.unit) for site in named]
        z = read.mean_z()
    vector = torch.stack(
        [z[at, h] @ weights.parameter(at, "W_O")[h].double().cpu() for at, h in places]
    ).sum(0)
    return as_direction(
        model,
        np.repeat(to_numpy(vector)[None], len(where), axis=0),
        site="resid_post",
        layers=where,
        attrs={
            "method": "function_vector",
            "long_name": "sum of heads' mean outputs over a task",
            "data": f"{len(read.prompts)} prompts",
            "heads": ", ".join(Site("z", at, head=h).label for at, h in places),
            **attrs,
        },
    )


class _Task:
    """A task as tokens, checked."""

    def __init__(self, model: Model, task: Any, prepend_bos: bool, batch_size: int) -> None:
        self.model, self.batch_size = model, batch_size
        given: tuple[Any, Any]
        if isinstance(task, Contrast):
            given = texts_of_side(model, task), texts_of_side(model, task, "corrupted")
            self.answers = task.answers.cpu()
        elif isinstance(task, FewShot):
            given = list(task.prompts), task.uninformative and list(task.uninformative)
            self.answers = torch.tensor([self._first(word) for word in task.answers])
        else:
            raise ValueError(f"task={type(task).__name__}; wanted a FewShot or a Contrast")

        def read(prompts: Any, what: str) -> Texts:
            texts = (
                prompts
                if isinstance(prompts, Texts)
                else texts_of(model, prompts, what=what, prepend_bos=prepend_bos)
            )
            check_reading(texts, "last", batch_size, what)
            return texts

        self.prompts = read(given[0], "prompts")
        self.uninformative = None if given[1] is None else read(given[1], "uninformative")

    def need_uninformative(self) -> Texts:
        if self.uninformative is None:
            raise ValueError(
                "uninformative=None; wanted prompts that do not show the task, or heads named"
            )
        return self.uninformative

    def mean_z(self) -> Float[Tensor, "layer head d_head"]:
        """Every head's mean output, before ``W_O``, at the last position of the task's prompts."""
        layers = range(Weights.of(self.model).n_layers)
        found = activations(self.model, self.prompts, "z", layers, batch_size=self.batch_size)
        return found.mean(0)

    def _first(self, word: str) -> int:
        tokenizer = tokenizer_of(self.model)
        ids = encode(tokenizer, word)
        if not ids or ids[0] == tokenizer.unk_token_id:
            raise ValueError(f"answers: {word!r} is no token of the model")
        return ids[0]


def _effects(model: Model, task: _Task, z: Float[Tensor, "layer head d_head"]) -> xr.DataArray:
    texts, runner = task.need_uninformative(), Runner.of(model)
    layers, heads = z.shape[:2]
    found = torch.empty(layers, heads, len(texts), dtype=torch.float64)
    baseline = torch.empty(len(texts), dtype=torch.float64)
    for part, tokens, _ in texts.batches(task.batch_size):
        clean, answers = runner.run(tokens), task.answers[part]
        before = _log_probability(runner, clean.final, answers)
        baseline[part] = before
        for layer in range(layers):
            for head in range(heads):
                put = Edit.set(Site("z", layer, head=head), z[layer, head], positions=-1)
                after = _log_probability(runner, runner.edited(clean, [put]), answers)
                found[layer, head, part] = after - before
    mean, error = mean_and_error(found)
    return xr.DataArray(
        to_numpy(mean),
        dims=("layer", "head"),
        coords={
            "layer": np.arange(layers),
            "head": np.arange(heads),
            "effect_se": (("layer", "head"), to_numpy(error)),
        },
        attrs={
            "unit": "nats",
            "long_name": "rise of the answer's log-probability",
            "exact": 1,
            "baseline": float(baseline.mean()),
            "data": f"{len(task.prompts)} prompts",
            **describe(model),
        },
        name="effect",
    )


def _log_probability(
    runner: Runner, final: Float[Tensor, "batch pos d_model"], answers: Tensor
) -> Float[Tensor, " batch"]:
    logits = runner.unembed.logits(final[:, -1]).double().log_softmax(-1).cpu()
    return logits.gather(1, answers[:, None])[:, 0]
