"""What was planted in nano can be turned: refusals, moods, and a task without its examples."""

import re
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
import torch
import xarray as xr

from mlp_interp import load_corpus, prompts
from mlp_interp.edits import Edit
from mlp_interp.nano.planted.lists import RULES
from mlp_interp.prompts.pairs import encode_prompt
from mlp_interp.runs import Runner
from mlp_interp.sites import Site
from mlp_interp.steering import (
    FewShot,
    GenerationOptions,
    add,
    by_answer,
    function_vector,
    generate_compare,
    hold,
    mean_difference,
    pca_direction,
    project_out,
    random_direction,
    steer,
)

RANDOM = 5


@torch.no_grad()
def next_tokens(model: Any, tokens: torch.Tensor, edits: Sequence[Edit] = ()) -> torch.Tensor:
    with steer(model, edits):
        return model(tokens)[:, -1].argmax(-1)


def token(model: Any, word: str) -> int:
    return encode_prompt(model.tokenizer, word, prepend_bos=False)[0]


@pytest.fixture(scope="module")
def requests(nano: Any) -> dict[str, torch.Tensor]:
    """Harmful and harmless ones: seen in training, to make directions; held out, to try them."""
    seen = by_answer(prompts.refusal(nano, n=48, seed=0, split="train"), " Sorry")
    new = by_answer(prompts.refusal(nano, n=64, seed=1), " Sorry")
    return dict(zip(("seen harm", "seen help", "harm", "help"), (*seen, *new), strict=True))


@pytest.mark.parametrize("make", [mean_difference, pca_direction])
@pytest.mark.parametrize("layer", [2, 3])
def test_refusals_become_help_and_back(nano, requests, make, layer):
    direction = make(nano, requests["seen harm"], requests["seen help"], layers=layer)
    sorry, sure = token(nano, " Sorry"), token(nano, " Sure")

    def turned(direction: xr.DataArray) -> tuple[float, float]:
        helped = next_tokens(nano, requests["harm"], add(direction, -1.0)) == sure
        refused = next_tokens(nano, requests["help"], add(direction)) == sorry
        return float(helped.double().mean()), float(refused.double().mean())

    assert bool((next_tokens(nano, requests["harm"]) == sorry).all())
    assert bool((next_tokens(nano, requests["help"]) == sure).all())
    assert direction.separation.item() == 1
    assert min(turned(direction)) >= 0.95
    for seed in range(RANDOM):
        assert max(turned(random_direction(direction, seed=seed))) <= 0.1


def test_without_its_direction_a_model_hardly_refuses(nano, requests):
    """In nano only the last layer's, from which nothing later builds the refusal up again."""
    direction = mean_difference(nano, requests["seen harm"], requests["seen help"], layers=3)
    sure = token(nano, " Sure")
    for everywhere in (False, True):
        edits = project_out(direction, everywhere=everywhere)
        assert float((next_tokens(nano, requests["harm"], edits) == sure).double().mean()) > 0.8
        assert bool((next_tokens(nano, requests["help"], edits) == sure).all())
        control = project_out(random_direction(direction, seed=0), everywhere=everywhere)
        assert not bool((next_tokens(nano, requests["harm"], control) == sure).any())


def test_whole_replies_turn(nano, requests):
    direction = mean_difference(nano, requests["seen harm"], requests["seen help"], layers=2)

    def replies(tokens: torch.Tensor, edits: Sequence[Edit]) -> list[str]:
        with steer(nano, edits):
            texts = nano.generate(tokens[:16], max_new_tokens=12, do_sample=False, verbose=False)
        return [nano.tokenizer.decode(row).split("Assistant:")[1] for row in texts.tolist()]

    refused, helped = replies(requests["harm"], []), replies(requests["help"], [])
    assert all(reply.startswith(" Sorry, ") for reply in refused)
    assert all(reply.startswith(" Sure, here is how to ") for reply in helped)
    turned = replies(requests["harm"], add(direction, -1.0))
    assert sum(reply.startswith(" Sure, here is how to ") for reply in turned) >= 15
    turned = replies(requests["help"], add(direction))
    assert sum(reply.startswith(" Sorry, ") for reply in turned) >= 15


def test_moods_flip(nano):
    good = [" great", " positive", " good"]
    seen = by_answer(prompts.sentiment(nano, n=48, seed=0, split="train"), good)
    contrast = prompts.sentiment(nano, n=48, seed=1)
    liked, hated = by_answer(contrast, good)
    is_good = torch.isin(contrast.answers, torch.tensor([token(nano, word) for word in good]))
    praise = torch.where(is_good, contrast.answers, contrast.foils)
    blame = torch.where(is_good, contrast.foils, contrast.answers)
    direction = mean_difference(nano, *seen, layers=3)

    def flipped(direction: xr.DataArray) -> tuple[float, float]:
        down = next_tokens(nano, liked, add(direction, -1.0)) == blame
        up = next_tokens(nano, hated, add(direction)) == praise
        return float(down.double().mean()), float(up.double().mean())

    assert bool((next_tokens(nano, liked) == praise).all())
    assert bool((next_tokens(nano, hated) == blame).all())
    assert min(flipped(direction)) >= 0.95
    for seed in range(RANDOM):
        assert max(flipped(random_direction(direction, seed=seed))) <= 0.1


