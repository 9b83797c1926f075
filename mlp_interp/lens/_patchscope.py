"""`patchscope`: what another prompt says of a stream that is put into it."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.lens.asked import Asked, texts_and_run, texts_of
from mlp_interp.lens.distributions import Distributions, rows_at_once
from mlp_interp.lens.labels import ABOUT, layer_coords, read_tokens, with_sites
from mlp_interp.lens.scope import Scope
from mlp_interp.models import Weights, describe
from mlp_interp.models.indices import count, index, indices
from mlp_interp.models.norm import Norm
from mlp_interp.models.options import checked_count, checked_seed
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.padding import Padded
from mlp_interp.models.protocol import Model
from mlp_interp.models.unembed import Unembed
from mlp_interp.prompts.tokenizing import decode
from mlp_interp.results import mean_and_error_over, strings, to_numpy
from mlp_interp.runs import Runner
from mlp_interp.runs.generation import check_room

__all__ = ["patchscope"]

_ABOUT = {
    "kl_output": ("nats", "KL(what the model says in the text itself‖what the prompt says of it)"),
    "kl_unpatched": ("nats", "KL(what the prompt says as it is‖what it says with the stream)"),
    "text": ("text", "what the prompt is continued by"),
    "text_unpatched": ("text", "what the prompt is continued by as it is"),
}


@own_mode()
@torch.no_grad()
def patchscope(
    model: Model,
    tokens: Any,
    target: Any,
    *,
    attention_mask: Any = None,
    position: int = -1,
    at: int = -1,
    layers: Any = None,
    into: int | Literal["same"] = "same",
    targets: Any = None,
    k: int = 5,
    max_new_tokens: int = 0,
    controls: int = 8,
    seed: int = 0,
) -> xr.Dataset:
    """What does another prompt make the model say of a stream that is put into it?

    The stream that enters a layer at one position of `tokens` takes the place of the one at `at` in
    `target`, and the model goes on from there: the rest of the model and the other prompt are the
    lens. A prompt that repeats (``"cat -> cat; 135 -> 135; x ->"``) asks which token the stream
    stands for, one such as ``"The capital of x is"`` whether it holds what is needed to answer.
    What is said may come from the other prompt: hold each number against its ``…_chance``.

    Args:
        model: The model.
        tokens: Whose streams are read: as of `read`.
        target: The prompt that they are put into: a text or tokens, one for all, or one for each of
            the same length.
        attention_mask: Of `tokens`, as of `read`.
        position: Which position of `tokens`, a negative one from the end of each text.
        at: Which position of `target`.
        layers: From which layers; None for all, the number of blocks for the final stream.
        into: The layer whose input the stream becomes: ``"same"`` as it came from, or one for all.
        targets: A token (id or single-token string) for all texts or one for each: its
            log-probability and rank are given, too. A `Contrast` has its own.
        k: How many of the likeliest tokens to give.
        max_new_tokens: How many tokens to continue the prompt by, the likeliest ones; 0 for none.
        controls: How many random streams, as long as the one that is put in (of what the norm keeps
            of it), to put in instead.
        seed: Of their directions.

    Returns:
        A Dataset along ``prompt layer`` (and ``rank``), of what is said at the last position of
        `target`. ``kl_output``: KL(what the model says at `position` of `tokens`‖what is said),
        nats; ``logp_output``, ``rank_output``, ``agrees`` of the former's likeliest token, as of
        `read`; ``kl_unpatched``: KL(what `target` says as it is‖what is said), how much the stream
        changes at all; ``entropy``; ``top_id``, ``top_logp``, ``top_text``; with targets
        ``logp_target``, ``rank_target``. All numbers but the top ones also with ``_chance``, the
        mean over random streams, and ``_chance_se``, its standard error over the draws. With
        `max_new_tokens`, ``text``, ``text_chance`` (of the first draw) and ``text_unpatched``.
        ``into`` is a coordinate. Put into the last layer, at the last position, a stream is read by
        the logit lens; put where it was, it changes nothing.

    Raises:
        ValueError: A position, layer or token that is not there, prompts to put streams into that
            are padded or not one each, counts out of range, a stream that is not finite.

    References:
        Ghandeharioun et al., "Patchscopes: A Unifying Framework for Inspecting Hidden
        Representations of Language Models", 2024.

    Example:
        >>> from mlp_interp import load_model
        >>> model = load_model("nano")
        >>> text = "The capital of France is"
        >>> found = patchscope(model, text, "The capital of Italy is", position=-2, at=-2)
        >>> found["top_text"][0, :, 0].values.tolist()
        [' Paris', ' Paris', ' Rome', ' Rome', ' Rome']
    """
    weights = Weights.of(model)
    chosen = indices("layers", layers, weights.n_layers + 1)
    to = chosen if into == "same" else (index("into", into, weights.n_layers + 1),) * len(chosen)
    checked_count(k, weights.d_vocab, "tokens")
    count("controls", controls)
    generator = torch.Generator().manual_seed(checked_seed(seed))
    prompt = texts_of(model, target, None)
    at = index("at", at, prompt.tokens.shape[1])
    if count("max_new_tokens", max_new_tokens, least=0):
        check_room(prompt.tokens.shape[1], max_new_tokens, int(model.cfg.n_ctx))
    padded, run = texts_and_run(model, tokens, attention_mask)
    index("position", position, padded.shortest)
    asked = Asked.of(weights, padded, position, tokens, targets)
    places = _places(asked)
    scope = Scope(Runner.of(model), _one_each(prompt, run.batch), at)
    directions = torch.randn(
        controls, run.batch, weights.d_model, generator=generator, dtype=torch.float32
    )
    streams = [_and_random(weights.final_norm, run.streams[n][places], directions) for n in chosen]
    finals = [scope.final(x, layer) for x, layer in zip(streams, to, strict=True)]
    every = torch.cat([scope.unpatched()[None], *finals, run.final[places][None]])
    found = _result(_said(scope.runner.unembed, every, asked, k), len(chosen))
    if max_new_tokens:
        found = found.merge(_texts(scope, streams, to, max_new_tokens))
    found["top_text"] = (found["top_id"].dims, read_tokens(model, found["top_id"].values))
    for name, values in found.data_vars.items():
        stem = str(name).removesuffix("_se").removesuffix("_chance")
        unit, long_name = _ABOUT.get(stem) or ABOUT[stem]
        values.attrs = {"unit": unit, "long_name": long_name}
    found = found.assign_coords({**layer_coords(chosen), "into": ("layer", list(to))})
    return with_sites(found, weights.n_layers).assign_attrs(
        {
            "analysis": "patchscope",
            "long_name": "what another prompt says of a stream that is put into it",
            "unit": "nats",
            "exact": 1,
            "controls": controls,
            "seed": seed,
            **padded.attrs,
            "position": position,
            "target": decode(getattr(model, "tokenizer", None), prompt.tokens[0].tolist()),
            "at": at,
            **describe(model),
        }
    )


def _one_each(prompt: Padded, n: int) -> Int[Tensor, "batch pos"]:
    """As many prompts as there are streams.

    Raises:
        ValueError: There is neither one nor as many, or they differ in length.
    """
    rows = len(prompt.tokens)
    if rows not in (1, n):
        raise ValueError(f"target has {rows} prompts for {n} texts; wanted one, or one each")
    if prompt.shortest < prompt.tokens.shape[1]:
        raise ValueError(
            f"target has prompts of {prompt.shortest} to {prompt.tokens.shape[1]} tokens; wanted "
            "one length"
        )
    return prompt.tokens.expand(n, -1)


def _places(asked: Asked) -> tuple[Tensor, Tensor]:
    """Where each text's stream stands."""
    text, place = asked.rows()
    device = asked.padded.tokens.device
    return text.to(device), torch.tensor(asked.positions)[place].to(device)


