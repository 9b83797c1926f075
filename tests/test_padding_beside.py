"""What goes beside padded tokens: labels of each, kinds of text, positions of edits."""

from functools import partial

import numpy as np
import pytest
import torch
import xarray as xr
from random_models import unchecked

import mlp_interp as mi
from mlp_interp import heads, latents, metrics, probes
from mlp_interp.dictionaries import Dictionary, TopK

LENGTHS = (5, 9, 8, 6, 9, 7, 5, 9)
SIDES = ("right", "left")


def texts():
    """Texts of unequal length, BOS (0, which pads too) first."""
    generator = torch.Generator().manual_seed(5)
    return [[0, *torch.randint(1, 250, (n - 1,), generator=generator).tolist()] for n in LENGTHS]


def padded(rows, side):
    pads = [[0] * (max(LENGTHS) - len(row)) for row in rows]
    pairs = zip(rows, pads, strict=True)
    return torch.tensor([[*pad, *row] if side == "left" else [*row, *pad] for row, pad in pairs])


@pytest.mark.parametrize("side", SIDES)
def test_labels_of_tokens_stay_with_their_tokens(kind, backend, side):
    """The difference of means that each text, run alone, gives."""
    model, rows = kind("parallel", backend), texts()
    tokens = padded(rows, side)
    found = probes.each_unit(model, tokens, tokens % 2 == 1, controls=0)
    each = [
        model.run_with_cache(torch.tensor([row]))[1]["blocks.1.mlp.hook_post"][0, 1:].detach()
        for row in rows
    ]
    values, odd = torch.cat(each), torch.tensor([n % 2 == 1 for row in rows for n in row[1:]])
    difference = values[odd].mean(0) - values[~odd].mean(0)
    np.testing.assert_allclose(found.difference.sel(layer=1), difference, atol=1e-5)
    assert found.tokens.values.tolist() == [int((~odd).sum()), int(odd.sum())]


def test_labels_that_are_none(kind):
    model, rows = kind(), texts()
    for labels in ([[True] * len(row) for row in rows], ["a"] * 8, None, [1] * 8):
        with pytest.raises(ValueError, match=r"labels=.*; wanted truth values, one for each of 8"):
            probes.each_unit(model, rows, labels)


@pytest.mark.parametrize("side", SIDES)
def test_kinds_of_text_may_be_padded_tokens(kind, backend, side):
    model, rows = kind("parallel", backend), texts()
    generator = torch.Generator().manual_seed(3)
    draw = [torch.randn(*size, generator=generator) for size in ((32, 24), (24,), (24, 32), (32,))]
    one = Dictionary(*draw, TopK(5), layer=1)
    given = {"a": padded(rows[:4], side), "b": padded(rows[4:], side)}
    for analysis in (latents.separate, latents.absorption):
        found = analysis(model, one, given)
        xr.testing.assert_allclose(found, analysis(model, one, {"a": rows[:4], "b": rows[4:]}))
    assert {*found.text.values} <= {model.tokenizer.decode(row) for row in rows}
    for wrong in ([rows], {"a": iter(rows), "b": rows}, {"a": "the cat", "b": rows}):
        with pytest.raises(ValueError, match=r"texts=list; wanted kinds|texts\['a'\].*; wanted a"):
            unchecked(latents.separate)(model, one, wrong)


@pytest.mark.parametrize("side", SIDES)
def test_scores_are_split_in_texts_of_one_length(kind, side):
    with pytest.raises(ValueError, match=r"8 texts of 5 to 9 tokens.*; wanted texts of one length"):
        heads.split_scores(kind(), padded(texts(), side), "L1H2")


def test_texts_of_one_length_may_end_in_what_pads(kind):
    model, rows = kind(), [[0, 5, 6, 0], [0, 7, 8, 9]]
    both = heads.split_scores(model, rows, "L1H2")
    alone = heads.split_scores(model, rows[:1], "L1H2")
    xr.testing.assert_allclose(both.isel(prompt=[0]), alone)
    assert both.score.notnull().all()
    assert heads.read_shares(model, rows, "L1H2.q", first=0).share.notnull().any()


