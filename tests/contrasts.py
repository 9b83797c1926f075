"""Contrasts of random tokens, for the small random models."""

import torch
from random_models import VOCABULARY

from mlp_interp import Contrast

# Every architecture with folded and raw weights, in one direction each.
CASES = [
    ("parallel", "folded", "denoising"),
    ("parallel", "raw", "noising"),
    ("sequential", "folded", "noising"),
    ("sequential", "raw", "denoising"),
    ("gpt2", "folded", "denoising"),
    ("gpt2", "raw", "noising"),
]

RAN = {"auto": "lean", "hooks": "hooks"}
"""What runs for each value of the option `engine` on models that the lean forward reads."""


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
