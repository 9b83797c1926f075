"""Circuits: which edges, nodes or paths carry a behaviour, and how much of it they carry alone."""

import warnings

import xarray as xr

from mlp_interp.circuits._edge_attribution import edge_attribution as edge_attribution
from mlp_interp.circuits._faithfulness import FRACTIONS as FRACTIONS
from mlp_interp.circuits._faithfulness import faithfulness as faithfulness
from mlp_interp.circuits.hypothesis import evaluate_hypothesis as evaluate_hypothesis

__all__ = [
    "FRACTIONS",
    "edge_attribution",
    "evaluate_hypothesis",
    "faithfulness",
    "test_hypothesis",
]
__dir__ = __all__.copy


def test_hypothesis(*args, **kwargs) -> xr.Dataset:
    """The old name of `evaluate_hypothesis`; it goes with the next release."""
    warnings.warn(
        "test_hypothesis is now called evaluate_hypothesis", DeprecationWarning, stacklevel=2
    )
    return evaluate_hypothesis(*args, **kwargs)


test_hypothesis.__test__ = False  # pyright: ignore[reportFunctionMemberAccess] (it is no test)