@pytest.mark.parametrize("side", SIDES)
def test_edits_that_count_from_the_end_of_padding_say_so(kind, side):
    model, tokens = kind(), padded(texts(), side)
    last, first = (mi.Edit.scale("1.mlp", 0.5, positions=n) for n in (-1, 2))
    words = r"edits at '1.mlp': positions=\[-1\] count from the end of rows, which have padding"
    with pytest.warns(UserWarning, match=words):
        mi.run(model, tokens, edits=[last])
    clean = mi.run(model, tokens, edits=[first])
    with pytest.warns(UserWarning, match=words):
        clean.edited([last])
    mi.run(model, tokens[:, -5:] if side == "left" else tokens[:, :5], edits=[last])


@pytest.mark.parametrize("side", SIDES)
def test_held_edits_that_count_from_the_end_are_refused_where_texts_are_padded(kind, backend, side):
    """Hooks do not see where texts end: alone, or beside others of one length, they are right."""
    model, rows = kind("parallel", backend), texts()
    held = mi.Edit.scale("0.mlp", 3.0, positions=-1)
    words = r"edit at '0\.mlp': positions=\[-1\], held by steer, .*8 texts of 5 to 9 tokens"
    alike = [rows[0], rows[6]]
    with mi.steer(model, held), mi.steer(model, mi.Edit.scale("1.mlp", 0.5, positions=-1)):
        for given in (rows, padded(rows, side)):
            for analysis in (
                lambda x: mi.ablate_total(model, x, ["1.mlp"]),
                partial(mi.norms, model),
            ):
                with pytest.raises(ValueError, match=words):
                    analysis(given)
        with pytest.warns(UserWarning, match=r"edits at '0\.mlp': positions=\[-1\] count from"):
            mi.run(model, padded(rows, side))
        together = mi.ablate_total(model, alike, ["1.mlp"]).kl
        alone = [mi.ablate_total(model, [row], ["1.mlp"]).kl for row in alike]
    np.testing.assert_allclose(together, np.concatenate(alone, axis=1), atol=1e-6)
    free = mi.ablate_total(model, rows, ["1.mlp"]).kl  # nothing of it is left on the model
    assert not np.allclose(free[:, :1, : len(rows[0])], together[:, :1], atol=1e-4)
    with mi.steer(model, mi.Edit.scale("0.mlp", 3.0, positions=1)):
        mi.ablate_total(model, rows, ["1.mlp"])


def test_held_edits_that_count_from_the_end_want_contrasts_that_are_run_to_it(kind):
    """Of prompts of one length too: nothing is run after the last position that is read."""
    clean = padded(texts(), "right")
    corrupted = clean.clone()
    corrupted[:, 1] = clean[:, 1] % 250 + 1
    lengths, answers = torch.tensor(LENGTHS), torch.arange(len(LENGTHS)) + 3
    pairs = mi.Contrast(clean, corrupted, answers=answers, foils=answers + 50, lengths=lengths)
    model, one, ids = kind(), pairs[0:1], (answers[:1], answers[:1] + 50)
    early, last = (metrics.logit_difference(*ids, position=n) for n in (2, -1))
    with mi.steer(model, mi.Edit.scale("0.mlp", 3.0, positions=-1)):
        with pytest.raises(ValueError, match=r"up to position 2 of 5, .* positions=\[-1\], held"):
            mi.patch(model, one, early, sites="mlp_out")
        with pytest.raises(ValueError, match=r"positions=\[-1\], held by steer, .*5 to 9 tokens"):
            mi.lens.read(model, pairs)
        mi.patch(model, one, last, sites="mlp_out")
    with mi.steer(model, mi.Edit.scale("0.mlp", 3.0, positions=1)):
        mi.patch(model, one, early, sites="mlp_out")
        mi.lens.read(model, pairs)
