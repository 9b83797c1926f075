"""What a seed gives does not hang on torch's default type."""

import ast
from pathlib import Path

import pytest
import torch

import mlp_interp
from mlp_interp.latents.learner import beginning
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
