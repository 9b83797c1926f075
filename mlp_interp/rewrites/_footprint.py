"""Where in other text a rewrite is felt: token by token, what it adds and what that does."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mlp_interp.edits import Edit
from mlp_interp.models import describe
from mlp_interp.models.indices import count
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.padding import which_count
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.texts import padded_texts
from mlp_interp.prompts.tokenizing import token_strings
from mlp_interp.results import mean_and_error, strings, variable
from mlp_interp.rewrites.keys import checked_model
from mlp_interp.rewrites.result import Rewrite, checked_rewrite
from mlp_interp.runs import Run, Runner
from mlp_interp.runs.effects import edit_effects
from mlp_interp.sites import Site

__all__ = ["footprint"]


@own_mode()
@torch.no_grad()
def footprint(
    model: Model,
    rewrite: Rewrite,
    corpus: Any,
    *,
    first: int = 1,
    batch_size: int = 8,
) -> xr.Dataset:
    """What a rewrite adds to the MLPs' outputs at every token of a text, and what that does.

    A rewrite with ``u`` and ``δ`` adds ``(k·u) δ`` wherever a key ``k`` overlaps with ``u``. In
    mean square over the text that ``C`` is of, that is ``uᵀCu |δ|²``, whatever the norms of the
    weights are: a larger ``|ΔW|`` may well be felt less.

    Args:
        model: The model, without the rewrite.
        rewrite: What `rewrite` or `rewrite_many` gave.
        corpus: Text, as in `sweep`.
        first: Position from which on tokens count.
        batch_size: Sequences that are run at once.

    Returns:
        A Dataset along ``sequence`` and ``pos``, NaN where tokens do not count: `added` (layer: the
        length of what is added there), `kl` (before‖after of the next token, nats) and
        `delta_loss` (nats), with coordinate ``token``. Along ``layer``: `rms` (root mean square of
        `added`), `share` (of the MLP's own output's) and `expected` (`rms` on the text of the
        rewrite's keys; the two differ as the texts do; NaN where so few keys overlap with ``u``
        that their second moment's rounding is as large). `mean_kl` and `mean_delta_loss`, with
        `…_se` over sequences, and `weights`, the Frobenius norm of the change as a share of
        ``W_out``'s, by layer.

    Raises:
        ValueError: As `score_rewrite` about the model, and `sweep` about the text.

    Example:
        >>> from mlp_interp import load_corpus, load_model
        >>> from mlp_interp.rewrites import associations, rewrite
        >>> model = load_model("nano")
        >>> text = load_corpus("nano", model, sequences=16)
        >>> keys = associations(model, text, layers=[0])
        >>> found = rewrite(
        ...     model, "France", "The capital of France is", " Rome", layer=0, keys=keys
        ... )
        >>> felt = footprint(model, found, text)
        >>> felt.added.dims, bool(felt.mean_kl < 0.02)
        (('layer', 'sequence', 'pos'), True)
    """
    checked_model(model, "footprint")
    count("batch_size", batch_size)
    runner, edits = Runner.of(model), checked_rewrite(rewrite).as_edits(model)
    texts = padded_texts(model, corpus)
    counts = which_count(model, texts.tokens, texts.real, first)
    sites = [Site(name, layer) for layer in rewrite.layers for name in ("post", "mlp_out")]
    found: dict[str, list[Tensor]] = {name: [] for name in ("added", "own", "kl", "delta_loss")}
    for start in range(0, len(texts.tokens), batch_size):
        part = slice(start, start + batch_size)
        real = None if texts.real is None else texts.real[part]
        clean = runner.run(texts.tokens[part], sites=sites)
        found["added"].append(_added(clean, rewrite, edits).cpu())
        own = torch.stack([clean["mlp_out", n].norm(dim=-1) for n in rewrite.layers])
        found["own"].append(own.cpu())
        for effects in edit_effects(runner, clean, [edits], real=real):
            found["kl"].append(effects.kl.cpu())
            found["delta_loss"].append(effects.delta_loss.cpu())
    whole = {name: torch.cat(parts, dim=1).double() for name, parts in found.items()}
    whole = {name: x.masked_fill(~counts.cpu(), torch.nan) for name, x in whole.items()}
    return _result(model, rewrite, texts.tokens, whole).assign_attrs(
        {
            **texts.attrs,
            **describe(model),
            "analysis": "footprint",
            "exact": 1,
            "rewrite": repr(rewrite),
            "unit": "nats",
            "first": first,
        }
    )


def _added(clean: Run, rewrite: Rewrite, edits: Sequence[Edit]) -> Float[Tensor, "layer batch pos"]:
    """Length of what each layer's MLP writes more."""
    lengths = []
    for n, layer in enumerate(rewrite.layers):
        u, delta = rewrite.u[n], rewrite.delta[n]
        # Of several layers, the later ones read a stream that has changed by then.
        post = clean.edited(edits[:n])["post", layer]
        lengths.append(((post @ u.to(post).T) @ delta.to(post)).norm(dim=-1))
    return torch.stack(lengths)


def _result(model: Model, rewrite: Rewrite, tokens: Tensor, whole: dict[str, Tensor]) -> xr.Dataset:
    weights, layers = rewrite.check(model), rewrite.layers
    rms = {name: whole[name].square().nanmean((1, 2)).sqrt() for name in ("added", "own")}
    by_token = ("sequence", "pos")
    sizes = [
        float(rewrite.change(n).norm() / weights.parameter(n, "W_out").double().norm())
        for n in layers
    ]
    means: dict[str, xr.Variable] = {}
    for name in ("kl", "delta_loss"):
        pair = mean_and_error(whole[name][0].nanmean(-1))
        for suffix, number in zip(("", "_se"), pair, strict=True):
            means[f"mean_{name}{suffix}"] = variable((), number, unit="nats per token")
    ids = tokens.flatten().tolist()
    shown = strings(token_strings(getattr(model, "tokenizer", None), ids)).reshape(tokens.shape)
    return xr.Dataset(
        {
            "added": variable(("layer", *by_token), whole["added"], unit="activation"),
            "kl": variable(by_token, whole["kl"][0], unit="nats"),
            "delta_loss": variable(by_token, whole["delta_loss"][0], unit="nats"),
            "rms": variable("layer", rms["added"], unit="activation"),
            "share": variable("layer", rms["added"] / rms["own"], unit="fraction"),
            "expected": ("layer", rewrite.data["footprint"].values, {"unit": "activation"}),
            "weights": variable("layer", np.array(sizes), unit="fraction"),
            **means,
        },
        coords={"layer": list(layers), "token": (by_token, shown)},
    )
