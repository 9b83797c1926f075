"""Absorption: latents with exceptions, planted and found, and none where there are none."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from typer.testing import CliRunner

import mlp_interp as mi
from mlp_interp import latents
from mlp_interp.cli import app
from mlp_interp.dictionaries import Dictionary, Relu, save
from mlp_interp.latents.absorbed import main_latents
from mlp_interp.metrics.separation import threshold_table
from mlp_interp.results import load
from mlp_interp.views.numbers import number

KINDS = {"animals": [" cat", " dog", " king", " boy"], "places": [" sea", " sun", " day", " house"]}
FILLERS = 30


def texts_of(copies: int = 5) -> dict[str, list[str]]:
    """Every word at the end of several texts."""
    heads = ["the", "a", "one", "this", "that", "his"][:copies]
    return {kind: [h + w for w in words for h in heads] for kind, words in KINDS.items()}


def planted(nano: Any, exception: float, writes: float) -> Dictionary:
    """An SAE of the embedding: latent 0 is of animals, but `exception` as strong at the last word.

    Latent 1 is of the last animal alone, and writes `writes` of what makes it an animal; others are
    active at single places.
    """
    vectors = {}
    for words in KINDS.values():
        for word in words:
            row = mi.run(nano, "the" + word)
            vectors[word] = row["0.resid_pre"][0, -1].double()
    names = [*vectors]
    X = torch.stack([*vectors.values()])
    rest = X[4:].mean(0)
    direction = X[:4].mean(0) - rest
    along = (X - rest) @ direction / direction.square().sum()
    assert len(names) == 8
    wanted = torch.full((8, 2 + FILLERS), -1.0, dtype=torch.float64)
    wanted[:4, 0] = along[:4]
    wanted[3, 0] = exception * along[3] if exception else -1.0
    wanted[3, 1] = 1.0
    for n in range(FILLERS):
        wanted[4 + n % 4, 2 + n] = 0.1
    W_enc = torch.linalg.lstsq(X, wanted).solution
    g = torch.Generator().manual_seed(0)
    W_dec = torch.randn(2 + FILLERS, X.shape[1], generator=g).double()
    unit = direction / direction.norm()
    W_dec -= (W_dec @ unit)[:, None] * unit
    W_dec[0] = direction
    own = X[3] - rest
    W_dec[1] = own - (own @ unit) * (1 - writes) * unit
    return Dictionary(
        W_enc.float(),
        torch.zeros(2 + FILLERS),
        W_dec.float(),
        rest.float(),
        Relu(),
        layer=0,
        reads="resid_pre",
        writes="resid_pre",
    )


@pytest.mark.parametrize(
    ("exception", "writes", "full", "partial"),
    [(0.0, 1.0, True, False), (0.3, 0.7, False, True), (1.0, 0.0, False, False)],
)
def test_planted_absorption_is_found_and_none_without(
    nano: Any, exception: float, writes: float, full: bool, partial: bool
) -> None:
    one = planted(nano, exception, writes)
    found = latents.absorption(nano, one, texts_of(), seed=2)
    kind = found.sel(kind="animals")
    own = found.isel(text=(found.kind_of == "animals").values)
    exceptions = np.array([str(text).endswith(KINDS["animals"][3]) for text in own.text.values])
    assert 0 < exceptions.sum() < len(exceptions)
    assert (float(kind.found), float(kind.false_alarms)) == (1.0, 0.0)
    assert kind.main.values.tolist() == [0]
    assert (own.absorbed.values == (exceptions & (full or partial))).all()
    assert (own.strongest.values[exceptions] == 1).all()
    rate = exceptions.mean()
    np.testing.assert_allclose(kind.full, rate * full)
    np.testing.assert_allclose(kind.partial, rate * partial)
    wanted = np.sqrt(rate * full * (1 - rate * full) / (len(exceptions) - 1))
    np.testing.assert_allclose(kind.full_se, wanted)
    assert float(kind.full_null + kind.partial_null) <= 0.2 * rate
    carried = own.carried.sel(part="strongest_other") / own.excess
    # The direction is that of the half that chooses, near that of all.
    np.testing.assert_allclose(carried[exceptions], writes, atol=0.25)


def test_parts_are_those_of_the_run_and_sum_to_the_excess(nano: Any) -> None:
    """Slow reference: one text at a time, by what the run holds; also of a scaled dictionary."""
    g = torch.Generator().manual_seed(1)
    W_enc, W_dec = torch.randn(192, 24, generator=g), torch.randn(24, 192, generator=g)
    biases = torch.randn(24, generator=g), torch.randn(192, generator=g)
    one = Dictionary(W_enc, biases[0], W_dec, biases[1], Relu(), 1, "mlp_in")
    for normalize in (None, "layer_norm"):
        given = replace(one, normalize=normalize)
        texts = texts_of(3)
        found = latents.absorption(nano, given, texts, k=2, seed=4, batch_size=7)
        np.testing.assert_allclose(found.carried.sum("part"), found.excess, rtol=1e-5, atol=1e-5)
        sums = found.share.sum("part", skipna=False)
        np.testing.assert_allclose(sums.values[~np.isnan(sums.values)], 1, rtol=1e-5)
        held = found.text.values.tolist()
        y, a = {}, {}
        for text in [text for some in texts.values() for text in some]:
            run = mi.run(nano, text)
            y[text] = run["1.mlp"][0, -1].double()
            active = latents.activations(run, given)
            a[text] = active.written(active.dense())[0, -1].double()
        animals = [text for text in texts["animals"] if text not in held]
        places = [text for text in texts["places"] if text not in held]
        base = torch.stack([y[text] for text in places]).mean(0)
        unit = torch.stack([y[text] for text in animals]).mean(0) - base
        length, unit = unit.norm(), unit / unit.norm()
        silent = torch.stack([a[text] for text in places]).mean(0)
        main = [n for n in found.main.sel(kind="animals").values.tolist() if n >= 0]
        others = [n for n in range(24) if n not in main]
        for n, text in enumerate(held):
            if found.kind_of.values[n] != "animals":
                continue
            each = (a[text] - silent) * (given.W_dec.double() @ unit)
            best = max((n for n in others if a[text][n] > 0), key=lambda n: float(each[n]))
            assert int(found.strongest[n]) == best
            excess = float((y[text] - base) @ unit)
            parts = [each[main].sum(), each[best], each[others].sum() - each[best]]
            wanted = [*map(float, parts), excess - float(each.sum())]
            np.testing.assert_allclose(found.carried[n], wanted, rtol=1e-4, atol=1e-4)
            assert bool(found.text_found[n]) == (excess > length / 2)
            absorbs = excess > length / 2 and float(each[best]) >= 0.5 * excess
            assert bool(found.absorbed[n]) == absorbs


def test_main_latents_are_those_of_all_thresholds() -> None:
    """Slow reference: the best F1 over thresholds; a second one only for its own half of a kind."""
    g = np.random.default_rng(0)
    values = np.round(g.random((40, 30)), 1) * (g.random((40, 30)) < 0.5)
    positive = g.random(40) < 0.4
    tables = [threshold_table(x[positive], x[~positive]) for x in values.T]
    best = max(t["f1"][t["threshold"] > 0].max() for t in tables)
    main, above, f1 = main_latents(values, positive, 1)
    np.testing.assert_allclose(f1, best)
    called = values[:, main[0]] > above[0]
    np.testing.assert_allclose(2 * (called & positive).sum() / (called.sum() + positive.sum()), f1)
    split = np.zeros((40, 4))
    split[:10, 0] = split[10:20, 1] = split[:1, 2] = 1.0
    main, _, f1 = main_latents(split, np.arange(40) < 20, 3)
    assert (main.tolist(), f1) == ([0, 1], 1.0)
    split[1, 0], split[1, 3] = 0.0, 1.0  # an exception is no part of it
    split[10:20, 0] = 1.0
    assert main_latents(split, np.arange(40) < 20, 3)[0].tolist() == [0]
    assert not len(main_latents(np.zeros((4, 2)), np.arange(4) < 2, 1)[0])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"k": 0}, "k=0; wanted at least 1"),
        ({"share": 0.0}, r"share=0\.0; wanted"),
        ({"share": float("nan")}, "share=nan; wanted"),
        ({"texts": {"a": ["x y"] * 4}}, "texts has 1 kinds"),
        ({"texts": {"a": [[0, 5]] * 4, "b": [[0]] * 4}}, "text 4 has no token after the first"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_what_is_refused(nano: Any, options: Any, text: str) -> None:
    one = planted(nano, 1.0, 0.0)
    texts = options.pop("texts", None) or texts_of()
    with pytest.raises(ValueError, match=text):
        latents.absorption(nano, one, texts, **options)
    wide = replace(
        one, reads="mlp_in", writes="mlp_out", spans=2, W_dec=torch.cat([one.W_dec] * 2, 1),
        b_dec=torch.cat([one.b_dec] * 2),
    )  # fmt: skip
    with pytest.raises(ValueError, match="writes to 2 layers"):
        latents.absorption(nano, wide, texts_of())


def test_the_figure_has_a_row_a_kind_with_its_null(nano: Any) -> None:
    found = latents.absorption(nano, planted(nano, 0.3, 0.7), texts_of(), seed=2)
    figure: Any = mi.plots.absorption(found)
    lines = {line.name: line for line in figure.data}
    null = {f"{name}, rows exchanged" for name in ("full", "partial")}
    assert {*lines} == {"full", "partial", "missed", *null}
    kinds = found.kind.values.tolist()
    assert list(figure.layout.yaxis.ticktext) == kinds
    for name, values in (("partial", found.partial), ("full, rows exchanged", found.full_null)):
        np.testing.assert_array_equal(lines[name].x, values)
    at = dict(zip(figure.layout.yaxis.ticktext, figure.layout.yaxis.tickvals, strict=True))
    np.testing.assert_allclose(lines["missed"].y, [at[kind] for kind in kinds])
    assert "found 100%, false alarms 0%" in lines["full"].text[kinds.index("animals")]
    with pytest.raises(ValueError, match=r"latents\.absorption"):
        mi.plots.absorption(found.drop_vars("missed"))


def test_the_command_prints_a_line_a_kind(nano: Any, tmp_path: Any) -> None:
    one, texts = planted(nano, 0.3, 0.7), texts_of()
    save(one, tmp_path / "sae")
    rows = [{"word": text, "kind": kind} for kind, some in texts.items() for text in some]
    table = tmp_path / "texts.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "found.nc"

    def said(*arguments: str) -> Any:
        command = ["absorption", str(table), "-d", str(tmp_path / "sae"), "--text", "word"]
        return CliRunner().invoke(app, [*command, *arguments])

    result = said("-y", "kind", "--seed", "2", "-o", str(out))
    assert result.exit_code == 0, result.stderr
    found = latents.absorption(nano, one, texts, seed=2)
    xr.testing.assert_allclose(load(out)[["full", "partial"]], found[["full", "partial"]])
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[2:-1]] == [*texts]
    here = found.sel(kind="animals")
    assert number(here.partial, here.partial_se) in lines[2 + [*texts].index("animals")]
    for arguments, text in (
        (["-y", "sort"], "--label 'sort' is no column; wanted one of word, kind"),
        (["-y", "kind", "--text", "line"], "--text 'line' is no column"),
        (["-y", "kind", "--share", "2"], "share=2.0"),
    ):
        wrong = said(*arguments)
        assert (wrong.exit_code, text in wrong.stderr) == (2, True)