def _and_random(
    norm: Norm,
    streams: Float[Tensor, "batch d_model"],
    directions: Float[Tensor, "draw batch d_model"],
) -> Float[Tensor, "draws batch d_model"]:
    """The streams, and random ones as long as what the norm keeps of each."""
    random = norm.keep(directions.to(streams))
    length = norm.keep(streams).norm(dim=-1, keepdim=True)
    return torch.cat([streams[None], random / random.norm(dim=-1, keepdim=True) * length])


def _said(
    unembed: Unembed, finals: Float[Tensor, "column row d_model"], asked: Asked, k: int
) -> dict[str, np.ndarray]:
    """What the prompts say as they are, with each stream, and what its own text says."""
    pieces: dict[str, list[np.ndarray]] = {}
    normalized = unembed.normalize(finals)
    ids = {name: x.to(finals.device) for name, x in asked.targets.items() if name == "target"}
    rows = torch.arange(finals.shape[1], device=finals.device)
    for some in rows.split(rows_at_once(unembed, len(finals))):
        targets = {name: x[some] for name, x in ids.items()}
        found = Distributions.of(unembed, normalized[:, some], targets, k=k)
        said = {
            "kl_output": found.kl[-1],
            "kl_unpatched": found.kl[0],
            "entropy": found.entropy,
            "agrees": (found.top[..., 0] == found.top[-1:, :, 0]).float(),
            **{f"logp_{name}": x - found.total for name, x in found.logits.items()},
            **{f"rank_{name}": x.float() for name, x in found.ranks.items()},
            "top_id": found.top,
            "top_logp": found.top_logits - found.total[..., None],
        }
        for name, x in said.items():
            pieces.setdefault(name, []).append(to_numpy(x[1:-1]))
    return {name: np.concatenate(some, 1) for name, some in pieces.items()}


def _result(said: dict[str, np.ndarray], layers: int) -> xr.Dataset:
    """Along prompt and layer; the draws as their mean and its error."""
    found = xr.Dataset()
    for name, values in said.items():
        split = values.reshape(layers, -1, *values.shape[1:])
        dims = ("layer", "draw", "prompt", "rank")[: split.ndim]
        every = xr.DataArray(split, dims=dims).transpose("prompt", "layer", ...)
        found[name] = every.isel(draw=0)
        if not name.startswith("top"):
            chance = mean_and_error_over(every.isel(draw=slice(1, None)), "draw")
            found[f"{name}_chance"], found[f"{name}_chance_se"] = chance
    return found.assign_coords({dim: np.arange(found.sizes[dim]) for dim in ("prompt", "rank")})


def _texts(
    scope: Scope, streams: Sequence[Tensor], to: Sequence[int], new: int
) -> dict[str, tuple[Any, np.ndarray]]:
    """Variables of what the prompts are continued by."""
    both = [scope.continued(x[:2], layer, new) for x, layer in zip(streams, to, strict=True)]
    of_streams, of_random = strings(both).transpose(1, 2, 0)
    return {
        "text": (("prompt", "layer"), of_streams),
        "text_chance": (("prompt", "layer"), of_random),
        "text_unpatched": (("prompt",), strings(scope.continued_unpatched(new))),
    }
