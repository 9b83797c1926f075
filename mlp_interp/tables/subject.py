"""What a result is about: the quantity that its table ranks, and what belongs beside it."""

from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr

from mlp_interp.results import check_result
from mlp_interp.sites import did_you_mean

__all__ = ["DRAWS", "as_entries", "beside", "chosen", "with_entries"]

DRAWS = ("prompt", "sequence", "sample", "draw")
"""Dimensions along which entries are draws of one quantity, and are averaged."""

# The quantities of most analyses: one of these, where a result has it.
_MAIN = (
    *("kl_total", "kl_mean", "perplexity", "normalized", "average_indirect", "estimate"),
    *("fraction", "value_norm_folded", "promoted_logit", "norm", "kl", "fluency"),
)

# The same by analysis, where names alone do not tell. All else is about what it lists first.
_OF = {
    "lens": "kl_output",
    "lens over a corpus": "kl_output",
    "components as tokens": "kl_added",
    "repetition": "probability",
    "roles of heads": "copying_z",
    "positions": "score",
    "composition of heads": "z",
    "match of heads": "match",
    "kinds of heads": "score",
    "induction circuits": "compose_z",
    "parts of attention scores": "parts",
    "shares of what is read": "share",
    "table": "best_value",
    "virtual_weights": "best_value",
    "virtual weights of latents": "best_value",
    "skip_trigrams": "effect",
    "singular": "singular_value",
    "subspaces": "overlap",
    "bigrams": "loss",
    "memories": "agreement",
    "composition": "compositional",
    "clusters": "tightness",
    "update_events": "total",
    "update_shares": "needed",
    "pursue": "coefficient",
    "projection": "projection",
    "activations in texts": "activation",
    "evidence for a neuron": "auroc",
    "absorption of kinds of text": "full",
    "probe": "mean",
    "sparse probe": "mean",
    "each unit": "d",
    "compared directions": "moved",
    "universal neurons": "excess",
    "spectrum": "participation",
    "underdetermined": "tokens",
    "modes": "mode_z",
    "associations": "agreement",
    "score_rewrite": "success_rate",
}

_MEASURED = {
    "Run": "attribute_logits",
    "ActivationCache": "attribute_logits",
    "Residual": "its along",
    "Lens": "lens.read",
    "Dictionary": "latents.evaluate",
    "Rewrite": "rewrites.score_rewrite",
    "Labelled": "probes.probe",
    "Contrast": "patch",
}

# Each of their prompts is asked about by itself.
_OF_TEXTS = ("self-scoring", "contrast sets of the model's own")

# What else of a result is shown beside what is ranked, where it has that; texts along a further
# dimension (the tokens of an entry) are joined.
_BESIDE: Mapping[str, Sequence[str]] = {
    "kl_total": ("kl_direct", "kl_later"),
    "kl_mean": ("delta_loss_mean", "top1_change_rate"),
    "perplexity": ("delta_loss",),
    "normalized": ("raw",),
    "fraction": ("mean", "activation_volume"),
    "value_norm_folded": ("cosine", "closest_embed_text", "closest_unembed_text"),
    "promoted_logit": ("promoted_text",),
    "kl_output": ("kl_output_chance", "entropy", "agrees", "top_text"),
    "kl_added": ("logit_difference", "promoted_text"),
    "copying_z": ("copying", "previous", "duplicate"),
    "score": ("expected", "control_score", "kept", "text"),
    "z": ("score",),
    "match": ("null",),
    "compose_z": ("previous", "match", "score", "strength"),
    "best_value": ("best_row_text", "best_column_text"),
    "effect": ("null", "null_sd", "destination_text", "out_text"),
    "singular_value": ("share", "group", "text"),
    "overlap": ("overlap_chance",),
    "agreement": ("agreement_chance", "agreement_p", "inflation"),
    "compositional": ("compositional_chance",),
    "tightness": ("tightness_null", "tightness_null_sd", "stability", "stability_null"),
    "total": ("promoted", "eliminated", "norm"),
    "needed": ("explained", "positive_share"),
    "coefficient": ("cosine", "explained", "explained_chance"),
    "suppressed_logit": ("suppressed_text",),
    "projection": ("projection_chance",),
    "activation": ("text", "continuation"),
    "full": ("full_null", "partial", "partial_null", "f1"),
    "mean": ("selectivity",),
    "d": ("f",),
    "moved": ("left", "accuracy"),
    "lower": ("upper", "reachable", "token_text"),
    "cosine": ("lead", "context"),
    "share": ("needed", "law"),
    "participation": ("participation_unbiased", "k90", "k99"),
    "mode_z": ("mode_size", "mode_tokens"),
    "correlation": ("rate", "theta", "weight_z"),
    "auroc": ("q_value", "p_family"),
    "faithfulness": ("edges",),
    "probability": ("probability_chance", "token_text"),
}
_WITH_ALL = ("{}_chance", "{}_null", "{}_effect", "cost_kl")


