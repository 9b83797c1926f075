"""Contrasts of random tokens, for the small random models."""

import torch
from random_models import ARCHITECTURES, BACKENDS, PROCESSINGS, VOCABULARY, pairwise

from mlp_interp import Contrast

CASES = pairwise(ARCHITECTURES, BACKENDS, PROCESSINGS, ("denoising", "noising"))
"""Every kind of model, in both directions."""

RAN = {"auto": "lean", "hooks": "hooks"}
"""What runs for each value of the option `engine` on models that the lean forward reads."""


def exactness(architecture, backend):
    """How near float64 numbers must come: Hugging Face's RMSNorm rounds to float32 on its way."""
    return 2e-6 if (architecture, backend) == ("llama", "bridge") else 1e-10


def contrast_of(prompts=2, length=7, *, differ=(2, 4), seed=0):
    """Random prompts that differ at some positions, with answers and foils that all differ."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(1, VOCABULARY, (prompts, length), generator=generator)
    corrupted = clean.clone()
    for position in differ:
        corrupted[:, position] = (clean[:, position] + 7 + position) % VOCABULARY
    answers = torch.arange(prompts) + 3
    return Contrast(
        clean_tokens=clean, corrupted_tokens=corrupted, answers=answers, foils=answers + 50
    )
