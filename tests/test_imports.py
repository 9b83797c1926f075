"""A module can be imported by its name: nothing of its package stands in its place."""

import ast
import pkgutil
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import mlp_interp

MODULES = [
    info.name
    for info in pkgutil.walk_packages(mlp_interp.__path__, "mlp_interp.")
    if not info.name.endswith("__main__")
]
PUBLIC = [n for n in dir(mlp_interp) if isinstance(getattr(mlp_interp, n), ModuleType)]


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_what_its_name_says(name):
    module = import_module(name)
    package, _, last = name.rpartition(".")
    there = getattr(import_module(package), last)
    assert isinstance(there, ModuleType), f"{package} has a {type(there).__name__} named {last}"
    assert there is module


@pytest.mark.parametrize("name", PUBLIC)
def test_completion_offers_what_is_public(name):
    """And not the modules that a package is made of, which look like its functions."""
    package = getattr(mlp_interp, name)
    assert dir(package) == sorted(package.__all__)
    if Path(package.__file__).name == "__init__.py" and name != "metrics":  # some are for analyses
        tree = ast.parse(Path(package.__file__).read_text())
        names = [x for node in tree.body if isinstance(node, ast.ImportFrom) for x in node.names]
        meant = {x.name for x in names if x.name == x.asname}
        assert meant <= set(dir(package))
