"""On a GPU the numbers are those of the CPU: every call of the page of questions, on both."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

PAGE = (Path(__file__).parent.parent / "docs" / "questions.md").read_text()
SETUP = "".join(re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
CALLS = re.findall(r"^\| [^|`]+ \| `((?:mi|steering|clean)\.[^`]+)` \|", PAGE, re.MULTILINE)

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]


def _on(device, code):
    """Code of the page with its models on a device."""
    return re.sub(r'load_model\(("[^"]+")\)', rf'load_model(\1, device="{device}")', code)


@pytest.fixture(scope="module")
def places():
    """What the page's calls start from, by device."""
    found = {}
    for device in ("cpu", "cuda"):
        found[device] = {}
        exec(_on(device, SETUP), found[device])
        assert found[device]["model"].W_E.device.type == device
    return found


@pytest.mark.parametrize("call", CALLS)
def test_numbers_are_those_of_the_cpu(places, call):
    want, got = (eval(_on(device, call), dict(names)) for device, names in places.items())
    assert type(got) is type(want)
    for name, ours, theirs in _arrays(got, want):
        assert ours.shape == theirs.shape, name
        _assert_alike(ours, theirs, name)


def _arrays(got, want):
    if isinstance(want, xr.DataArray):
        got, want = got.to_dataset(name="value"), want.to_dataset(name="value")
    if isinstance(want, xr.Dataset):
        for name in want.data_vars:
            yield name, got[name].values, want[name].values


def _assert_alike(got, want, name):
    """Equal up to rounding; of what sorts or chooses by numbers, nearly all is the same."""
    if str(name).startswith("check_") or str(name).endswith("_error"):
        assert np.max(got) < 1e-3, name  # rounding by itself
    elif want.dtype.kind == "f":
        real = np.isfinite(want)
        np.testing.assert_array_equal(np.isfinite(got), real, err_msg=str(name))
        scale = np.abs(want[real]).max(initial=0)
        off = np.abs(got[real] - want[real]) > 2e-3 * np.abs(want[real]) + 1e-4 * scale + 1e-6
        assert off.mean() < 0.01 if off.size > 100 else not off.any(), name
    else:
        assert np.mean(got == want) > 0.9, name
