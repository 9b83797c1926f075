"""Exploring by hand: every answer against the analyses, the page in a browser, the widget."""

import json
import re

import numpy as np
import pytest
import torch
from browser import needs_browser, open_page

import mlp_interp as mi
from mlp_interp.explorer.reading import Reading

PROMPT = "The capital of France is"


@pytest.fixture
def seen(nano):
    return mi.explore(nano, PROMPT)


@pytest.fixture
def some_seen(some_model):
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    return some_model, mi.run(some_model, tokens), mi.explore(some_model, tokens, position=3)


def test_the_map_is_the_attribution(some_seen):
    model, run, seen = some_seen
    found = seen.answer({"ask": "first"})["map"]
    for level in ("component", "head"):
        shares = mi.attribute_logits(
            model, run, found["answer"], "mean", level=level, positions=3
        ).squeeze()
        for layer, row in enumerate(found["values"]):
            for column, value in zip(found["columns"], row, strict=True):
                label = f"L{layer}{column}" if column[0] == "H" else f"{layer}.{column}"
                if label in shares.component:
                    want = float(shares.sel(component=label))
                    assert value == pytest.approx(want, rel=1e-3, abs=1e-6)
    logits = model(run.tokens).detach()[0, 3].log_softmax(-1)
    assert found["answer"] == int(logits.argmax())
    assert found["rank"] == 0
    assert found["log_p"] == pytest.approx(float(logits.max()), rel=1e-3)
    assert found["predictions"][0]["token"] == found["answer"]


def test_map_and_rest_sum_to_the_total(some_seen):
    model, run, seen = some_seen
    found = seen.answer({"ask": "first"})["map"]
    parts = [row[column] for row in found["values"] for column in _whole(found["columns"])]
    parts += [one["share"] for one in found["rest"]]
    assert sum(parts) == pytest.approx(found["total"], abs=2e-3)
    logits = model(run.tokens).detach()[0, 3]
    want = float(logits[found["answer"]] - logits.mean())
    assert found["total"] == pytest.approx(want, rel=1e-3)


def _whole(columns):
    return [at for at, name in enumerate(columns) if name in ("attn", "mlp")]


def test_what_units_write_adds_to_the_logit_as_the_map_says(some_seen):
    model, run, seen = some_seen
    first = seen.answer({"ask": "first"})["map"]
    reading = Reading(model, run.tokens)
    asked = reading.asked(3)
    direction = mi.Unembed.of(model).weight
    direction = direction[:, first["answer"]] - direction.mean(-1)
    for label in ("1.attn", "0.mlp", "L1H0", "L0N2"):
        site = reading.weights.place(label)
        vector = reading._written(asked, site)
        found = seen.answer({"ask": "unit", "unit": label})["unit"]
        assert float(vector @ direction) == pytest.approx(found["share"], rel=1e-3, abs=1e-5)


def test_tokens_promoted_are_those_of_what_was_written(nano, seen):
    found = seen.answer({"ask": "unit", "unit": "3.mlp"})["unit"]
    run = mi.run(nano, PROMPT)
    scale = mi.Unembed.of(nano).scale(run.final[0, -1])
    logits = (run["3.mlp"][0, -1] / scale) @ mi.Unembed.of(nano).weight
    logits = logits - logits.mean()
    for name, sign in (("promoted", 1), ("suppressed", -1)):
        want = (sign * logits).topk(8)
        assert [one["token"] for one in found[name]] == want.indices.tolist()
        np.testing.assert_allclose(
            [one["logit"] for one in found[name]], sign * want.values, rtol=1e-3
        )


def test_sources_neurons_and_activations(nano, seen):
    run = mi.run(nano, PROMPT)
    answer = seen.answer({"ask": "first"})["map"]["answer"]
    head = seen.answer({"ask": "unit", "unit": "L1H0"})["unit"]
    pattern = run["blocks.1.attn.hook_pattern"][0, 0, -1]
    np.testing.assert_allclose(head["over"]["attention"], pattern, rtol=1e-3)
    assert sum(head["over"]["share by source"]) == pytest.approx(head["share"], rel=1e-3)
    shares = mi.attribute_logits(nano, run, answer, "mean", level="neuron").squeeze()
    own = shares[(shares.layer.values == 2) & (shares.kind.values == "neuron")]
    neurons = seen.answer({"ask": "unit", "unit": "2.mlp"})["unit"]["neurons"]
    order = np.argsort(-np.abs(own.values))[:12]
    assert [one["unit"] for one in neurons] == own.component.values[order].tolist()
    first = seen.answer({"ask": "unit", "unit": neurons[0]["unit"]})["unit"]
    assert first["share"] == neurons[0]["share"]
    activations = run["blocks.2.mlp.hook_post"][0, :, int(own.neuron[order[0]])]
    np.testing.assert_allclose(first["over"]["activation"], activations, rtol=1e-3, atol=1e-6)
    assert first["over"]["activation"][-1] == neurons[0]["activation"]
    top = neurons[0]["promoted"]
    promoted = mi.neurons.promoted_tokens(nano, neurons[0]["unit"], k=3)
    assert top == promoted.promoted_text.values.tolist()


