"""The usual metrics by name, and from a contrast."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from mlp_interp.metrics.metric import KL, Continuation, Custom, Linear, Metric
from mlp_interp.sites import did_you_mean

__all__ = [
    "METRICS",
    "MetricLike",
    "Pairs",
    "answer_log_probability",
    "kl",
    "log_probability",
    "logit",
    "logit_difference",
    "metric_for",
    "of_function",
    "probability",
    "probability_difference",
]

METRICS = (
    "logit_difference",
    "logit",
    "log_probability",
    "answer_log_probability",
    "probability",
    "probability_difference",
    "kl",
)


_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


MetricLike = str | Metric | Callable[..., Any]
"""How a metric is named: by one of `METRICS`, by itself, or by a function (`of_function`)."""


@runtime_checkable
class Pairs(Protocol):
    """What a metric needs to know of a `Contrast`."""

    @property
    def answers(self) -> Tensor:
        """Right after clean, ``[prompt]``."""
        ...

    @property
    def foils(self) -> Tensor:
        """Right after corrupted, ``[prompt]``."""
        ...

    @property
    def answer_tokens(self) -> Sequence[Sequence[int]]:
        """The whole answer of each prompt, of one token or several."""
        ...

    @property
    def all_answers(self) -> Sequence[Sequence[int]]:
        """Every right continuation of each prompt."""
        ...

    @property
    def all_foils(self) -> Sequence[Sequence[int]]:
        """Every wrong one of the same kind."""
        ...


def logit_difference(
    answers: Int[Tensor, " prompt"], foils: Int[Tensor, " prompt"], *, position: int = -1
) -> Linear:
    """Logit of the answer less that of the foil: log-odds between the two, in logits.

    Raises:
        ValueError: Not as many foils as answers.
    """
    if answers.shape != foils.shape:
        raise ValueError(
            f"answers={tuple(answers.shape)} and foils={tuple(foils.shape)}; wanted as many foils "
            "as answers"
        )
    return Linear(
        name="logit_difference",
        unit="logits",
        positions=(position,),
        tokens=torch.stack([answers, foils], dim=-1),
        coefficients=(1.0, -1.0),
    )


def logit(tokens: Int[Tensor, " prompt"], *, position: int = -1) -> Linear:
    """Logit of one token per prompt.

    Models that centre their unembedding shift it by a constant per position: compare logits
    between runs of one model only.
    """
    return Linear(
        name="logit",
        unit="logits",
        positions=(position,),
        tokens=tokens[:, None],
        coefficients=(1.0,),
    )


def log_probability(tokens: Int[Tensor, " prompt"], *, position: int = -1) -> Custom:
    """Log-probability of one token per prompt, in nats."""

    def function(logits: Tensor, prompts: Tensor) -> Tensor:
        chosen = tokens.to(logits.device)[prompts]
        return logits[:, 0].log_softmax(-1).gather(-1, chosen[:, None])[:, 0]

    return Custom(
        name="log_probability",
        unit="nats",
        positions=(position,),
        function=function,
        tokens=tokens,
    )


def answer_log_probability(answers: Sequence[Sequence[int]]) -> Continuation:
    """Log-probability of a whole answer of several tokens, in nats: a sum over its tokens.

    Both prompts are run with the answer after them, so that each token is read given those before
    it; the result has the answer's positions, too. Of one token it is `log_probability`.

    Args:
        answers: Token ids by prompt, such as a contrast's `answer_tokens` or `foil_tokens`. Of
            longer answers it is lower, so compare runs, or answers of one length.

    Raises:
        ValueError: A prompt without tokens.

    Example:
        >>> from mlp_interp import load_model, patch
        >>> from mlp_interp.prompts import Contrast
        >>> model = load_model("nano")
        >>> pair = "The capital of France is", "The capital of Italy is"
        >>> contrast = Contrast.of(model, *pair, answers=" Paris.", foils=" Rome.")
        >>> result = patch(model, contrast, "answer_log_probability", sites="resid_pre")
        >>> result.sizes["pos"], bool(result.clean > result.corrupted)
        (7, True)
    """
    return Continuation(
        name="answer_log_probability",
        unit="nats",
        continuations=tuple(tuple(tokens) for tokens in answers),
    )


def probability(tokens: Int[Tensor, " prompt"], *, position: int = -1) -> Custom:
    """Probability of one token per prompt, as in causal tracing."""

    def function(logits: Tensor, prompts: Tensor) -> Tensor:
        chosen = tokens.to(logits.device)[prompts]
        return logits[:, 0].softmax(-1).gather(-1, chosen[:, None])[:, 0]

    return Custom(
        name="probability",
        unit="probability",
        positions=(position,),
        function=function,
        tokens=tokens,
    )


def probability_difference(
    answers: Sequence[Sequence[int]], foils: Sequence[Sequence[int]], *, position: int = -1
) -> Custom:
    """Probability of all right tokens less that of all wrong ones (greater-than's measure).

    References:
        Hanna et al., "How does GPT-2 compute greater-than?", 2023.
    """
    if len(answers) != len(foils):
        raise ValueError(
            f"answers for {len(answers)} prompts and foils for {len(foils)}; wanted as many"
        )

    def function(logits: Tensor, prompts: Tensor) -> Tensor:
        sign = torch.zeros_like(logits[:, 0])
        for row, prompt in enumerate(prompts.tolist()):
            sign[row, list(answers[prompt])] = 1.0
            sign[row, list(foils[prompt])] = -1.0
        return (logits[:, 0].softmax(-1) * sign).sum(-1)

    return Custom(
        name="probability_difference",
        unit="probability",
        positions=(position,),
        function=function,
        tokens=torch.zeros(len(answers), 1),
    )


def kl(*, positions: Sequence[int] = (-1,)) -> KL:
    """KL(clean || run) in nats, averaged over `positions`: 0 for the clean run itself."""
    return KL(name="kl", unit="nats", positions=tuple(positions))


def of_function(function: Callable[..., Any]) -> Custom:
    """A metric of a function of the logits at the last position.

    Args:
        function: From logits ``[item, 1, d_vocab]`` to one number an item ``[item]``. An item is
            one prompt of one run: a grid of patches has many of each prompt, in any order and
            number. So a function of logits alone may not depend on which item stands where, as one
            does that has an answer for each prompt: it is called with one item by itself, too, and
            refused if that changes its number. A function of two arguments gets the number of each
            item's prompt ``[item]`` as the second. For other positions, a name or a unit, make a
            `Custom`.

    Raises:
        ValueError: It takes other arguments than these; and when it is read, if it gives an item
            another number alone than among others.

    Example:
        >>> from mlp_interp import load_model, patch, prompts
        >>> model = load_model("nano")
        >>> contrast = prompts.ioi(model, n=2, seed=0)
        >>> entropy = lambda logits: -(logits.softmax(-1) * logits.log_softmax(-1)).sum((1, 2))
        >>> patch(model, contrast, entropy, sites="resid_pre").clean.dims
        ('prompt',)
    """
    name = getattr(function, "__name__", type(function).__name__)
    try:
        arguments = inspect.signature(function).parameters.values()
    except ValueError:  # some built-in ones do not say
        arguments = []
    wanted = [a for a in arguments if a.default is a.empty and a.kind in _BY_PLACE]
    if len(wanted) not in (1, 2):
        raise ValueError(
            f"metric={name!r} is a function of {len(wanted)} arguments; wanted one of the logits "
            "[item, 1, d_vocab], or of these and the number of each item's prompt [item]"
        )
    given = function if len(wanted) == 2 else _OfLogits(function, name)
    return Custom(name=name.strip("<>"), unit="", function=given)


@dataclass(frozen=True, eq=False)
class _OfLogits:
    """A function of logits alone, which must give each item the number that it has by itself."""

    function: Callable[[Tensor], Tensor]
    name: str

    def __call__(self, logits: Tensor, prompts: Tensor) -> Tensor:
        values = self.function(logits)
        if len(logits) > 1 and isinstance(values, Tensor) and values.shape == prompts.shape:
            self._check_alone(logits[-1:].detach(), values[-1:].detach())
        return values

    @torch.no_grad()
    def _check_alone(self, logits: Tensor, value: Tensor) -> None:
        try:
            alone = self.function(logits)
            same = torch.allclose(alone, value, rtol=1e-3, atol=1e-4, equal_nan=True)
        except (IndexError, RuntimeError) as error:
            raise self._not_itself() from error
        if not same:
            raise self._not_itself()

    def _not_itself(self) -> ValueError:
        return ValueError(
            f"metric={self.name!r} gives an item another number alone than among others; wanted a "
            "function of each item's own logits, or one that takes the numbers of their prompts as "
            "its second argument"
        )


def metric_for(metric: Any, pairs: Pairs) -> Metric:
    """The metric, the one of that name for these pairs, or one of a function.

    A function is taken as by `of_function`.

    Raises:
        ValueError: There is no metric of that name, or it was made for another number of prompts;
            a function that takes other arguments.
    """
    if isinstance(metric, Metric):
        metric.check_prompts(len(pairs.answers))
        return metric
    makers = {
        "logit_difference": lambda: logit_difference(pairs.answers, pairs.foils),
        "logit": lambda: logit(pairs.answers),
        "log_probability": lambda: log_probability(pairs.answers),
        "answer_log_probability": lambda: answer_log_probability(pairs.answer_tokens),
        "probability": lambda: probability(pairs.answers),
        "probability_difference": lambda: probability_difference(
            pairs.all_answers, pairs.all_foils
        ),
        "kl": kl,
    }
    if callable(metric) and not isinstance(metric, type):
        return of_function(metric)
    if not isinstance(metric, str) or metric not in makers:
        near = did_you_mean(metric, METRICS) if isinstance(metric, str) else ""
        raise ValueError(
            f"metric={metric!r}; wanted a Metric, a function of logits, or one of "
            f"{', '.join(METRICS)}{near}"
        )
    return makers[metric]()