def lists(rule: str, questions: Sequence[str], shots: int, seed: int) -> list[str]:
    """Lists of one rule, without any of the questions in the examples."""
    rng, pairs = Random(seed), RULES[rule]
    known = [word for word in pairs if word not in questions]
    texts = []
    for question in questions:
        examples = [f"Q: {word}\nA: {pairs[word]}\n" for word in rng.sample(known, shots)]
        texts.append("".join(examples) + f"Q: {question}\nA:")
    return texts


def test_antonyms_without_examples(nano):
    """Words that also have a French translation: without examples nano cannot know which."""
    antonym = RULES["antonym"]
    asked = [word for word in antonym if word in RULES["french"]]
    others = [word for word in antonym if word not in asked][:32]
    task = FewShot(
        prompts=lists("antonym", others, 3, seed=0),
        answers=[f" {antonym[word]}" for word in others],
        uninformative=lists("capital", others, 1, seed=1),
    )
    vector = function_vector(nano, task, n_heads=3, layers=3)
    assert "L3H1" in vector.attrs["heads"]

    def accuracy(texts: Sequence[str], edits: Sequence[Edit] = ()) -> float:
        right = 0
        for text, word in zip(texts, asked, strict=True):
            tokens = torch.tensor([encode_prompt(nano.tokenizer, text, prepend_bos=True)])
            found = int(next_tokens(nano, tokens, edits))
            right += found == token(nano, f" {antonym[word]}")
        return right / len(asked)

    alone = lists("capital", asked, 0, seed=2)
    misled = lists("capital", asked, 1, seed=3)
    assert accuracy(lists("antonym", asked, 3, seed=4)) == 1
    assert accuracy(alone) < 0.6
    assert accuracy(misled) < 0.1
    assert accuracy(alone, add(vector, 2.0, positions=-1)) >= 0.95
    assert accuracy(misled, add(vector, 2.0, positions=-1)) >= 0.9
    for seed in range(3):
        control = add(random_direction(vector, seed=seed), 2.0, positions=-1)
        assert accuracy(alone, control) < 0.65
        assert accuracy(misled, control) < 0.1


def test_what_a_runner_generates_is_the_same(nano, requests):
    direction = mean_difference(nano, requests["seen harm"], requests["seen help"], layers=2)
    edits = add(direction, -1.0)
    runner = Runner.of(nano)
    expected = runner.generate(requests["harm"][:4], edits=edits, max_new_tokens=8, eos=None)
    with steer(nano, edits) as steering:
        found = nano.generate(
            requests["harm"][:4],
            max_new_tokens=8,
            do_sample=False,
            stop_at_eos=False,
            verbose=False,
        )
    assert torch.equal(found, expected.tokens)
    assert steering.fired == expected.fired


FRENCH = [
    "Le chat est noir. Marie regarde la porte.",
    "La table est petite. Il aime le jardin de son père.",
    "Dans la rue il y a un cheval. Nous parlons français.",
    "Ce matin Louis mange du pain avec du beurre.",
    "Bonjour, Jean! Comment ça va? Très bien, merci.",
    "Où est la maison? Je ne sais pas.",
]
ENGLISH = [
    "The team won the game on Friday.",
    "The capital of France is Paris.",
    "The keys on the table are old.",
    "Sam had a red ball. One day he took it to the park.",
    "Cook the soup for ten minutes.",
    "Q: hot\nA: cold\nQ: big\nA: small",
]
FRENCH_WORDS = set(
    "regarde la le les de du un une et est il elle dans avec ne pas aime mange lit va soir matin "
    "rue jardin livre pain beurre ville père mer bien très où je sais nous enfants jouent".split()
)


def test_a_neuron_held_high_makes_text_french(nano):
    """Layer 0's best French neuron, after "Claire", a name that nano knows from both languages."""
    corpus, site = load_corpus("nano", nano, sequences=60, length=64), Site("post", 0)
    seen = Runner.of(nano).run(corpus.tokens.long(), sites=[site]).at(site)
    high = torch.quantile(seen.flatten(0, 1), 0.999, dim=0)
    found = mean_difference(nano, FRENCH, ENGLISH, site="post", layers=0, positions="mean")
    neuron = int((found[0].values / high.numpy()).argmax())
    assert neuron == 433

    def french(text: str) -> float:
        words = re.findall(r"\w+", text.lower())
        return sum(word in FRENCH_WORDS for word in words) / max(len(words), 1)

    def rise(neuron: int) -> torch.Tensor:
        found = generate_compare(
            nano,
            ["Claire", "At noon Claire"],
            hold(f"L0N{neuron}", 2 * float(high[neuron])),
            batch_size=64,
            generation=GenerationOptions(n=32, temperature=1.0, max_new_tokens=6),
        )
        share = torch.tensor([french(str(text)) for text in found.text.values.ravel()])
        plain, edited = share.view(2, -1)
        return edited - plain

    turned = rise(neuron)
    error = float(turned.std()) / len(turned) ** 0.5
    controls = torch.randperm(768, generator=torch.Generator().manual_seed(0))[:3].tolist()
    others = [float(rise(control).mean()) for control in controls]
    assert neuron not in controls
    assert float(turned.mean()) > max(0.1, 3 * error)
    assert float(turned.mean()) > max(others) + 0.1
