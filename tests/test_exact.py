"""Results say whether their numbers are exact, and what they leave out if not."""

import pytest
import torch

import mlp_interp as mi
from mlp_interp import metrics, reach, steering, superposition
from mlp_interp.edits import Edit

TEXTS = ["the cat", "hello world", "a mat", "cat sat"]
SHORT = steering.GenerationOptions(max_new_tokens=1)


def direction(model):
    return steering.output_direction(model, "L1N3")


CALLS = {
    "mean_difference": lambda m: steering.mean_difference(m, TEXTS[:2], TEXTS[2:]),
    "activation_addition": lambda m: steering.activation_addition(m, TEXTS[0], TEXTS[2], 1),
    "output_direction": direction,
    "random_direction": lambda m: steering.random_direction(direction(m), seed=0),
    "generate_compare": lambda m: steering.generate_compare(
        m, TEXTS, Edit.set("1.mlp", 0.0), generation=SHORT
    ),
    "dose_response": lambda m: steering.dose_response(
        m, TEXTS, metrics.kl(), direction=direction(m), coefficients=[1.0], generation=SHORT
    ),
    "check_model": mi.check_model,
    "reachable_share": lambda m: reach.reachable_share(m, 2, n=2),
    "noise_tolerance": lambda m: superposition.noise_tolerance(
        m, torch.arange(1, 37).view(4, 9), sites="mlp_out", layers=1, sizes=[0.1, 0.2]
    ),
    "capacity": lambda m: superposition.capacity(64, 4, 0.1),
    "underdetermined": lambda m: superposition.underdetermined(1000, 0.1),
}


@pytest.mark.parametrize("name", CALLS)
def test_results_say_whether_they_are_exact(kind, name):
    attrs = CALLS[name](kind("parallel")).attrs
    assert attrs["exact"] in (0, 1)
    assert bool(attrs.get("approximation")) == (attrs["exact"] == 0)
    assert attrs["unit"]
