"""Causal tracing: corrupt a phrase with noise, restore one state, see how much comes back."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.edits import Edit
from mlp_interp.metrics import Reader, finite, probability
from mlp_interp.models import Forward, Weights, describe, forward_of
from mlp_interp.patching.cells import Grid, grid_of
from mlp_interp.patching.exchange import Exchange, kept_sites
from mlp_interp.patching.running import Outcome, run_branches, run_cells
from mlp_interp.prompts.pairs import encode_prompt, phrase_positions
from mlp_interp.prompts.tokenizing import single_token, token_strings, tokenizer_of
from mlp_interp.results import mean_and_error, to_numpy
from mlp_interp.runs import Runner, Trunk
from mlp_interp.sites import Site
from mlp_interp.unembed import Unembed

__all__ = ["causal_trace"]

_SITES = ("resid_post", "mlp_out", "attn_out")


@torch.no_grad()
def causal_trace(
    model: Any,
    prompt: str,
    subject: str | Sequence[int],
    *,
    answer: str | int | None = None,
    noise: float = 3.0,
    samples: int = 10,
    sites: Sequence[str] = _SITES,
    window: int | None = None,
    seed: int = 0,
    prepend_bos: bool = True,
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
        subject: The phrase whose tokens are corrupted, or their positions (BOS has position 0).
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
        memory: MiB that may be used on top of the runs themselves.
        progress: Show a progress bar.

    Returns:
        A Dataset of probabilities: ``indirect`` (site, layer, pos, sample), the restored run's less
        the corrupted run's; ``average_indirect`` and ``average_indirect_se``, its mean over the
        noise with standard error; ``restored``, the restored run's probability averaged; ``clean``;
        ``corrupted`` (sample) and ``total`` (sample), the clean run's less the corrupted run's,
        with ``total_mean`` and ``total_se``. A coordinate marks the subject's positions.
        ``check_everything`` and ``check_nothing`` are the largest errors of two self-checks:
        restoring everything gives the clean run, restoring nothing the corrupted ones.

    Raises:
        ValueError: The subject is not in the prompt, the answer is not one token, or a number that
            makes no sense.

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
    if samples < 1 or not noise > 0:
        raise ValueError(f"samples={samples}, noise={noise}; wanted at least 1, and above 0")
    tokenizer = tokenizer_of(model)
    ids = encode_prompt(tokenizer, prompt, prepend_bos=prepend_bos)
    tokens = weights.checked(torch.tensor([ids]))
    positions = _subject(model, prompt, subject, len(ids), prepend_bos)
    if window is None:
        window = max(1, round(weights.n_layers * 10 / 48))
    grids = [
        grid_of(
            weights, site, length=len(ids), window=window if site in ("attn_out", "mlp_out") else 1
        )
        for site in ([sites] if isinstance(sites, str) else sites)
    ]
    if not grids or any(grid.family != "stream" for grid in grids):
        raise ValueError(
            f"sites={list(sites)}; wanted some of resid_pre, resid_post, attn_out, mlp_out"
        )
    runs = _Traced(model, grids, tokens, _noise(weights, positions, len(ids), samples, noise, seed))
    token = _answer(model, runs.clean, answer)
    clean, corrupted, outcomes = runs.run(token, samples, memory=memory, progress=progress)
    return _dataset(
        clean,
        corrupted,
        outcomes,
        coords={
            "site": [grid.sites[0] for grid in grids],
            "layer": np.arange(weights.n_layers),
            "pos": np.arange(len(ids)),
            "token": ("pos", token_strings(tokenizer, ids)),
            "subject": ("pos", np.isin(np.arange(len(ids)), positions)),
            "sample": np.arange(samples),
        },
        attrs={
            **describe(model),
            "analysis": "causal tracing",
            "data": f"one prompt of {len(ids)} tokens: {prompt}",
            "answer": token_strings(tokenizer, [token])[0],
            "metric": "probability",
            "unit": "probability",
            "noise": f"{noise} standard deviations of the token embedding",
            "window": window,
            "seed": seed,
            "engine": runs.engine,
            "errors": "standard error over draws of the noise; NaN with a single one",
        },
    )


class _Traced:
    """The clean run, the corrupted ones, and each state restored."""

    def __init__(
        self,
        model: Any,
        grids: list[Grid],
        tokens: Int[Tensor, "1 pos"],
        noise: Float[Tensor, "sample pos d_model"],
    ) -> None:
        forward = forward_of(model)
        self.model, self.grids, self.tokens, self.noise = model, grids, tokens, noise
        self.forward = forward if isinstance(forward, Forward) else None
        self.engine = "branches" if self.forward else "hooks"
        self.clean = forward.run(forward.embed(tokens))[:, -1]

    def run(
        self, token: int, samples: int, *, memory: float, progress: bool
    ) -> tuple[Tensor, Tensor, list[Outcome]]:
        """Probability of the token: clean, corrupted by sample, and restored, by site."""
        metric = probability(torch.full((samples,), token))
        reader = metric.reader(self.model, self.clean[:, None])
        clean = reader(self.clean[:, None], torch.zeros(1, dtype=torch.long))[0]
        finite(metric, "clean", clean)
        if self.forward is not None:
            return (clean, *self._as_branches(self.forward, reader, memory, progress))
        return (clean, *self._as_cells(reader, progress))

    def _as_branches(
        self, forward: Forward, reader: Reader, memory: float, progress: bool
    ) -> tuple[Tensor, list[Outcome]]:
        keep = set().union(*(kept_sites(grid) for grid in self.grids))
        embedded = forward.embed(self.tokens)
        source = Trunk.of(forward, embedded, keep=keep)
        base = Trunk.of(forward, embedded + self.noise, keep=keep)
        read = [base.length - 1]
        corrupted = reader(base.streams[-1][:, read], torch.arange(base.prompts))
        found = [
            run_branches(
                Exchange(grid, base, source),
                read,
                reader,
                corrupted,
                memory=memory,
                progress=progress,
            )
            for grid in self.grids
        ]
        return corrupted, found

    def _as_cells(self, reader: Reader, progress: bool) -> tuple[Tensor, list[Outcome]]:
        runner = Runner.of(self.model)
        sites = [
            Site(name, layer)
            for grid in self.grids
            for name in kept_sites(grid)
            for layer in range(grid.n_layers)
        ]
        source = runner.run(self.tokens, sites=sites)
        rows = self.tokens.expand(len(self.noise), -1)
        noisy = [Edit.add("0.resid_pre", self.noise)]
        base = runner.run(rows, sites=sites, edits=noisy)
        base = replace(base, fired=())  # from here on the noise belongs to the prompts
        prompts = torch.arange(len(rows))

        def measure(final: Float[Tensor, "sample pos d_model"]) -> Float[Tensor, " sample"]:
            return reader(final[:, -1:], prompts)

        found = [
            run_cells(runner, grid, base, source, measure, progress=progress) for grid in self.grids
        ]
        return measure(base.final), found


def _subject(
    model: Any, prompt: str, subject: str | Sequence[int], length: int, prepend_bos: bool
) -> list[int]:
    if isinstance(subject, str):
        return phrase_positions(model, prompt, subject, prepend_bos=prepend_bos)
    positions = [int(p) for p in subject]
    if not positions or any(not 0 <= p < length for p in positions):
        raise ValueError(f"subject={positions}; wanted positions from 0 to {length - 1}")
    return positions


def _noise(
    weights: Weights, positions: list[int], length: int, samples: int, noise: float, seed: int
) -> Float[Tensor, "sample pos d_model"]:
    """Noise at the subject's positions, zero elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn((samples, len(positions), weights.d_model), generator=generator)
    spread = noise * float(weights.W_E.float().std())
    found = torch.zeros(samples, length, weights.d_model)
    found[:, positions] = spread * draws
    return found.to(weights.W_E)


def _answer(model: Any, final: Float[Tensor, "1 d_model"], answer: str | int | None) -> int:
    if answer is None:
        return int(Unembed.of(model).logits(final)[0].argmax())
    if isinstance(answer, str):
        return single_token(tokenizer_of(model), answer, what="answer")
    if not 0 <= answer < Weights.of(model).d_vocab:
        raise ValueError(f"answer={answer}; wanted a token id or a word")
    return answer


def _dataset(
    clean: Tensor,
    corrupted: Tensor,
    outcomes: Sequence[Outcome],
    *,
    coords: dict[str, Any],
    attrs: dict[str, Any],
) -> xr.Dataset:
    restored = torch.stack([outcome.values[0] for outcome in outcomes])
    everything = max(float((o.everything - clean).abs().max()) for o in outcomes)
    nothing = max(float((o.nothing - corrupted).abs().max()) for o in outcomes)
    indirect, total = restored - corrupted, clean - corrupted
    average, error = mean_and_error(indirect)
    total_mean, total_error = mean_and_error(total)
    dims, unit = ("site", "layer", "pos"), {"unit": "probability"}
    return xr.Dataset(
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