def test_questions_change_what_is_asked_next(nano, seen):
    other = int(nano.to_single_token(" French"))
    found = seen.answer({"ask": "map", "foil": other, "unit": "3.mlp"})
    logits = nano(PROMPT).detach()[0, -1]
    assert found["map"]["total"] == pytest.approx(
        float(logits[found["map"]["answer"]] - logits[other]), rel=1e-3
    )
    assert seen.answer({"ask": "unit", "unit": "3.mlp"})["unit"] == found["unit"]
    moved = seen.answer({"ask": "map", "position": 2, "answer": None, "foil": None})["map"]
    assert (moved["position"], moved["answer"]) == (2, int(nano(PROMPT)[0, 2].argmax()))
    text = seen.answer({"ask": "text", "text": "The capital of Italy is"})
    assert text["map"]["names"]["answer"] == " Rome"
    assert repr(seen) == "Explorer('The capital of Italy is', ' is' predicts ' Rome')"


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"ask": "unit", "unit": "L9H0"}, "wanted a layer from 0 to 3"),
        ({"ask": "unit", "unit": "embed"}, "wanted a sub-update, a head or a neuron"),
        ({"ask": "map", "position": 70}, "position"),
        ({"ask": "map", "answer": 5000}, "outside the vocabulary"),
        ({"ask": "text", "text": ""}, "text"),
        ({"ask": "text"}, "text=None; wanted a text"),
        ({"ask": "map", "answer": "x"}, "answer='x'; wanted a token id"),
        ({"ask": "unit", "unit": 3}, "unit=3; wanted a text"),
        ({"ask": "everything"}, "wanted 'first', 'text', 'map' or 'unit'"),
    ],
)
def test_bad_questions_are_answered_with_a_sentence_and_change_nothing(seen, question, message):
    before = seen.answer({"ask": "first"})
    assert message in seen.answer(question)["error"]
    assert seen.answer({"ask": "first"}) == before


def test_bad_input(nano):
    with pytest.raises(ValueError, match=r"prompt has 2 rows of 3 tokens"):
        mi.explore(nano, torch.ones(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"foil=890 equals the answer"):
        mi.explore(nano, PROMPT, answer=" Paris", foil=890)
    with pytest.raises(ValueError, match=r"answer"):
        mi.explore(nano, PROMPT, answer=" Paris in")
    with pytest.raises(ValueError, match=r"positions=\[9\]; wanted integers from -6 to 5"):
        mi.explore(nano, PROMPT).html(positions=9)
    with pytest.raises(ValueError, match=r"must end in \.html"):
        mi.explore(nano, PROMPT).save("page.txt")


def test_the_page_holds_the_answers(seen):
    held = json.loads(re.search(r'id="held">(.*?)</script>', seen.html(positions=2))[1])
    assert held["start"] == [5, 890]
    assert set(held["likeliest"]) == {"2", "5"}
    first = seen.answer({"ask": "first"})["map"]
    assert held["maps"]["5|890"] == first
    assert held["units"]["5|890|L1H0"] == seen.answer({"ask": "unit", "unit": "L1H0"})["unit"]
    neurons = held["units"]["5|890|3.mlp"]["neurons"]
    assert all(f"5|890|{one['unit']}" in held["units"] for one in neurons)


CLICKS = """<script>
const press = (match) => [...document.querySelectorAll("button")].find(match).click();
const steps = [
  () => press((x) => x.title.startsWith("3.mlp")),
  () => press((x) => x.className === "link"),
  () => press((x) => x.title.startsWith("L1H0")),
  () => press((x) => x.textContent === "share by source"),
];
const next = () => { if (steps.length) { steps.shift()(); setTimeout(next, 50); } };
setTimeout(next, 100);
</script></body>"""


@needs_browser
def test_the_page_is_clicked_through(nano, tmp_path):
    hostile = mi.explore(nano, "</script><b>The capital of France is")
    bodies = []
    for seen, clicks in ((mi.explore(nano, PROMPT), CLICKS), (hostile, "</body>")):
        shown, said = open_page(seen.html().replace("</body>", clicks), tmp_path)
        assert said == []
        bodies.append(shown.split('<div id="explorer">')[1].split("<script")[0])
        assert "less the mean logit" in bodies[-1]
    assert "L1H0: " in bodies[0]
    assert re.search(r'class="pick on"[^>]*>share by source', bodies[0])
    assert '<bdi class="word"> France</bdi>' in bodies[0]
    assert "&lt;" in bodies[1]
    assert "<b>The" not in bodies[1]


def test_the_widget_answers_what_it_is_asked(nano):
    pytest.importorskip("anywidget")
    seen = mi.explore(nano, PROMPT)
    shown, _ = seen._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in shown
    assert "<iframe" in shown["text/html"]
    sent = []
    seen._widget.send = sent.append
    seen._widget._handle_custom_msg({"ask": "unit", "unit": "L1H0", "id": 7}, [])
    assert sent == [{**seen.answer({"ask": "unit", "unit": "L1H0"}), "id": 7}]
    assert (
        seen._repr_mimebundle_()[0]["application/vnd.jupyter.widget-view+json"]["model_id"]
        == (shown["application/vnd.jupyter.widget-view+json"]["model_id"])
    )


def test_without_widgets_there_is_the_page(nano, monkeypatch):
    monkeypatch.setattr("mlp_interp.explorer._explore.find_spec", lambda name: None)
    for live in (True, False):
        shown, _ = mi.explore(nano, PROMPT, live=live)._repr_mimebundle_()
        assert set(shown) == {"text/plain", "text/html"}
        monkeypatch.undo()
