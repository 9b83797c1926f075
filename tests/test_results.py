"""Results: saving and loading, means with errors, tokens with provenance."""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import torch
import xarray as xr

from mlp_interp.results import (
    load,
    mean_and_error,
    mean_and_error_over,
    save,
    save_groups,
    strings,
    to_numpy,
    tokens_of,
    variable,
)
from mlp_interp.sites import Site, component_coords

SITES = [Site("embed"), Site("z", 0, head=1), Site("mlp_out", 0)]


def an_array(name="attribution"):
    return xr.DataArray(
        np.arange(6, dtype=np.float32).reshape(2, 3),
        dims=("prompt", "component"),
        coords={
            **component_coords(SITES),
            "prompt": [0, 1],
            "answer": ("prompt", [" Paris", "日本 </script>"]),
        },
        name=name,
        attrs={"unit": "logits", "seed": 3, "tolerance": 0.5, "long_name": "a share"},
    )


def a_dataset():
    kl = an_array("kl")
    kl.values[0, 1] = np.nan
    return xr.Dataset({"kl": kl, "kl_mean": kl.mean("prompt")}, attrs={"model": "nano", "seed": 0})


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
@pytest.mark.parametrize("result", [an_array(), a_dataset()], ids=["array", "dataset"])
def test_what_is_saved_is_what_is_loaded(result, suffix, tmp_path):
    path = save(result, tmp_path / f"result{suffix}")
    found = load(path)
    xr.testing.assert_identical(found, result)
    assert type(found) is type(result)


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_an_array_without_a_name_stays_without(suffix, tmp_path):
    found = load(save(an_array(None), str(tmp_path / f"x{suffix}")))
    xr.testing.assert_identical(found, an_array(None))


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_saving_replaces_what_was_there(suffix, tmp_path):
    save(a_dataset(), tmp_path / f"x{suffix}")
    save(an_array(), tmp_path / f"x{suffix}")
    xr.testing.assert_identical(load(tmp_path / f"x{suffix}"), an_array())


def test_saving_changes_nothing(tmp_path):
    result = an_array()
    save(result, tmp_path / "x.nc")
    xr.testing.assert_identical(result, an_array())


def test_an_unknown_suffix_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"ends in '\.csv'; wanted '\.nc' or '\.zarr'"):
        save(an_array(), tmp_path / "x.csv")
    (tmp_path / "x.csv").write_text("a,b")
    with pytest.raises(ValueError, match=r"ends in '\.csv'; wanted '\.nc' or '\.zarr'"):
        load(tmp_path / "x.csv")


def test_loading_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        load(tmp_path / "x.nc")


def test_mean_and_error_is_scipys():
    values = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, error = mean_and_error(values)
    np.testing.assert_allclose(mean, values.mean(-1))
    assert error.dtype == torch.float64
    np.testing.assert_allclose(error, scipy.stats.sem(values.numpy(), axis=-1), rtol=1e-14)


def test_mean_and_error_leave_nan_out():
    values = torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values[0, 2] = values[0, 4] = torch.nan
    mean, error = mean_and_error(values)
    expected = scipy.stats.sem(values.numpy(), axis=-1, nan_policy="omit")
    np.testing.assert_allclose(mean, np.nanmean(values, -1))
    np.testing.assert_allclose(error, expected)


def test_one_sequence_has_a_mean_but_no_error():
    mean, error = mean_and_error(torch.tensor([[3.0], [4.0]]))
    assert mean.tolist() == [3, 4]
    assert error.isnan().all()
    mean, error = mean_and_error(torch.tensor([[3.0, torch.nan]]))
    assert mean.item() == 3
    assert error.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precisions_become_numpy_float32(dtype):
    tensor = torch.tensor([1.5, -2.0], dtype=dtype, requires_grad=True)
    array = to_numpy(tensor)
    assert array.dtype == np.float32
    assert array.tolist() == [1.5, -2.0]


def test_to_numpy_copies():
    tensor = torch.zeros(3)
    to_numpy(tensor)[0] = 1
    assert tensor[0] == 0


def test_tokens_of_a_tensor_and_of_a_corpus():
    rows = torch.arange(6).reshape(2, 3)
    assert tokens_of(rows)[1] == {"data": "2 x 3 tokens"}
    attrs = {"data": "two lines", "seed": 1}
    tokens, found = tokens_of(SimpleNamespace(tokens=rows, attrs=attrs))
    assert tokens is rows
    assert found == attrs
    assert found is not attrs


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ([[1, 2]], "tokens=list; wanted a Corpus, texts, or an integer tensor"),
        (torch.zeros(1, 2, 3).long(), r"tokens=\(1, 2, 3\); wanted"),
        (torch.zeros(2, 3), r"tokens=\(2, 3\); wanted"),
        (torch.zeros(0, 3, dtype=torch.long), "is empty"),
        (torch.ones(2, 3, dtype=torch.bool), r"tokens=\(2, 3\); wanted"),
    ],
)
def test_tokens_that_are_none_are_refused(source, text):
    with pytest.raises(ValueError, match=text):
        tokens_of(source)


def test_a_variable_holds_what_was_measured_and_its_unit():
    made = variable(("a", "b"), torch.ones(2, 3, dtype=torch.bfloat16), unit="nats", long_name="x")
    assert (made.dims, made.shape, made.dtype) == (("a", "b"), (2, 3), np.float32)
    assert made.attrs == {"unit": "nats", "long_name": "x"}


@pytest.mark.parametrize("texts", [[], ["a", "bcd"], [["a", "bcd"], ["e", ""]]])
def test_texts_are_text_however_few(texts):
    assert strings(texts).dtype.kind == "U"
    assert strings(texts).tolist() == texts


def test_mean_over_a_dimension_is_that_of_tensors():
    values = torch.tensor([[1.0, 4.0, torch.nan], [2.0, torch.nan, torch.nan]], dtype=torch.float64)
    wanted = mean_and_error(values)
    found = mean_and_error_over(xr.DataArray(values.numpy(), dims=("x", "prompt")), "prompt")
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours.values, theirs.numpy(), rtol=1e-14)


def test_a_file_of_several_results_is_not_read_as_an_empty_one(tmp_path):
    one = xr.Dataset({"x": ("a", [1.0])})
    path = save_groups({"first": one, "other/part": one}, tmp_path / "all.nc")
    with pytest.raises(ValueError, match=r"holds several results, first, other; .*open_datatree"):
        load(path)
    assert load(save(xr.Dataset(), tmp_path / "none.nc")).sizes == {}
