"""Fixtures that all tests share."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from random_models import (
    BACKENDS,
    FEW,
    KINDS,
    VOCABULARY,
    assert_same_state,
    build,
    random_neox,
    state_of,
    tiny_tokenizer,
)
from sampling import sample

from mlp_interp import load_model

# The models here are tiny: threads that wait for each other cost more than they save, above all
# where several test processes share a few cores.
torch.set_num_threads(1)

_built: dict[tuple[Any, ...], Any] = {}
_states: dict[tuple[Any, ...], dict[str, Any]] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--record", action="store_true", help="write what real Pythia models give, not compare it"
    )


@pytest.hookimpl(tryfirst=True)  # before what is slow is left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    sample(items)


@pytest.fixture(params=[pytest.param(k.values, id=k.id, marks=k.marks) for k in KINDS])
def model(request: pytest.FixtureRequest, kind: Callable[..., Any]) -> Any:
    """Every kind of model in turn."""
    return kind(*request.param)


@pytest.fixture(params=[pytest.param(k.values, id=k.id, marks=k.marks) for k in FEW])
def some_model(request: pytest.FixtureRequest, kind: Callable[..., Any]) -> Any:
    """Every architecture, class and processing, for tests that take seconds of each model."""
    return kind(*request.param)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Both model classes in turn, where the library has both."""
    return request.param


@pytest.fixture(params=["auto", "hooks"])
def engine(request: pytest.FixtureRequest) -> str:
    """Both values of the option `engine` in turn."""
    return request.param


@pytest.fixture
def kind() -> Iterator[Callable[..., Any]]:
    """Build (once) a model of a given kind: ``kind("parallel", "bridge", "raw")``.

    After the test each model that it used must be as it was: weights, hooks, gradients, mode.
    """
    used: set[tuple[Any, ...]] = set()

    def get(*args: Any, **kwargs: Any) -> Any:
        key, built = _cached(*args, **kwargs)
        used.add(key)
        return built

    yield get
    for key in used:
        assert_same_state(_states[key], state_of(_built[key]))


def _cached(
    architecture: str = "parallel",
    backend: str = BACKENDS[0],
    processing: str = "folded",
    dtype: torch.dtype = torch.float32,
) -> tuple[tuple[Any, ...], Any]:
    key = (architecture, backend, processing, dtype)
    if key not in _built:
        _built[key] = build(*key)
        with torch.no_grad():  # the bridge sets up hooks of its own when it first runs
            _built[key].run_with_cache(torch.zeros(1, 2, dtype=torch.long))
        _states[key] = state_of(_built[key])
    return key, _built[key]


@pytest.fixture(scope="session")
def nano() -> Any:
    """The model shipped with the package."""
    return load_model("nano")


@pytest.fixture(scope="session")
def neox_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-NeoX model with its tokenizer as a Hugging Face directory."""
    path = tmp_path_factory.mktemp("neox")
    random_neox().save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def without_type_checks() -> Iterator[None]:
    """Switches off the suite's own type checks, which stop bad types before the package does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def tokens() -> torch.Tensor:
    """Four random sequences of nine tokens."""
    return torch.randint(VOCABULARY, (4, 9), generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def untouched_rng() -> Iterator[None]:
    """No test may leave random states or the gradient mode changed: then no analysis does."""
    numpy_state = np.random.get_state
    before = torch.random.get_rng_state(), repr(numpy_state())
    yield
    after = torch.random.get_rng_state(), repr(numpy_state())
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]
    assert torch.is_grad_enabled()
