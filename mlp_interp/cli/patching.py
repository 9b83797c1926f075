"""What `mlp-interp patch` computes: the pairs, the grids of patches, the strongest cells."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from mlp_interp import prompts
from mlp_interp.models.protocol import Model
from mlp_interp.patching import patch
from mlp_interp.prompts import Contrast
from mlp_interp.prompts.tokenizing import encode, tokenizer_of
from mlp_interp.results import change_over_gap
from mlp_interp.sites import FAMILIES, Site


def contrast_for(
    model: Model,
    task: str | None,
    texts: dict[str, str | None],
    *,
    count: int = 8,
    seed: int = 0,
) -> Contrast:
    """The pairs of a task, or the pair of one's own prompts.

    Args:
        model: A model with a tokenizer.
        task: The name of one, checked before; None for `texts`.
        texts: ``clean``, ``corrupted``, ``answer`` and ``foil``. A word without a leading space
            gets one where that is a token: "Paris" means " Paris".
        count: Pairs of a task.
        seed: Draws them.

    Raises:
        ValueError: The texts make no pair.
    """
    if task is not None:
        return getattr(prompts, task)(model, n=count, seed=seed)
    tokenizer = tokenizer_of(model)
    clean, corrupted, answer, foil = (
        texts[name] or "" for name in ("clean", "corrupted", "answer", "foil")
    )
    return Contrast.of(
        model,
        clean,
        corrupted,
        *(_spaced(tokenizer, word) for word in (answer, foil)),
    )


def check_words(contrast: Contrast, metric: str) -> None:
    """Refuse words of several tokens with a metric that reads the first of them.

    Raises:
        ValueError: There is one.
    """
    words = {
        "answer": (contrast.answer_text, contrast.answer_tokens),
        "foil": (contrast.foil_text, contrast.foil_tokens),
    }
    for name, (texts, tokens) in words.items():
        if metric != "answer_log_probability" and len(tokens[0]) > 1:
            raise ValueError(
                f"--{name} {texts[0]!r} is {len(tokens[0])} tokens, of which --metric {metric} "
                "reads the first; wanted one token, or --metric answer_log_probability"
            )


def _spaced(tokenizer: Any, word: str) -> str:
    """A word behind a space, unless that makes more tokens of it."""
    if not word or word.startswith(" "):
        return word
    spaced = f" {word}"
    return spaced if len(encode(tokenizer, spaced)) <= len(encode(tokenizer, word)) else word


def grids(sites: Sequence[str]) -> dict[str, Callable[..., xr.Dataset]]:
    """A call of `patch` for each kind of site: stream, head, neuron.

    Each takes model, contrast, metric, direction, and ``progress``.
    """
    found = {}
    for family, members in FAMILIES.items():
        chosen = [name for name in dict.fromkeys(sites) if name in members]
        if chosen:
            found[family] = partial(_patch, chosen)
    return found


def _patch(
    sites: Sequence[str],
    model: Model,
    contrast: Contrast,
    metric: str,
    direction: Any,
    *,
    progress: bool = False,
) -> xr.Dataset:
    return patch(model, contrast, metric, sites=sites, direction=direction, progress=progress)


def table(results: dict[str, xr.Dataset], top: int) -> list[str]:
    """Lines that tell what was patched and, for each site, its strongest cells.

    Raises:
        ValueError: Clean and corrupted prompts have the same metric, all of them.
    """
    first = next(iter(results.values()))
    metric, unit = first.attrs["metric"], first.attrs["unit"]
    clean, corrupted = float(first["clean"].mean()), float(first["corrupted"].mean())
    gaps = int((first["clean"] != first["corrupted"]).sum())
    if not gaps:
        raise ValueError(
            f"{metric} is {clean:.4g} {unit} on clean and corrupted prompts alike; wanted prompts "
            "between which it differs"
        )
    many = first.sizes["prompt"]
    mean = f", mean change over mean gap of {many} prompts" if many > 1 else ""
    lines = [
        f"{first.attrs['data']}",
        f"{metric}: clean {clean:.3f}, corrupted {corrupted:.3f} {unit}",
        f"{first.attrs['direction']}, 0 corrupted, 1 clean{mean}",
    ]
    rows = [row for result in results.values() for row in _rows(result, top)]
    width = max(len(name) for name, _, _ in rows)
    site = None
    for name, value, where in rows:
        if where != site:
            lines += ["", where]
            site = where
        lines.append(f"  {name:<{width}}  {value}")
    return lines


def _rows(result: xr.Dataset, top: int) -> list[tuple[str, str, str]]:
    """Name, value and site of each site's cells that are furthest from the unpatched run."""
    unpatched = 1.0 if result.attrs["direction"] == "noising" else 0.0
    rows = []
    for site in result["site"].values:
        one = result.sel(site=site)
        dims = [str(dim) for dim in one["raw"].dims if dim != "prompt"]
        mean, error = (x.transpose(*dims).values for x in change_over_gap(one))
        order = np.argsort(-np.abs(mean - unpatched), axis=None, kind="stable")[:top]
        for index in zip(*np.unravel_index(order, mean.shape), strict=True):
            at = {dim: int(one[dim].values[i]) for dim, i in zip(dims, index, strict=True)}
            value = f"{mean[index]:+.3f}"
            if np.isfinite(error[index]):
                value += f" ± {error[index]:.3f}"
            rows.append((_name(result, str(site), at), value, str(site)))
    return rows


def _name(result: xr.Dataset, site: str, at: dict[str, int]) -> str:
    place = at.pop("pos", None)
    name = Site(site, **at).label
    if place is None:
        return name
    pairs = {
        (str(a), str(b))
        for a, b in zip(
            result["clean_token"].sel(pos=place).values,
            result["corrupted_token"].sel(pos=place).values,
            strict=True,
        )
    }
    clean, corrupted = (str(result[f"{n}_token"].sel(pos=place).values[0]) for n in _RUNS)
    token = repr(clean) if clean == corrupted else f"{clean!r} → {corrupted!r}"
    return f"{name} at {place} {token}{' …' if len(pairs) > 1 else ''}"


_RUNS = ("clean", "corrupted")
