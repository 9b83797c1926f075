"""`train`: a dictionary of one place of a model, from its own forward pass."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from tqdm.auto import tqdm

from mlp_interp.checkpoint import TENSORS, Checkpoint, Tensors
from mlp_interp.dictionaries import Dictionary, JumpRelu, TopK
from mlp_interp.dictionaries.dictionary import AFTER_NORM, Wants
from mlp_interp.dictionaries.places import place_of
from mlp_interp.latents.learner import Kind, Learner, beginning
from mlp_interp.latents.rows import Rows
from mlp_interp.models import Weights, describe, fingerprint, forward_of
from mlp_interp.models.indices import count
from mlp_interp.models.options import check_choice, checked_number, checked_seed
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.padding import Padded, which_count
from mlp_interp.models.processing import processing
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.texts import padded_texts, warn_of_one

__all__ = ["train"]

_KEEP_EVERY = 100


@own_mode()
def train(
    model: Model,
    corpus: Any,
    place: str,
    *,
    reads: str | None = None,
    n_latents: int,
    k: int,
    kind: Kind = "topk",
    steps: int = 600,
    batch_size: int = 512,
    lr: float = 2e-3,
    pool: int = 2**16,
    dead: int = 100,
    first: int = 1,
    seed: int = 0,
    attention_mask: Any = None,
    checkpoint: str | Path | None = None,
    progress: bool = False,
) -> Dictionary:
    """Train a sparse dictionary of what a place of the model holds.

    The least squared error with `k` active latents a token. For small models, tests and pilot
    studies: a large one is better trained with SAELens or sparsify, whose files `load` reads. What
    it explains says nothing yet of what latents mean: `evaluate` measures what the model loses, and
    a random dictionary of as many latents is the control of every claim about single ones.

    Activations come from the model's own pass, in pools of `pool` tokens that are shuffled; a
    corpus that fits in one is run once. Numbers are the same to the last bit on one machine.

    Args:
        model: The model.
        corpus: A `Corpus`; tokens ``[sequence, pos]``, padded or not; texts.
        place: What is explained: ``"3.mlp"``, ``"3.attn"``, ``"3.resid_post"``.
        reads: What latents read: None for the place itself (an SAE), ``"mlp_in"`` for what the MLP
            reads (a transcoder), or ``"resid_pre"``.
        n_latents: How many.
        k: How many are active at a token.
        kind: ``"topk"``: `k` at every token. ``"batch_topk"``: on average over a batch; what comes
            back has a threshold in its place, so that it acts on each token alone.
        steps: How many batches.
        batch_size: Tokens in each.
        lr: The largest learning rate.
        pool: How many tokens' activations are held and shuffled at a time.
        dead: After how many batches without it a latent is pulled to what the others leave over.
        first: Position of each text from which on tokens count: 1 leaves out the first, and BOS.
        seed: Of the first directions and of the order of the tokens.
        attention_mask: 1 where text is, 0 where padding is; None tells it by the rule of
            `mlp_interp.models.padding`.
        checkpoint: A directory in which the training is kept as it goes on. Called again with the
            same one and the same arguments, it goes on where it stopped, with the same numbers.
        progress: Show a bar.

    Returns:
        A `Dictionary` for models with this processing, decoder rows of length 1, so that an
        activation is the length of what is written. ``attrs["fvu_last"]`` is the mean share of
        variance left over in the last tenth of the steps.

    Raises:
        ValueError: An unknown place or option, fewer latents than `k`, texts of another model.

    References:
        Gao et al., "Scaling and evaluating sparse autoencoders", 2024; Bussmann et al.,
        "BatchTopK Sparse Autoencoders", 2024.

    Example:
        >>> from mlp_interp import load_corpus, load_model
        >>> model = load_model("nano")
        >>> corpus = load_corpus("nano", model, sequences=8, length=64)
        >>> train(model, corpus, "2.mlp", n_latents=64, k=8, steps=3, batch_size=64)
        Dictionary: SAE of 2.mlp_out, 64 latents, TopK, k 8, for folded weights
    """
    for name, value in (("steps", steps), ("batch_size", batch_size), ("pool", pool)):
        count(name, value)
    count("k", count("dead", dead) and k, most=count("n_latents", n_latents))
    check_choice("kind", kind, get_args(Kind))
    lr = checked_number("lr", lr, lambda x: 0 < x < math.inf, "a finite number above 0")
    seed, weights = checked_seed(seed), Weights.of(model)
    pattern = _pattern(weights, place, reads)
    wants = _wants(weights, pattern)
    texts = padded_texts(model, corpus, attention_mask)
    warn_of_one(texts, "a dictionary")
    counts = which_count(model, texts.tokens, texts.real, first)
    weights.checked(texts.tokens)
    options = {
        "place": place, "reads": pattern.reads, "n_latents": n_latents, "k": k, "kind": kind,
        "steps": steps, "batch_size": batch_size, "lr": lr, "pool": pool, "dead": dead,
        "first": first, "seed": seed,
    }  # fmt: skip
    kept = Checkpoint(_folder(checkpoint, model, texts, options), TENSORS)
    with torch.no_grad():
        rows = Rows(forward_of(model), pattern, texts.tokens, counts, pool, seed)
        state = kept.read("state")
        state = beginning(*rows.first(), n_latents, seed) if state is None else state
        _run(Learner(kind, k, lr, steps, dead), rows, state, kept, batch_size, progress)
    said = {k: v for k, v in texts.attrs.items() if isinstance(v, str | int | float)}
    attrs = {**said, **describe(model), **options, "analysis": "dictionary"}
    return replace(_made(pattern, state, kind, k), wants=wants, attrs=attrs | _last(state))


def _run(
    learner: Learner,
    rows: Rows,
    state: Tensors,
    kept: Checkpoint[Tensors],
    batch_size: int,
    progress: bool,
) -> None:
    """All the steps that are left."""
    steps, done = learner.steps, int(state["step"])
    state.setdefault("unexplained", torch.zeros(steps, dtype=torch.float64))
    batches = rows.batches(batch_size, done, steps)
    bar = tqdm(batches, total=steps, initial=done, desc="dictionary", disable=not progress)
    for x, y in bar:
        unexplained = learner.step(state, x, y)
        state["unexplained"][int(state["step"]) - 1] = unexplained
        if int(state["step"]) % _KEEP_EVERY == 0 or int(state["step"]) == steps:
            kept.keep("state", state)


def _pattern(weights: Weights, place: str, reads: str | None) -> Dictionary:
    """A dictionary of no use, that says what is read and written.

    Raises:
        ValueError: It is no place of the model, or nothing that can be read there.
    """
    found = place_of(place) if isinstance(place, str) else None
    if found is None or found[0] in AFTER_NORM:
        raise ValueError(f"place={place!r}; wanted '3.mlp', '3.attn' or '3.resid_post', say")
    name, layer = found
    d_model = weights.d_model
    pattern = Dictionary(
        torch.zeros(d_model, 1),
        torch.zeros(1),
        torch.zeros(1, d_model),
        torch.zeros(d_model),
        TopK(1),
        layer=layer,
        reads=name if reads is None else reads,
        writes=name,
    )
    pattern.check(weights, name="place")
    return pattern


def _wants(weights: Weights, pattern: Dictionary) -> Wants | None:
    """The processing that a dictionary of these weights wants.

    Raises:
        ValueError: The weights are folded and not centred, or the reverse, and it would be of both.
    """
    found = processing(weights, pattern.layer, pattern.reads)
    if found == "neither":
        raise ValueError(
            f"reads={pattern.reads!r} of model={weights.model.cfg.model_name!r}, whose weights are "
            "folded or centred and not both; wanted load_model(name, processing='folded') or "
            "'raw', or, of a HookedTransformer of your own, model.process_weights_() before"
        )
    return found


def _folder(
    checkpoint: str | Path | None, model: Model, texts: Padded, options: dict[str, Any]
) -> Path | None:
    if checkpoint is None:
        return None
    lengths = {} if texts.lengths is None else {"lengths": texts.lengths.tolist()}
    return Path(checkpoint) / f"train-{fingerprint(model, texts.tokens, {**options, **lengths})}"


def _last(state: Tensors) -> dict[str, float]:
    unexplained = state["unexplained"]
    return {"fvu_last": float(unexplained[-max(1, len(unexplained) // 10) :].mean())}


def _made(pattern: Dictionary, state: Tensors, kind: Kind, k: int) -> Dictionary:
    """The dictionary in the model's own units, with what it was centred and scaled by folded in."""
    scale = state["y.scale"] / state["x.scale"]
    W_enc = state["W_enc"] * scale
    b_enc = state["b_enc"] * state["y.scale"] - state["x.mean"] @ W_enc
    threshold = state["threshold"].to(W_enc) * state["y.scale"]
    return Dictionary(
        W_enc,
        b_enc,
        state["W_dec"].clone(),
        state["b_dec"] * state["y.scale"] + state["y.mean"],
        TopK(k) if kind == "topk" else JumpRelu(threshold),
        layer=pattern.layer,
        reads=pattern.reads,
        writes=pattern.writes,
    )
