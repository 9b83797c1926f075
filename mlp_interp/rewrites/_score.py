"""What a rewrite did: to the fact, other ways of asking, its neighbours and its subject."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from mlp_interp.edits import Edit
from mlp_interp.metrics.rows import clean_loss, next_tokens
from mlp_interp.models import describe
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.padding import which_count
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.texts import padded_texts
from mlp_interp.prompts.tokenizing import decode, tokenizer_of
from mlp_interp.results import mean_and_error, strings, variable
from mlp_interp.rewrites.asked import (
    KINDS,
    Asked,
    Prompted,
    answered,
    asked_of,
    settled,
    tops_of,
)
from mlp_interp.rewrites.keys import checked_model
from mlp_interp.rewrites.result import Rewrite, checked_rewrite
from mlp_interp.runs import Runner
from mlp_interp.runs.effects import edit_effects
from mlp_interp.steering import GenerationOptions, generate_compare

__all__ = ["score_rewrite"]

WAYS = ("before", "after")
_GRAMS = {2: 2 / 3, 3: 4 / 3}


@own_mode()
@torch.no_grad()
def score_rewrite(
    model: Model,
    rewrite: Rewrite,
    *,
    same_subject: Prompted,
    paraphrases: Prompted = (),
    neighbours: Prompted = (),
    reverse: Prompted = (),
    references: Sequence[str] = (),
    corpus: Any = None,
    generation: GenerationOptions | None = None,
    batch_size: int = 8,
) -> xr.Dataset:
    """Ask a model about a fact that was rewritten, and about what was not, before and after.

    Five kinds of prompts, and two numbers of each, which are not the same: *success*, whether what
    is wanted is likelier than its rival, and *top-1*, whether it begins with the likeliest token of
    all. A new fact is wanted after the rewritten prompt (``efficacy``) and `paraphrases`, and its
    rival is what the model says there before. After prompts about other subjects
    (``neighbourhood``) and other prompts about the same one (``same_subject``) the right answer
    stays wanted, and its rival is the target. ``reverse`` asks with the target for the subject.

    A rewrite that is perfect by the first three may have made the subject into another one
    altogether: that is why `same_subject` is required. Where the target is no possible answer, its
    success says nothing, and top-1 is to be read. What the model said before is the null.

    Where the right answer, or the rival, is what the model says before, that is one token: success
    and magnitude then compare first tokens alone, for all tokens of a long answer are never as
    likely as the first of another. Where the two begin alike, both are NaN.

    Args:
        model: The model, without the rewrite.
        rewrite: What `rewrite` or `rewrite_many` gave.
        same_subject: Other prompts that name the subject: texts, or pairs of a text and what is
            right after it; where only a text is given, that is what the model says before.
        paraphrases: Other ways to ask for the new fact, which name the subject.
        neighbours: The same question about other subjects.
        reverse: Prompts that name the target, after which the subject is wanted, or what the pair
            says.
        references: Texts that are right if the new fact is: ``consistency`` is their mean
            log-probability.
        corpus: Other text, as in `sweep`, for what the rewrite does to its prediction.
        generation: How the rewritten prompts and paraphrases are continued; None for no texts.
        batch_size: Sequences that are run at once.

    Returns:
        A Dataset with, along ``way`` (before, after) and ``kind``: `success_rate`, `top1_rate`
        (fractions) and `magnitude` (probability of what is wanted less its rival's), each with
        `…_se` over prompts; along ``prompt``: `success`, `top1`, `log_probability` and
        `rival_log_probability` (nats, of all tokens of an answer), `top_token`, and coordinates
        ``kind_of``, ``text``, ``answer`` and ``rival``. With a corpus: `kl` (before‖after) and
        `delta_loss`, nats per token, with `…_se` over sequences. With references: `consistency`
        (nats per token) with `…_se` over texts. With a generation: `generated` (prompt_continued,
        sample), `fluency` (bits: entropies of 2- and 3-grams weighted 2/3 and 4/3, low where a text
        repeats itself) with `…_se` over texts.

    Raises:
        ValueError: No prompts about the same subject; one is no text, too long, or names neither
            subject nor target where it should; or as `rewrite` about the model.

    References:
        Meng et al., "Locating and Editing Factual Associations in GPT", 2022, section 3.3: their
        consistency compares words with reference texts' instead. Cohen et al., "Evaluating the
        Ripple Effects of Knowledge Editing in Language Models", 2023.

    Example:
        >>> from mlp_interp import load_corpus, load_model
        >>> from mlp_interp.rewrites import associations, rewrite
        >>> model = load_model("nano")
        >>> keys = associations(model, load_corpus("nano", model, sequences=16), layers=[0])
        >>> found = rewrite(
        ...     model, "France", "The capital of France is", " Rome", layer=0, keys=keys
        ... )
        >>> scores = score_rewrite(
        ...     model,
        ...     found,
        ...     same_subject=["The language of France is"],
        ...     neighbours=["The capital of Japan is"],
        ... )
        >>> scores.top1_rate.sel(way="after", kind=["efficacy", "neighbourhood"]).values
        array([1., 1.])
        >>> scores.top_token.sel(way="after").values[-1].item()
        ' Italian'
    """
    checked_model(model, "score_rewrite")
    checked_rewrite(rewrite)
    each: dict[str, Any] = {
        "paraphrases": paraphrases,
        "neighbours": neighbours,
        "same_subject": same_subject,
        "reverse": reverse,
    }
    given: dict[str, Prompted] = {}
    for kind, (name, prompts) in zip(KINDS[1:], each.items(), strict=True):
        if not isinstance(prompts, Iterable):
            raise ValueError(f"{name}={prompts!r}; wanted a list of texts, or of pairs of texts")
        given[kind] = [prompts] if isinstance(prompts, str) else list(prompts)
    if not given["same_subject"]:
        raise ValueError(
            "same_subject is empty; wanted at least one other prompt about the subject: the other "
            "scores do not tell whether that is still itself"
        )
    asked = asked_of(model, rewrite, given)
    runner, edits = Runner.of(model), rewrite.as_edits(model)
    asked = settled(asked, tops_of(runner, asked, ()))
    found = _of_prompts(model, asked, [answered(runner, asked, some) for some in ((), edits)])
    if corpus is not None:
        found = found.merge(_of_corpus(runner, corpus, edits, batch_size))
    if len(references):
        found = found.merge(_consistency(runner, references, edits, batch_size))
    if generation is not None:
        prompts = [one.text for one in asked if one.kind in ("efficacy", "paraphrase")]
        found = found.merge(_continued(model, prompts, edits, generation, batch_size))
    return found.assign_attrs(
        {
            **describe(model),
            "analysis": "score_rewrite",
            "exact": 1,
            "rewrite": repr(rewrite),
            "data": f"{len(asked)} prompts",
            "unit": "fraction",
            "errors": "standard errors over prompts, sequences and texts",
        }
    )


def _of_prompts(model: Model, asked: Sequence[Asked], ways: Sequence[Sequence[Any]]) -> xr.Dataset:
    tokenizer = tokenizer_of(model)
    dims = ("way", "prompt")
    answer, rival = (
        np.array([[getattr(x, name) for x in way] for way in ways]) for name in ("answer", "rival")
    )
    tops = [[x.top for x in way] for way in ways]
    first = np.array([(one.answer or (-1,))[0] for one in asked])
    # A neighbour whose right answer is the target itself has no rival.
    alone = np.array([one.alike for one in asked])
    mine, other = (np.array([[x.compared[n] for x in way] for way in ways]) for n in (0, 1))
    by_prompt = {
        "success": np.where(alone, np.nan, mine > other),
        "top1": (np.array(tops) == first).astype(float),
        "magnitude": np.where(alone, np.nan, np.exp(mine) - np.exp(other)),
    }
    kinds = np.array([one.kind for one in asked])
    there = [kind for kind in KINDS if kind in kinds]
    rates: dict[str, Any] = {}
    for name, values in by_prompt.items():
        each = [mean_and_error(torch.from_numpy(values[:, kinds == kind])) for kind in there]
        unit = "probability" if name == "magnitude" else "fraction"
        called = name if name == "magnitude" else f"{name}_rate"
        for suffix, numbers in zip(("", "_se"), zip(*each, strict=True), strict=True):
            rates[called + suffix] = variable(
                ("way", "kind"), torch.stack(numbers, dim=1), unit=unit
            )
    return xr.Dataset(
        {
            **rates,
            "success": variable(dims, by_prompt["success"], unit="true or false"),
            "top1": variable(dims, by_prompt["top1"], unit="true or false"),
            "log_probability": variable(dims, answer, unit="nats"),
            "rival_log_probability": variable(dims, rival, unit="nats"),
            "top_token": (dims, strings([[decode(tokenizer, [t]) for t in way] for way in tops])),
        },
        coords={
            "way": list(WAYS),
            "kind": there,
            "kind_of": ("prompt", kinds),
            "text": ("prompt", strings([one.text for one in asked])),
            "answer": (
                "prompt",
                strings([decode(tokenizer, list(one.answer or ())) for one in asked]),
            ),
            "rival": (
                "prompt",
                strings([_any(tokenizer, one.rivals) for one in asked]),
            ),
        },
    )


def _any(tokenizer: Any, words: Sequence[tuple[int, ...]]) -> str:
    return " or".join(decode(tokenizer, list(word)) for word in words)


def _of_corpus(runner: Runner, corpus: Any, edits: Sequence[Edit], batch_size: int) -> xr.Dataset:
    """What the prediction of other text loses."""
    texts = padded_texts(runner.weights.model, corpus)
    counts = which_count(runner.weights.model, texts.tokens, texts.real, 1)
    parts: dict[str, list[torch.Tensor]] = {"kl": [], "delta_loss": []}
    for start in range(0, len(texts.tokens), batch_size):
        part = slice(start, start + batch_size)
        real = None if texts.real is None else texts.real[part]
        clean = runner.run(texts.tokens[part])
        for effects in edit_effects(runner, clean, [edits], real=real):
            for name, values in parts.items():
                found = getattr(effects, name)[0].cpu().masked_fill(~counts[part].cpu(), torch.nan)
                values.append(found.nanmean(-1))
    return _with_errors(
        {name: torch.cat(values) for name, values in parts.items()}, "nats per token"
    )


def _consistency(
    runner: Runner, references: Sequence[str], edits: Sequence[Edit], batch_size: int
) -> xr.Dataset:
    """Mean log-probability of the tokens of texts, before and after."""
    texts = padded_texts(runner.weights.model, list(references))
    ways = []
    for some in ((), edits):
        losses = []
        for start in range(0, len(texts.tokens), batch_size):
            part = slice(start, start + batch_size)
            real = None if texts.real is None else texts.real[part]
            run = runner.run(texts.tokens[part], edits=some)
            wanted = next_tokens(run.tokens, real)
            losses.append(clean_loss(runner.unembed, run.final, wanted).nanmean(-1).cpu())
        ways.append(-torch.cat(losses))
    return _with_errors({"consistency": torch.stack(ways)}, "nats per token", "way")


def _continued(
    model: Model,
    prompts: Sequence[str],
    edits: Sequence[Edit],
    generation: GenerationOptions,
    batch_size: int,
) -> xr.Dataset:
    """Prompts continued before and after, and how much the texts repeat themselves."""
    found = generate_compare(model, prompts, edits, generation=generation, batch_size=batch_size)
    flat = found["token"].values.reshape(len(WAYS), -1, found.sizes["new"])
    entropy = torch.tensor([[_entropy(row[row >= 0]) for row in way] for way in flat])
    texts = found["text"].values
    return (
        _with_errors({"fluency": entropy}, "bits", "way")
        .assign(generated=(("way", "prompt_continued", "sample"), texts))
        .assign_coords(prompt_continued=strings(prompts))
    )


def _entropy(tokens: np.ndarray) -> float:
    """Entropy of a text's 2- and 3-grams in bits, weighted as in ROME; NaN where it has none."""
    total = 0.0
    for size, weight in _GRAMS.items():
        grams = (
            np.lib.stride_tricks.sliding_window_view(tokens, size) if len(tokens) >= size else ()
        )
        if not len(grams):
            return float("nan")
        _, counts = np.unique(grams, axis=0, return_counts=True)
        p = counts / counts.sum()
        total -= weight * float((p * np.log2(p)).sum()) / len(_GRAMS)
    return total


def _with_errors(values: dict[str, torch.Tensor], unit: str, *dims: str) -> xr.Dataset:
    """Means over the last axis, with their standard errors."""
    found: dict[str, Any] = {}
    for name, x in values.items():
        for suffix, number in zip(("", "_se"), mean_and_error(x.double()), strict=True):
            found[name + suffix] = variable(dims, number, unit=unit)
    return xr.Dataset(found)
