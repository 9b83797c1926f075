"""Heads from weights and on data, beside TransformerLens' ways.

Composition scores of all pairs of heads against `all_composition_scores`; kinds of heads on data
against `detect_head` and against the model's body; and what has no counterpart in the library, as
seconds. One thread, processor time.
"""

import time
import warnings
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch
from rows import Row, Setting, allowed, compare, directory

import mlp_interp as mi
from mlp_interp.heads._repeated import Repeated
from mlp_interp.models import Weights, forward_of

KINDS = ("previous_token_head", "duplicate_token_head", "induction_head")


def composition(model: Any, setting: Setting) -> Row:
    """All pairs, queries, keys and values; ours with standard scores."""
    work = f"{setting.shape}: compose, all pairs of heads, with z"

    def ours() -> None:
        mi.heads.compose(model)

    # The library's scores of 410m take 39 GB.
    if setting.shape in ("410m", "1b") or not hasattr(model, "all_composition_scores"):
        return allowed(work, ours, repeats=setting.repeats)

    def theirs() -> None:
        for kind in "QKV":
            model.all_composition_scores(kind)

    return compare(
        f"{work}, against all_composition_scores",
        ours,
        theirs,
        repeats=setting.repeats,
        bound="two walks over Gram matrices: 30 to 40x",
        bar=30,
        clock=time.process_time,
    )


def detection(model: Any, setting: Setting) -> Iterator[Row]:
    """Eight repeated texts."""
    period = 8 if setting.small else 50
    tokens = Repeated.of(Weights.of(model), 8, period, 0).tokens
    forward = forward_of(model)

    def ours() -> None:
        mi.heads.detect(model, n=8, period=period)

    def body() -> None:
        with torch.no_grad():
            forward.run(forward.embed(tokens))

    def library() -> None:
        from transformer_lens.head_detector import detect_head

        for row in tokens:
            with torch.no_grad(), patch.object(model, "to_tokens", lambda given: given):
                for kind in KINDS:
                    detect_head(model, row[None], kind)

    ways = {"a pass of the body": (body, "1x")}
    if hasattr(model, "to_tokens"):
        ways["detect_head for three kinds"] = (library, "a pass of the body of each text")
    for what, (theirs, bound) in ways.items():
        yield compare(
            f"{setting.shape}: detect, five kinds, 8 x {tokens.shape[1]} tokens, against {what}",
            ours,
            theirs,
            repeats=setting.repeats,
            bound=bound,
            clock=time.process_time,
        )


def measured(setting: Setting) -> Iterator[Row]:
    """All of it."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model = mi.load_model(directory(setting.shape, setting.root), device=setting.device)
    mi.heads.compose(model, writers="L0H0", readers="L1H0.k")  # what is made once a model
    yield composition(model, setting)
    yield from detection(model, setting)
    for name, function in {
        "roles": mi.heads.roles,
        "induction": lambda model: mi.heads.induction(model, n=8),
    }.items():
        yield allowed(
            f"{setting.shape}: {name}",
            lambda function=function: function(model),
            repeats=1,
        )
