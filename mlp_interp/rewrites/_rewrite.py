"""One fact written into one MLP: the closed form of ROME."""

from collections.abc import Sequence

import torch
import xarray as xr

from mlp_interp.models.indices import index
from mlp_interp.models.own_mode import in_own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.rewrites.facts import Prefixes, about, continued, placed, prefixes_of, texts_in
from mlp_interp.rewrites.keys import Keys, checked_model
from mlp_interp.rewrites.making import Part, check_fact, rewrite_of, warn_unless_said
from mlp_interp.rewrites.result import Rewrite
from mlp_interp.rewrites.values import Search, States, checked_search, find_value
from mlp_interp.runs import Runner

__all__ = ["rewrite"]


@in_own_mode
@torch.no_grad()
def rewrite(
    model: Model,
    subject: str,
    prompt: str,
    target: str,
    *,
    layer: int,
    keys: xr.Dataset,
    prefixes: Prefixes = 8,
    preserve: Sequence[str] = (),
    ridge: float | int = 1e-4,
    search: Search = Search(),
    seed: int = 0,
) -> Rewrite:
    """Write one fact into one MLP, taken as a linear memory that turns keys into values.

    The key is the MLP's hidden activations at the subject's last token, averaged over the prompt by
    itself and after `prefixes`. The value is what the MLP writes there plus a change δ, found by
    gradient, after which the model says the target. Of all changes of the output weights that turn
    this key into this value, the one is taken that changes the values of other keys least, in mean
    square over the text that `keys` are of: ``W ← W + u δᵀ`` with ``u = C⁻¹k / kᵀC⁻¹k``.

    What it does not say: that the fact was stored in this layer, or that nothing else about the
    subject has changed. As a rule much has; see `score_rewrite`, and give the prompts that are to
    stay as `preserve`.

    Args:
        model: The model; it is not changed. `rewritten` changes it for a while.
        subject: The phrase whose last token is the key, in the prompt once.
        prompt: The text that the target is to follow.
        target: What is to follow, of one token or several, with its leading space.
        layer: The layer whose MLP is changed; negative counts from the last. `causal_trace` shows
            where the subject matters.
        keys: What `associations` gave for this layer of this model.
        prefixes: So many texts that the model writes itself, of 10 and 5 tokens in turn, or texts.
            The prompt by itself is always among the contexts.
        preserve: Prompts that name the subject, after which the next token is to stay as likely as
            it is.
        ridge: What is added to the diagonal of the second moment, as a share of its mean.
        search: How δ is looked for.
        seed: Of the prefixes.

    Returns:
        The `Rewrite`.

    Raises:
        ValueError: The subject is not in the prompt, is there twice or shares a token with its
            neighbours; the target is no token, or what the model says already; the layer is none,
            or one after which nothing reads the subject; `keys` are of other weights; the ridge is
            out of range, or the model has hooks on it or normalises what MLPs write.

    Warns:
        UserWarning: The target is not the likeliest token after the prompt even so.

    References:
        Meng et al., "Locating and Editing Factual Associations in GPT", 2022, section 3.1. One
        averaged key is used throughout, as Gupta et al., "Rebuilding ROME", 2024, ask for.

    Example:
        >>> from mlp_interp import load_corpus, load_model
        >>> from mlp_interp.rewrites import associations
        >>> model = load_model("nano")
        >>> keys = associations(model, load_corpus("nano", model, sequences=16), layers=[0])
        >>> found = rewrite(
        ...     model, "France", "The capital of France is", " Rome", layer=0, keys=keys
        ... )
        >>> bool(found.data.loss.sel(way="after") < 0.1)
        True
    """
    weights = checked_model(model, "rewrite")
    layer, preserve = index("layer", layer, weights.n_layers), texts_in("preserve", preserve)
    checked_search(search)
    fact, runner = placed(model, (subject, prompt, target)), Runner.of(model)
    check_fact(runner, fact, layer)
    held = Keys.of(keys, weights, layer, ridge)
    rows = continued(model, fact, prefixes_of(runner, prefixes, seed=seed))
    kept = about(model, subject, preserve)
    texts = States.of(runner, rows, layer)
    found = find_value(
        runner, layer, texts, None if kept is None else States.of(runner, kept, layer), search
    )
    key = texts.key.double().mean(0, keepdim=True).cpu()
    u = held.solve(key)
    part = Part(held, u / (u * key).sum(), found.delta.double().cpu()[None], texts.key[None])
    made = rewrite_of(
        runner,
        [fact],
        {layer: part},
        [found],
        sizes=[float(texts.value.double().mean(0).norm())],
        attrs={
            "analysis": "rewrite",
            "exact": 0,
            "approximation": "values are searched for, and other keys known by their moments",
            "prefixes": len(rows.tokens) - 1,
            "preserve": "\n".join(preserve),
            **vars(search),
            "ridge": float(ridge),
            "seed": int(seed),
        },
    )
    warn_unless_said(runner, made, [fact])
    return made
