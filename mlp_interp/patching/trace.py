"""Causal tracing: corrupt a phrase with noise, restore one state, see how much comes back."""

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.interchange import (
    Engine,
    GivenRuns,
    Outcome,
    Pair,
    Reading,
    engine_of,
    given_runs,
    grid_of,
    kept_for,
    measure,
)
from mlp_interp.metrics import probability
from mlp_interp.models import Forward, HookForward, Weights, describe
from mlp_interp.models.caches import check_cached
from mlp_interp.models.indices import count, distinct, indices
from mlp_interp.models.options import checked_number, checked_seed
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.models.unembed import Unembed
from mlp_interp.prompts.pairs import encode_prompt, phrase_positions
from mlp_interp.prompts.single import token_id
from mlp_interp.prompts.tokenizing import token_strings, tokenizer_of
from mlp_interp.results import described, mean_and_error, to_numpy
from mlp_interp.runs import Run
from mlp_interp.sites import Site

__all__ = ["causal_trace"]

_SITES = ("resid_post", "mlp_out", "attn_out")


@own_mode()
@torch.no_grad()
def causal_trace(
    model: Model,
    prompt: str,
    subject: str | Sequence[int],
    *,
    answer: str | int | None = None,
    noise: float = 3.0,
    samples: int = 10,
    sites: str | Sequence[str] = _SITES,
    window: int | None = None,
    seed: int = 0,
    prepend_bos: bool = True,
    runs: GivenRuns | None = None,
    engine: Engine = "auto",
    memory: float = 512.0,
    progress: bool = False,
) -> xr.Dataset:
    """Where in the network does a prompt's answer depend on its subject?

    The prompt runs clean; then with Gaussian noise added to the embeddings of the subject's tokens,
    which destroys the answer; then with noise and one state restored to its clean value. A state
    that brings the answer back carries the information past the noise. It need not be where the
    information is stored: any state on the way has a large effect.

    Args:
        model: The model.
        prompt: The prompt.
        subject: The phrase whose tokens are corrupted, wherever it stands as whole words ("John" is
            not in "Johnson"), or their positions (BOS has position 0).
        answer: The token whose probability is read; None for the clean run's likeliest.
        noise: Standard deviation of the noise, in standard deviations of the token embedding's
            entries. ROME uses 3.
        samples: How many draws of the noise.
        sites: Which states are restored, one layer and position at a time: any of ``resid_pre
            resid_post attn_out mlp_out``.
        window: For attn_out and mlp_out, how many neighbouring layers are restored together; None
            takes ROME's share of the depth, 10 layers of 48.
        seed: Of the noise.
        prepend_bos: Begin the prompt with BOS.
        runs: The clean and the corrupted run, runs or caches made before, in place of running
            them: one of the prompt, and one with a row for each draw of a noise (or whatever
            embeddings) of one's own; ``noise``, ``samples`` and ``seed`` then say nothing.
        engine: ``"auto"`` runs the lean forward where there is one, ``"hooks"`` the model itself.
        memory: MiB that may be used on top of the runs themselves.
        progress: Show a progress bar.

    Returns:
        A Dataset of probabilities: ``indirect`` (site, layer, pos, sample), the restored run's less
        the corrupted run's; ``average_indirect`` and ``average_indirect_se``, its mean over the
        noise with standard error; ``restored``, the restored run's probability averaged; ``clean``;
        ``corrupted`` (sample) and ``total`` (sample), the clean run's less the corrupted run's,
        with ``total_mean`` and ``total_se``. A coordinate marks the subject's positions, the
        attribute ``subject`` says what they are.
        ``check_everything`` and ``check_nothing`` are the largest errors of two self-checks:
        restoring everything gives the clean run, restoring nothing the corrupted ones.

    Raises:
        ValueError: The subject is not in the prompt, the answer is not one token, or a number that
            makes no sense; runs of another prompt, or that lack what is restored.

    References:
        Meng et al., "Locating and Editing Factual Associations in GPT", 2022, section 2.

    Example:
        >>> from mlp_interp import load_model
        >>> trace = causal_trace(
        ...     load_model("nano"), "The capital of France is", "France", samples=2
        ... )
        >>> trace.answer, trace.average_indirect.dims
        (' Paris', ('site', 'layer', 'pos'))
    """
    weights = Weights.of(model)
    count("samples", samples)
    checked_seed(seed)
    good = "a number above 0, and finite"
    noise = checked_number("noise", noise, lambda x: 0 < x < math.inf, good)
    sites = distinct("sites", sites)
    tokenizer = tokenizer_of(model)
    ids = encode_prompt(tokenizer, prompt, prepend_bos=prepend_bos)
    tokens = weights.checked(torch.tensor([ids]))
    positions, said = _subject(model, prompt, subject, len(ids), prepend_bos)
    if sites == _SITES:
        sites = weights.having(sites)
    if window is None:
        window = max(1, round(weights.n_layers * 10 / 48))
    grids = [
        grid_of(
            weights, site, length=len(ids), window=window if site in ("attn_out", "mlp_out") else 1
        )
        for site in sites
    ]
    if not grids or any(grid.family != "stream" for grid in grids):
        raise ValueError(
            f"sites={list(sites)}; wanted some of resid_pre, resid_post, attn_out, mlp_out"
        )
    forward = engine_of(model, engine)
    lean = isinstance(forward, Forward)
    sites_kept = [site for grid in grids for site in kept_for(grid, lean=lean)]
    if runs is None:
        drawn = _noise(weights, positions, len(ids), samples, noise, seed)
        clean, corrupted = _both_runs(forward, tokens, drawn, sites_kept)
        about = {"noise": f"{noise} standard deviations of the token embedding", "seed": seed}
    else:
        clean, corrupted = given_runs(forward, runs, tokens, tokens, embedded=True)
        for name, run in (("clean", clean), ("corrupted", corrupted)):
            check_cached(run, sites_kept, name=f"the {name} run")
        about = {"noise": "that of the corrupted runs given"}
    token = _answer(model, clean.final[:, -1], answer)
    pair = _pair(clean, corrupted, token)
    return _dataset(
        pair.reading,
        [measure(pair, grid, memory=memory, progress=progress) for grid in grids],
        coords={
            "site": [grid.sites[0] for grid in grids],
            "layer": np.arange(weights.n_layers),
            "pos": np.arange(len(ids)),
            "token": ("pos", token_strings(tokenizer, ids)),
            "subject": ("pos", np.isin(np.arange(len(ids)), positions)),
            "sample": np.arange(corrupted.batch),
        },
        attrs={
            **describe(model),
            "analysis": "causal tracing",
            "exact": 1,
            "data": f"one prompt of {len(ids)} tokens: {prompt}",
            "subject": said,
            "answer": token_strings(tokenizer, [token])[0],
            "metric": "probability",
            "unit": "probability",
            **about,
            "window": window,
            "engine": forward.engine,
            "errors": "standard error over draws of the noise; NaN with a single one",
        },
    )


