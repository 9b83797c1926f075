"""Check that a model is what its results will say it is."""

from typing import Any

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mlp_interp.models.loading import describe, reload_source
from mlp_interp.models.probe import probe_tokens
from mlp_interp.models.processing import without_mean
from mlp_interp.models.protocol import Model
from mlp_interp.models.unembed import readout_error
from mlp_interp.models.weights import Weights
from mlp_interp.models.writes import sum_error, summed_sites

__all__ = ["check_model"]

TOLERANCE = 1e-3
"""Largest log-probability difference (nats) and residual error (share of a position's stream) at
which a float32 model passes. Float32 arithmetic gives 1e-6 to 1e-4."""


@torch.no_grad()
def check_model(model: Model) -> xr.Dataset:
    """Measure whether a model computes what its weights and its source say.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.

    Returns:
        A Dataset of scalars. Found on the weights: ``ln_folded``, ``writing_centred``,
        ``unembed_centred``, ``value_biases_folded`` (bool). Measured on 2 x 32 fixed tokens:
        ``log_prob_error`` (nats; largest difference from the Hugging Face forward; NaN where the
        source is not known), ``readout_error`` (nats; largest difference of the folded readout's
        log-probabilities from the model's own), ``residual_error`` (of the final stream less the
        sum of embeddings, heads, neurons and biases, the L2 norm as a share of the stream's at the
        same position, where it is largest). ``ok`` is True when everything is finite and all errors
        are below `TOLERANCE`. Model, dtype, device
        and class are in the attributes.

    Raises:
        ValueError: The model is of a kind that the package cannot read.

    Example:
        >>> from mlp_interp import load_model
        >>> check = check_model(load_model("nano"))
        >>> bool(check.ok), bool(check.ln_folded)
        (True, True)
    """
    weights = Weights.of(model)
    tokens, names = probe_tokens(weights), [site.hook_name for site in summed_sites(weights)]
    logits, cache = model.run_with_cache(tokens, names_filter=names)
    residual_error = sum_error(weights, cache)
    log_prob_error = _log_prob_error(model, tokens, logits)
    finite = bool(torch.isfinite(logits).all())
    read_error, _ = readout_error(weights)
    errors = [residual_error, read_error]
    if log_prob_error == log_prob_error:
        errors.append(log_prob_error)
    ok = finite and all(error < TOLERANCE for error in errors)
    nats, share = {"unit": "nats"}, {"unit": "share of the position's norm"}
    return xr.Dataset(
        {
            "ok": ok,
            "finite": finite,
            **_processing(weights),
            "log_prob_error": ((), log_prob_error, nats),
            "readout_error": ((), read_error, nats),
            "residual_error": ((), residual_error, share),
        },
        attrs={
            **describe(model),
            "long_name": "does the model compute what its weights and its source say",
            "unit": "see each variable",
            "exact": 1,
            "n_layers": weights.n_layers,
            "n_heads": weights.n_heads,
            "d_model": weights.d_model,
            "d_mlp": weights.d_mlp,
            "d_vocab": weights.d_vocab,
            "parallel": int(weights.parallel),
            "tolerance": TOLERANCE,
            "data": f"{tokens.shape[0]} x {tokens.shape[1]} fixed tokens, a text's and random ones",
            "seed": 0,
        },
    )


def _log_prob_error(model: Model, tokens: Tensor, logits: Float[Tensor, "..."]) -> float:
    source: Any = reload_source(model)
    if source is None:
        return float("nan")
    theirs = source.to(tokens.device).eval()(tokens).logits.float().log_softmax(-1)
    return float((logits.float().log_softmax(-1) - theirs).abs().max())


def _processing(weights: Weights) -> dict[str, bool]:
    """Read the processing off the weights: configurations do not say it reliably."""
    blocks = [weights.block(layer) for layer in range(weights.n_layers)]
    norms = [norm for block in blocks for norm in (block.ln1, block.ln2)]
    writers = [weights.W_E, *(b.W_out for b in blocks), *(b.W_O for b in blocks)]
    return {
        "ln_folded": all(norm.folded for norm in [*norms, weights.ln_final]),
        "writing_centred": all(without_mean(w) for w in writers),
        "unembed_centred": without_mean(weights.W_U),
        "value_biases_folded": all(bool((b.b_V == 0).all()) for b in blocks),
    }
