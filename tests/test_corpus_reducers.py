"""Reducers of single activations against plain loops, where texts are long and values meet."""

from typing import Any

import numpy as np
import pytest
import torch

from mlp_interp.corpus.reducers import Histogram, Moments, TopExamples
from mlp_interp.corpus.reducers import moments as moments_of
from mlp_interp.corpus.reducers.base import Batch, Shape
from mlp_interp.models import HookForward, Weights
from mlp_interp.sites import Site

SITE = Site("resid_pre", 0)


def _reduced(reducer, x, tokens=None, real=None, parts=(2, 1, 2)):
    """What a reducer says of activations in batches of so many sequences, the last merged in."""
    no_model: Any = None
    tokens = torch.arange(x[..., 0].numel()).view(x.shape[:2]) if tokens is None else tokens
    shape = Shape(1, 1, 1, x.shape[2], 1, 1, 99, x.shape[1], 1)
    states, first = [reducer.empty(shape), reducer.empty(shape)], 0
    for number, size in enumerate(parts):
        rows = slice(first, first + size)
        mask = None if real is None else real[rows]
        batch = Batch(tokens[rows], first, HookForward(Weights(no_model)), None, mask)
        state = states[number == len(parts) - 1]
        reducer.see(state, SITE, x[rows], batch)
        reducer.finish(state, batch)
        first += size
    whole = reducer.empty(shape)
    for state in (reducer.empty(shape), *states):  # the first has seen nothing
        reducer.merge(whole, state)
    return reducer.result(whole, shape)


@pytest.mark.parametrize("units", [1, 64, 130, 131])
@pytest.mark.parametrize(
    ("per_octave", "octaves"), [(8, (-5, 7)), (1, (0, 1)), (128, (-2, 2)), (256, (-1, 1))]
)
def test_bins_are_those_of_a_search_among_their_edges(units, per_octave, octaves, monkeypatch):
    monkeypatch.setattr("mlp_interp.corpus.reducers.histogram._BINNED", 7 * units)
    monkeypatch.setattr("mlp_interp.corpus.reducers.histogram._COUNTED", 40 * units)
    draw = torch.Generator().manual_seed(units)
    x = torch.randn(5, 33, units, generator=draw)
    x = x.sign() * 2 ** (4 * torch.randn(x.shape, generator=draw))
    reducer = Histogram(site="resid_pre", per_octave=per_octave, octaves=octaves)
    inner = reducer.edges[1:-1]
    special = torch.tensor([*inner, 0.0, -0.0, 1e38, -1e38, 1e-42], dtype=torch.float32)
    flat = x.view(-1, units)
    for unit in range(units):  # on the edges, and just inside of them
        flat[::3, unit] = special[torch.randint(len(special), (55,), generator=draw)]
        flat[1::9, unit] = torch.nextafter(flat[0::9, unit], torch.zeros(()))
    found = _reduced(reducer, x)["count"].values[0]
    outwards = inner[len(inner) // 2 :]
    size = np.searchsorted(outwards, flat.abs().double().numpy(), side="right")
    bins = len(outwards) + np.where(flat.numpy() < 0, -size, size)
    wanted = [np.bincount(column, minlength=found.shape[1]) for column in bins.T]
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("by", ["value", "size"])
@pytest.mark.parametrize("length", [5, 16, 41])
def test_examples_of_equal_activations_are_the_first_of_each_sequence(by, length):
    """Of few different values many are equal: order and places are those of a plain loop."""
    draw = torch.Generator().manual_seed(length)
    x = torch.randint(-4, 4, (7, length, 24), generator=draw).float()
    x[..., 6:] += torch.rand(7, length, 18, generator=draw)  # the others may be anywhere
    tokens = torch.randint(1, 90, (7, length), generator=draw)
    ends = torch.tensor([length, 4, length, 3, length, length - 1, 4])
    real = torch.arange(length) < ends[:, None]
    reducer = TopExamples(site="resid_pre", k=4, before=3, after=2, first=1, by=by)
    found = _reduced(reducer, x, tokens, real, parts=(4, 2, 1))
    for unit in range(24):
        best = []
        for row, end in enumerate(ends.tolist()):
            values = x[row, :end, unit].tolist()
            key = [abs(v) if by == "size" else v for v in values]
            pos = max(range(1, end), key=key.__getitem__)
            around = [
                (int(tokens[row, p]), values[p]) if 0 <= p < end else (-1, np.nan)
                for p in range(pos - 3, pos + 3)
            ]
            best.append((-key[pos], row, pos, values[pos], around))
        best.sort(key=lambda one: one[:2])
        mine = found.isel(layer=0, d_model=unit)
        for place, (_, row, pos, value, around) in enumerate(best[:4]):
            one = mine.isel(example=place)
            got = int(one["sequence"]), int(one["pos"]), float(one["activation"])
            assert got == (row, pos, value)
            np.testing.assert_array_equal(one["token"], [token for token, _ in around])
            np.testing.assert_array_equal(one["around"], [value for _, value in around])


@pytest.mark.parametrize("texts", [5, 3, 1])
def test_moments_of_many_stretches_are_those_of_all(texts, monkeypatch):
    """Stretches of three tokens whose means differ, beside a mean that is large.

    Of the rest of the texts no token counts.
    """
    monkeypatch.setattr(moments_of, "_TOGETHER", 12)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(5, 31, 4, generator=draw).exp() + 100 + torch.arange(5.0)[:, None, None]
    real = (torch.arange(5) < texts)[:, None].expand(5, 31)
    found = _reduced(Moments(site="resid_pre", order=4), x, real=real).isel(layer=0)
    rows = x[:texts].flatten(0, 1).double().numpy()
    away = rows - rows.mean(0)
    np.testing.assert_allclose(found["mean"], rows.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found["std"], rows.std(0, ddof=1), rtol=1e-5)
    np.testing.assert_allclose(found["skewness"], (away**3).mean(0) / rows.std(0) ** 3, rtol=1e-4)
    kurtosis = (away**4).mean(0) / rows.var(0) ** 2 - 3
    np.testing.assert_allclose(found["kurtosis"], kurtosis, rtol=1e-4)
    assert (found["least"] == rows.min(0)).all()
    assert (found["greatest"] == rows.max(0)).all()


def test_a_batch_of_which_no_token_counts_adds_nothing_to_counts():
    x = torch.randn(5, 9, 4, generator=torch.Generator().manual_seed(0))
    real = (torch.arange(5) < 2)[:, None].expand(5, 9)
    found = _reduced(Histogram(site="resid_pre"), x, real=real)["count"]
    wanted = _reduced(Histogram(site="resid_pre"), x[:2], parts=(1, 1))["count"]
    np.testing.assert_array_equal(found, wanted)
