"""Activations in one's own texts, and what evidence comes to."""

import numpy as np
import pytest
import torch

import mlp_interp as mi
from mlp_interp.neurons import activations, verdict, verify_neuron

TEXTS = ["Il aime le pain.", "The cat sat.", "Elle voit le chat, et il dort."]


@pytest.mark.parametrize("site", ["pre", "post"])
def test_each_text_has_the_numbers_that_it_has_alone(nano, site):
    labels = ["L3N7", "L0N433", "L3N700"]
    found = activations(nano, labels, TEXTS, site=site, batch_size=2)
    for number, text in enumerate(TEXTS):
        _, cache = nano.run_with_cache(text)
        strs = nano.to_str_tokens(text)
        mine = found.activation.sel(prompt=number)
        assert mine.token.values.tolist()[: len(strs)] == strs
        for label in labels:
            place = mi.Site.parse(label)
            there = cache[site, place.layer][0, :, place.unit].numpy()
            alone = mine.sel(component=label).values
            np.testing.assert_allclose(alone[: len(strs)], there, atol=1e-5)
            assert np.isnan(alone[len(strs) :]).all()


def test_a_pair_is_one_neuron_and_a_model_keeps_its_state(some_model):
    ids = torch.arange(1, 11).reshape(2, 5)
    hooks = [len(point.fwd_hooks) for point in some_model.hook_dict.values()]
    found = activations(some_model, (1, 3), ids)
    assert found.component.values.tolist() == ["L1N3"]
    assert found.activation.shape == (1, 2, 5)
    assert hooks == [len(point.fwd_hooks) for point in some_model.hook_dict.values()]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"neurons": []}, r"neurons=\[\]; wanted at least one neuron"),
        ({"neurons": "L9N1"}, "layer"),
        ({"neurons": "L0H1"}, "neurons"),
        ({"site": "mlp_out"}, "site"),
        ({"site": "pre_linear"}, "not gated"),
        ({"texts": [""]}, "texts"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_bad_input_of_activations(nano, options, text):
    given = {"neurons": "L0N1", "texts": TEXTS, **options}
    with pytest.raises(ValueError, match=text):
        activations(nano, **given)


def test_the_view_shows_texts_one_below_the_other(nano):
    found = activations(nano, ["L0N433", "L0N1"], TEXTS)
    one = mi.views.activations(found.sel(component=["L0N433"]))
    real = found.activation.sel(component="L0N433").values
    shown = np.array(one.rows[""])
    ends = [n for n, token in enumerate(one.tokens) if token == "\n"]
    assert len(ends) == 2
    np.testing.assert_allclose(np.delete(shown, ends), real[~np.isnan(real)], rtol=1e-3)
    several = mi.views.activations(found)
    assert [*several.rows] == ["L0N433", "L0N1"]
    assert several.html().count("<br>") == 2
    with pytest.raises(ValueError, match=r"neurons\.activations"):
        mi.views.activations(found.rename(activation="other"))


@pytest.fixture(scope="module")
def evidence(nano):
    return verify_neuron(nano, "L0N433", TEXTS[::2], ["They like bread.", "He sat."], controls=4)


@pytest.mark.parametrize(
    ("auroc", "p", "effect", "passed"),
    [
        (0.95, 0.2, 0.3, (True, True, True)),
        (0.9, 0.2, 0.3, (False, True, True)),
        (0.95, 0.4, 0.3, (True, False, True)),
        (0.95, 0.2, 0.2, (True, True, False)),
        (np.nan, np.nan, np.nan, (False, False, False)),
    ],
)
def test_a_verdict_is_three_tests(evidence, auroc, p, effect, passed):
    found = evidence.copy(deep=True)
    found["auroc"].loc[{"summary": "max"}][0] = auroc
    at = {"measure": "delta_loss", "where": "difference"}
    found["p_value"].loc[at] = p
    at["where"] = "positive"
    found["effect"].loc[at][0] = effect
    found["effect_se"].loc[at][0] = 0.1
    told = verdict(found)
    assert (bool(told.separates), bool(told.specific), bool(told.beyond_error)) == passed
    assert bool(told.is_about) == all(passed)
    assert told.effect.unit == "nats per token"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"summary": "median"}, "summary"),
        ({"measure": "loss"}, "measure"),
        ({"auroc": 2.0}, "auroc"),
        ({"errors": -1.0}, "errors"),
    ],
)
def test_bad_input_of_verdicts(evidence, options, text):
    with pytest.raises(ValueError, match=text):
        verdict(evidence, **options)
    with pytest.raises(ValueError, match="verify_neuron"):
        verdict(evidence[["loss"]])
    with pytest.raises(ValueError, match="no controls"):
        verdict(evidence.isel(component=[0]))
