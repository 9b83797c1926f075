"""What a seed gives does not hang on torch's default type; random tokens are those of texts."""

import ast
import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import mlp_interp
from mlp_interp import lens
from mlp_interp.features.sides import Side, random_sides
from mlp_interp.heads._repeated import Repeated
from mlp_interp.latents.learner import beginning
from mlp_interp.lens import _repetition
from mlp_interp.models import Weights
from mlp_interp.prompts.tokenizing import ordinary_ids
from mlp_interp.superposition.toy import toy_models

DRAWS = "torch.randn", "torch.rand"
FILES = sorted(Path(mlp_interp.__path__[0]).rglob("*.py"))


def test_every_draw_says_its_type():
    drawn = 0
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in DRAWS:
                drawn += 1
                said = {keyword.arg for keyword in node.keywords}
                assert "dtype" in said, f"{path}:{node.lineno}"
    assert drawn > 15


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
Y = X.flip(0)
TOYS = {"steps": 3, "batch_size": 8, "importance": [1.0, 0.5, 0.25]}
BEGUN, TRAINED = beginning(X, Y, 6, 0), toy_models(3, 2, [0.5], **TOYS)


def test_dictionaries_and_toy_models_begin_alike(double):
    again = beginning(X, Y, 6, 0)
    for name in ("W_enc", "W_dec"):
        assert torch.equal(again[name], BEGUN[name])
    toys = toy_models(3, 2, [0.5], **TOYS)
    for name in ("W", "b", "loss"):
        assert toys[name].equals(TRAINED[name])


def test_random_tokens_are_those_of_texts(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither special ones nor rows that pad a vocabulary: nothing was trained on these."""
    model, ran = kind(), []
    known = len(model.tokenizer)
    assert known < model.cfg.d_vocab
    ordinary = [*range(1, known)]
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.add_special_tokens({"pad_token": tokenizer.convert_ids_to_tokens(5)})
    other = SimpleNamespace(tokenizer=tokenizer, cfg=model.cfg)
    assert ordinary_ids(other) == [i for i in ordinary if i != 5]

    def read(model: Any, tokens: torch.Tensor, *args: Any, **options: Any) -> Any:
        ran.append(tokens)
        return lens.read(model, tokens, *args, **options)

    monkeypatch.setattr(_repetition, "read", read)
    for first in (0, known - 20):
        lens.repetition(model, n=100, period=30, first=first)
        assert bool((ran[-1][:, 0] == 0).all())
        assert ran[-1][:, 1:].unique().tolist() == (ordinary[-20:] if first else ordinary)
    with pytest.raises(ValueError, match=f"first={known}; wanted at most {known - 1}"):
        lens.repetition(model, first=known)
    twice = Repeated.of(Weights.of(model), 100, 30, seed=1)
    assert twice.tokens[:, 1:].unique().tolist() == ordinary
    sides = random_sides(model, {"a": Side((0,) + (1,) * 2000, (), "a")}, 2, 0)[0]
    assert sorted({token for side in sides for token in side.context[1:]}) == ordinary
