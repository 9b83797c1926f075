"""Averages by what stands at a position, against loops over prompts and tokens."""

import numpy as np
import pytest
import torch
import xarray as xr

import mlp_interp as mi
from mlp_interp import Contrast
from mlp_interp.prompts import by_place, places

# Spaces stand for tokens outside the subject, S for its own; prompts end where the text does.
SUBJECTS = (".S....", "..SSS.", "....SS", "SSSS", "...S")


def contrast(subjects=SUBJECTS):
    """Prompts of token ids 1, 2, 3, ..., with a subject as drawn."""
    longest = max(map(len, subjects))
    clean = torch.arange(1, longest + 1).repeat(len(subjects), 1)
    subject = torch.tensor([[c == "S" for c in s.ljust(longest, ".")] for s in subjects])
    return Contrast(
        clean_tokens=clean,
        corrupted_tokens=torch.where(subject, clean + 50, clean),
        answers=torch.full((len(subjects),), 7),
        foils=torch.full((len(subjects),), 8),
        subject=subject,
        lengths=torch.tensor([len(s) for s in subjects]),
    )


def named(subject):
    """The place of each token, by the words of the definition."""
    begins, ends = subject.index("S"), subject.rindex("S")
    found = []
    for at in range(len(subject)):
        if at == len(subject) - 1:
            found.append("last")
        elif at == 0:
            found.append("first")
        elif at == ends:
            found.append("subject last")
        elif at == begins:
            found.append("subject first")
        elif begins < at < ends:
            found.append("subject middle")
        elif at < begins:
            found.append("before")
        else:
            found.append("next" if at == ends + 1 else "further")
    return found


def test_every_token_has_one_place():
    found = places(contrast())
    for prompt, subject in enumerate(SUBJECTS):
        for at, name in enumerate(named(subject)):
            assert [place for place, mask in found.items() if mask[prompt, at]] == [name]
        for mask in found.values():
            assert not mask[prompt, len(subject) :].any()


def test_without_a_subject_it_is_what_differs():
    with_subject = contrast()
    without = Contrast(
        clean_tokens=with_subject.clean_tokens,
        corrupted_tokens=with_subject.corrupted_tokens,
        answers=with_subject.answers,
        foils=with_subject.foils,
        lengths=with_subject.lengths,
    )
    expected = places(with_subject)
    for name, mask in places(without).items():
        assert torch.equal(mask, expected[name]), name


@pytest.mark.parametrize("positions", [None, [5, 1, 2]], ids=["all", "some"])
def test_means_equal_those_of_a_loop(positions):
    pairs = contrast()
    positions = list(range(pairs.length)) if positions is None else positions
    values = np.random.default_rng(0).normal(size=(3, len(positions), len(pairs)))
    result = xr.Dataset(
        {"raw": (("layer", "pos", "prompt"), values), "clean": ("prompt", np.arange(len(pairs)))},
        {"pos": positions},
        attrs={"model": "some"},
    )
    found = by_place(result, pairs)
    assert found.raw.dims == ("layer", "place", "prompt")
    assert found.attrs == result.attrs
    xr.testing.assert_identical(found.clean.drop_attrs(), result.clean.drop_attrs())
    for prompt, subject in enumerate(SUBJECTS):
        at = named(subject)
        for place in found.place.values:
            mine = [i for i, pos in enumerate(positions) if pos < len(at) and at[pos] == place]
            expected = values[:, mine, prompt].mean(1) if mine else np.full(3, np.nan)
            np.testing.assert_allclose(found.raw.sel(place=place)[:, prompt], expected)


def test_places_of_ones_own():
    pairs = contrast()
    result = xr.DataArray(np.arange(30.0).reshape(5, 6), dims=("prompt", "pos"))
    mask = torch.zeros(5, 6, dtype=torch.bool)
    mask[:, :2] = True
    at = {"end": -1, "own": [0, 1, 2, 3, 0], "two": mask}
    found = by_place(result, pairs, at)
    ends = [len(subject) - 1 for subject in SUBJECTS]
    rows = np.arange(5) * 6
    np.testing.assert_array_equal(found.sel(place="end"), rows + ends)
    np.testing.assert_array_equal(found.sel(place="own"), rows + np.array([0, 1, 2, 3, 0]))
    np.testing.assert_array_equal(found.sel(place="two"), rows + 0.5)


def test_a_trace_of_one_prompt_and_a_figure(nano):
    task = mi.prompts.facts(nano, n=2, seed=0)
    at = task.subject[0].nonzero()[:, 0].tolist()
    trace = mi.causal_trace(
        nano, task.clean_text[0], at, answer=int(task.answers[0]), samples=2, sites=["mlp_out"]
    )
    found = by_place(trace, task[0]).average_indirect
    np.testing.assert_array_equal(
        found.sel(place="subject last"), trace.average_indirect.isel(pos=at[-1])
    )
    figure = mi.plots.patching(by_place(mi.patch(nano, task, sites="mlp_out"), task))
    assert "subject\N{NO-BREAK SPACE}last" in figure.layout.xaxis.ticktext


@pytest.mark.parametrize(
    ("result", "at", "text"),
    [
        (xr.DataArray(np.zeros((5, 2)), dims=("prompt", "head")), None, "wanted 'pos'"),
        (xr.DataArray(np.zeros((4, 6)), dims=("prompt", "pos")), None, "4 prompts"),
        (xr.DataArray(np.zeros((5, 9)), dims=("prompt", "pos")), None, "positions"),
        (xr.DataArray(np.zeros((5, 6)), dims=("prompt", "pos")), {}, "at={}"),
        (xr.DataArray(np.zeros((5, 6)), dims=("prompt", "pos")), {"x": 4}, "outside prompts"),
        (xr.DataArray(np.zeros((5, 6)), dims=("prompt", "pos")), {"x": [1, 2]}, "5 prompts"),
        (
            xr.DataArray(np.zeros((5, 6)), dims=("prompt", "pos")),
            {"x": torch.ones(5, 2, dtype=torch.bool)},
            "shape",
        ),
    ],
)
def test_bad_input(result, at, text):
    with pytest.raises(ValueError, match=text):
        by_place(result, contrast(), at)