def _both_runs(
    forward: Forward | HookForward,
    tokens: Int[Tensor, "1 pos"],
    noise: Float[Tensor, "sample pos d_model"],
    sites: Sequence[Site],
) -> tuple[Run, Run]:
    """The clean run, and the corrupted ones, which differ from it by noise in the embeddings."""
    embedded, rows = forward.embed(tokens), tokens.expand(len(noise), -1)
    clean = Run.record(forward, tokens, sites=sites, embedded=embedded, attention=True)
    noisy = embedded + noise
    return clean, Run.record(forward, rows, sites=sites, embedded=noisy, attention=True)


def _pair(clean: Run, corrupted: Run, token: int) -> Pair:
    """The two, with the probability of a token."""
    metric = probability(torch.full((corrupted.batch,), token))
    finals = (run.final[:, -1:] for run in (clean, corrupted))
    return Pair(clean, corrupted, Reading.of(clean.weights.model, metric, clean.length, *finals))


def _subject(
    model: Model, prompt: str, subject: str | Sequence[int], length: int, prepend_bos: bool
) -> tuple[list[int], str]:
    """The subject's positions, and what they are."""
    if isinstance(subject, str):
        found = phrase_positions(model, prompt, subject, prepend_bos=prepend_bos)
        times = "" if len(found) == 1 else f", all {len(found)} times that it stands in the prompt"
        return sorted({*chain.from_iterable(found)}), f"{subject!r}{times}"
    positions = sorted(indices("subject", subject, length))
    return positions, f"positions {', '.join(map(str, positions))}"


def _noise(
    weights: Weights, positions: list[int], length: int, samples: int, noise: float, seed: int
) -> Float[Tensor, "sample pos d_model"]:
    """Noise at the subject's positions, zero elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    shape = samples, len(positions), weights.d_model
    draws = torch.randn(shape, generator=generator, dtype=torch.float32)
    spread = noise * float(weights.W_E.float().std())
    found = torch.zeros(samples, length, weights.d_model, dtype=torch.float32)
    found[:, positions] = spread * draws
    return found.to(weights.W_E)


def _answer(model: Model, final: Float[Tensor, "1 d_model"], answer: str | int | None) -> int:
    if answer is None:
        return int(Unembed.of(model).logits(final)[0].argmax())
    return token_id(Weights.of(model), answer, name="answer")


def _dataset(
    reading: Reading,
    outcomes: Sequence[Outcome],
    *,
    coords: dict[str, Any],
    attrs: dict[str, Any],
) -> xr.Dataset:
    clean, corrupted = reading.clean[0], reading.corrupted
    restored = torch.stack([outcome.values[0] for outcome in outcomes])
    everything = max(float((o.everything - clean).abs().max()) for o in outcomes)
    nothing = max(float((o.nothing - corrupted).abs().max()) for o in outcomes)
    indirect, total = restored - corrupted, clean - corrupted
    average, error = mean_and_error(indirect)
    total_mean, total_error = mean_and_error(total)
    dims, unit = ("site", "layer", "pos"), {"unit": "probability"}
    result = xr.Dataset(
        {
            "indirect": ((*dims, "sample"), to_numpy(indirect), unit),
            "average_indirect": (dims, to_numpy(average), unit),
            "average_indirect_se": (dims, to_numpy(error), unit),
            "restored": (dims, to_numpy(restored.mean(-1)), unit),
            "clean": ((), float(clean), unit),
            "corrupted": ("sample", to_numpy(corrupted), unit),
            "total": ("sample", to_numpy(total), unit),
            "total_mean": ((), float(total_mean), unit),
            "total_se": ((), float(total_error), unit),
            "check_everything": ((), everything, unit),
            "check_nothing": ((), nothing, unit),
        },
        coords=coords,
        attrs=attrs,
    )
    return described(result, _ABOUT)


_ABOUT = {
    "indirect": "restored less corrupted probability",
    "average_indirect": "restored less corrupted probability, mean over the noise",
    "restored": "probability with one state restored, mean over the noise",
    "clean": "probability of the clean run",
    "corrupted": "probability of the corrupted run",
    "total": "clean less corrupted probability",
    "total_mean": "clean less corrupted probability, mean over the noise",
    "check_everything": "largest error where everything is restored",
    "check_nothing": "largest error where nothing is restored",
}
