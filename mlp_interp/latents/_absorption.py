"""`absorption`: whether other latents carry a kind of text where its own latents are silent."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr

from mlp_interp.dictionaries import Dictionary
from mlp_interp.latents.absorbed import PARTS, Seen, absorbed
from mlp_interp.latents.kinds import halves, kinds_of, of_all_kinds
from mlp_interp.latents.spliced import check_one_layer, read_in, runs_of, sites_of
from mlp_interp.models import describe
from mlp_interp.models.indices import count
from mlp_interp.models.options import checked_seed
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.padding import Padded, which_count
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.texts import Prompts
from mlp_interp.results import described, to_numpy, variable
from mlp_interp.runs import Runner

__all__ = ["absorption"]

_UNITS = {
    "f1": ("f1", "of the main latents, on the half that chose them"),
    "found": ("fraction", "of the kind's held-out texts that the direction finds"),
    "false_alarms": ("fraction", "of the other kinds' that it calls the kind, too"),
    "missed": ("fraction", "of the found that the main latents miss"),
    "full": ("fraction", "of the found: missed, and another latent carries the direction"),
    "partial": ("fraction", "of the found: not missed, and another latent carries the direction"),
    "full_null": ("fraction", "full, with decoder rows exchanged between latents"),
    "partial_null": ("fraction", "partial, with decoder rows exchanged between latents"),
}

_OTHERS = {
    "main": "latents that tell the kind best",
    "share": "of the kind's excess along the direction, by what carries it",
    "excess": "of the text along the direction",
    "carried": "of the excess, by what carries it",
    "strongest": "latent, not a main one, that carries most",
    "text_found": "whether the direction finds the text",
    "text_hit": "whether the main latents find the text",
    "absorbed": "whether another latent carries the direction in it",
}


@own_mode()
@torch.no_grad()
def absorption(
    model: Model,
    dictionary: Dictionary,
    texts: Mapping[str, Prompts],
    *,
    k: int = 1,
    share: float = 0.5,
    batch_size: int = 32,
    seed: int = 0,
) -> xr.Dataset:
    """Whether a kind of text has latents of its own, or others take it over in some of its texts.

    A latent "for words that begin with s" may be silent at "short", whose own latent writes both
    the word and its first letter: it has absorbed the letter there. So a latent that looks like a
    concept is one with exceptions, which its largest activations do not show.

    All is read at each text's last token. Half of the texts choose: the direction of the kind, the
    mean of what is there less that of the other kinds; and its main latents with their thresholds,
    by F1. Of the other half those texts count that the direction finds, past the middle between
    the two means. Their excess over the other kinds' mean along the direction is split, exactly,
    into what the main latents, the strongest other one, the other latents and the rest (bias, skip
    and error) write. A text is absorbed if the strongest other latent writes at least `share` of
    it: **fully** where the main latents miss the text, in **part** where they do not. Of both,
    little is better. Missed texts that nobody absorbs are another failure: see ``share``.

    The null exchanges decoder rows between the other latents, as active as they are: what is left
    is what latents that know nothing of the kind come to.

    Args:
        model: The model.
        dictionary: An SAE or transcoder for it, of one layer.
        texts: At least two kinds by name, each with four texts or more, which differ at their last
            token. Each kind is held against all others.
        k: How many main latents a kind may have. Another is taken only if F1 rises by 0.03: a kind
            that is split in two has two, but an exception to a kind is no part of it.
        share: What another latent must write of a text's excess to absorb it.
        batch_size: Texts that are run at a time.
        seed: Of the halves and of the null.

    Returns:
        A Dataset. Along ``kind``: ``full`` and ``partial`` with ``_null`` and ``_se``, fractions of
        the texts found; ``missed``; ``found`` and ``false_alarms`` of the direction (where these
        are not near 1 and 0 the rest says little); ``f1`` and, along ``rank``, ``main``, -1 for
        none. Along ``kind``, ``outcome`` (missed, hit) and ``part``: ``share`` of the excess, sums
        to 1. Along ``text``, those that did not choose: ``excess`` and, by each part,
        ``carried``; ``strongest``, which other latent; ``text_found``, ``text_hit``, ``absorbed``.

    Raises:
        ValueError: Fewer kinds or texts, a text without a token after BOS, a dictionary of several
            layers or of another model, a share that is none.

    References:
        Chanin et al., "A is for Absorption", 2024; Karvonen et al., "SAEBench", 2025.

    Example:
        >>> from mlp_interp import load_corpus, load_model
        >>> from mlp_interp.latents import train
        >>> model = load_model("nano")
        >>> corpus = load_corpus("nano", model, sequences=8, length=64)
        >>> sae = train(model, corpus, "2.mlp", n_latents=64, k=8, steps=3, batch_size=64)
        >>> kinds = {"numbers": ["1 2 3", "4 5 6", "7 8 9", "2 4 6"]}
        >>> kinds["words"] = ["the cat sat", "a dog ran", "the sun was hot", "he was sad"]
        >>> found = absorption(model, sae, kinds)
        >>> found.full.dims, found.part.values.tolist()[:2]
        (('kind',), ['main', 'strongest_other'])
    """
    count("batch_size", batch_size)
    count("k", k)
    if isinstance(share, bool) or not 0 < share <= 1:
        raise ValueError(f"share={share!r}; wanted a number above 0, up to 1")
    seed = checked_seed(seed)
    runner = Runner.of(model)
    check_one_layer(runner.weights, dictionary)
    kinds = kinds_of(texts)
    padded, every = of_all_kinds(model, texts)
    seen = _seen(runner, dictionary, padded, halves(kinds, seed), batch_size)
    each = [absorbed(seen, kinds == n, k, share, seed) for n in range(len(texts))]
    of_kind = {name: np.stack([one[name] for one, _ in each]) for name in each[0][0]}
    of_text = {name: np.concatenate([one[name] for _, one in each]) for name in each[0][1]}
    held = np.concatenate([np.flatnonzero(~seen.chooses & (kinds == n)) for n in range(len(texts))])
    result = xr.Dataset(
        {
            **{
                name: variable("kind", of_kind[name], unit=unit)
                for name, (unit, _) in _UNITS.items()
            },
            **_errors(of_kind, of_text["found"], kinds[held]),
            "main": variable(("kind", "rank"), of_kind["main"], unit="index"),
            "share": variable(("kind", "outcome", "part"), of_kind["share"], unit="fraction"),
            "excess": variable("text", of_text["excess"], unit="stream"),
            "carried": variable(("text", "part"), of_text["part"], unit="stream"),
            "strongest": variable("text", of_text["strongest"], unit="index"),
            "text_found": variable("text", of_text["found"], unit="truth"),
            "text_hit": variable("text", of_text["hit"], unit="truth"),
            "absorbed": variable("text", of_text["absorbs"], unit="truth"),
        },
        coords={
            "kind": list(texts),
            "outcome": ["missed", "hit"],
            "part": list(PARTS),
            "text": [every[n] for n in held],
            "kind_of": ("text", [list(texts)[n] for n in kinds[held]]),
        },
        attrs={
            **padded.attrs,
            **describe(model),
            "analysis": "absorption of kinds of text",
            "dictionary": repr(dictionary),
            "unit": "fraction",
            "share_wanted": share,
            "seed": seed,
            "errors": "standard error over texts",
            "exact": 1,
        },
    )
    return described(result, {name: about for name, (_, about) in _UNITS.items()} | _OTHERS)


def _seen(
    runner: Runner, dictionary: Dictionary, padded: Padded, chooses: np.ndarray, batch_size: int
) -> Seen:
    """What is written, and by which latents, at the last token of each text."""
    counts = which_count(runner.weights.model, padded.tokens, padded.real, 1)
    if not bool(counts.any(1).all()):
        text = int((~counts.any(1)).nonzero()[0])
        raise ValueError(f"text {text} has no token after the first; wanted one to read")
    written, strengths = [], []
    for batch in runs_of(
        runner, padded, counts, sites_of(runner.weights, [dictionary]), batch_size
    ):
        width = batch.counts.shape[1]
        last = width - 1 - batch.counts.flip(1).int().argmax(1)
        rows = range(len(last))
        read, there = (side[rows, last] for side in read_in(batch.run, dictionary))
        latents = dictionary.encode(read)
        written.append(there.double().cpu())
        strengths.append(latents.written(latents.dense()).double().cpu())
    rows_out = to_numpy(dictionary.W_dec.double())
    return Seen(to_numpy(torch.cat(written)), to_numpy(torch.cat(strengths)), rows_out, chooses)


def _errors(of_kind: dict[str, Any], found: np.ndarray, kinds: np.ndarray) -> dict[str, Any]:
    """Of fractions of the texts found, NaN of fewer than two."""
    number = np.array([found[kinds == n].sum() for n in range(kinds.max() + 1)])
    least = np.where(number > 1, number - 1.0, np.nan)
    return {
        f"{name}_se": variable(
            "kind", np.sqrt(of_kind[name] * (1 - of_kind[name]) / least), unit="fraction"
        )
        for name in ("full", "partial")
    }
