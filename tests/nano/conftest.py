"""The shipped weights, loaded once."""

import pytest

from mlp_interp.nano import weights_path
from mlp_interp.nano.checkpoint import load


@pytest.fixture(scope="session")
def shipped():
    return load(weights_path())


@pytest.fixture(scope="session")
def model(shipped):
    return shipped[0]


@pytest.fixture(scope="session")
def tokenizer(shipped):
    return shipped[1]