def chosen(result: xr.DataArray | xr.Dataset, value: str | None) -> xr.DataArray:
    """The variable that is ranked: the one named, or what the result is about.

    That is, for None: what its analysis is known for; else the first variable of its own that holds
    measured numbers for several entries; else the first that holds numbers.

    Raises:
        ValueError: It is no result, there is no variable of that name, or it holds no numbers.
    """
    _check(result)
    if isinstance(result, xr.DataArray):
        if value is not None and value != result.name:
            raise ValueError(
                f"value={value!r} of a DataArray, {result.name!r}; wanted None, or a Dataset"
            )
        return result
    numbers = [str(name) for name, held in result.items() if _is_number(held)]
    if value is None:
        value = _subject(result, numbers)
    if value is None:
        raise ValueError(f"value=None of a result with {numbers}; wanted one of them")
    if value not in numbers:
        near = did_you_mean(str(value), numbers)
        raise ValueError(f"value={value!r}{near}; wanted one of {numbers}")
    return result[value].rename(value)


def as_entries(result: xr.DataArray | xr.Dataset) -> xr.DataArray | xr.Dataset:
    """The same, with texts as entries where each is asked about and not drawn from many."""
    _check(result)
    if isinstance(result, xr.Dataset) and result.attrs.get("analysis") in _OF_TEXTS:
        return result.rename_dims(prompt="entry").drop_vars("prompt", errors="ignore")
    return result


def with_entries(array: xr.DataArray) -> bool:
    """Whether it holds numbers of several things, not one number or draws of one."""
    return not {*array.dims} <= {*DRAWS}


def beside(result: xr.DataArray | xr.Dataset, main: str) -> list[str]:
    """Names of what is shown beside what is ranked."""
    if isinstance(result, xr.DataArray):
        return []
    names = _BESIDE.get(main, [name.format(main) for name in _WITH_ALL])
    return [name for name in names if name in result.data_vars]


def _check(given: Any) -> None:
    """Refuse what is no result, and name the call that makes one of it."""
    kind = type(given).__name__
    hint = f"; {_MEASURED[kind]} measures a {kind}" if kind in _MEASURED else ""
    check_result("result", given, hint=hint)


def _subject(result: xr.Dataset, numbers: Sequence[str]) -> str | None:
    analysis = str(result.attrs.get("analysis"))
    if (known := _OF.get(analysis)) in numbers:
        return known
    main = next((name for name in _MAIN if name in numbers), None)
    if main is not None or analysis == "attribution patching":  # each site's is as good as the next
        return main
    measured = [name for name in numbers if result[name].dtype.kind == "f"]
    listed = [name for name in measured if with_entries(result[name])]
    return next(iter([*listed, *measured, *numbers]), None)


def _is_number(held: xr.DataArray) -> bool:
    return held.dtype.kind in "fiu"
