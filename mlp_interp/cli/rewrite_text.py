"""What `mlp-interp rewrite` prints."""

import numpy as np
import xarray as xr

from mlp_interp.cli.columns import columns
from mlp_interp.prompts.display import visible
from mlp_interp.views.numbers import number, percent

__all__ = ["felt_lines", "prompt_lines", "score_lines"]


def score_lines(scores: xr.Dataset, keys: xr.Dataset) -> list[str]:
    """A line for each kind of prompt: success and top-1, before and after.

    Args:
        scores: What `rewrites.score_rewrite` gave.
        keys: What `rewrites.associations` gave of the layer.
    """
    enough = number(keys["inflation"].values[0], keys["inflation_se"].values[0])
    lines = [f"{scores.attrs['rewrite']} of {scores.attrs['model']}"]
    lines += [f"keys of {keys.attrs['tokens']} tokens; their inflation is {enough}, at best 1"]
    rows = [("prompts", "", "likelier than its rival", "likeliest of all")]
    for kind in scores["kind"].values:
        one = scores.sel(kind=kind)
        count = int((scores["kind_of"] == kind).sum())
        success, top1 = (
            " → ".join(percent(one[name].sel(way=way)) for way in ("before", "after"))
            for name in ("success_rate", "top1_rate")
        )
        rows.append((str(kind).replace("_", " "), str(count), success, top1))
    return [visible(line) for line in [*lines, *columns(rows, str.ljust)]]


def prompt_lines(scores: xr.Dataset) -> list[str]:
    """What the model says after each prompt, before and after.

    Args:
        scores: What `rewrites.score_rewrite` gave.
    """
    rows = [("what the model says", "before", "after")]
    said = scores["top_token"].transpose("prompt", "way").values
    for text, (before, after) in zip(scores["text"].values, said, strict=True):
        rows.append((str(text), repr(str(before)), repr(str(after))))
    return [visible(line) for line in columns(rows, str.ljust)]


def felt_lines(felt: xr.Dataset, named: int = 6) -> list[str]:
    """How much other text feels it, and the tokens whose prediction moves most.

    Args:
        felt: What `rewrites.footprint` gave, of other text than the keys'.
        named: How many tokens.
    """
    kl, loss = (
        number(felt[f"mean_{name}"], felt[f"mean_{name}_se"]) for name in ("kl", "delta_loss")
    )
    rows = felt.sizes["sequence"]
    values, tokens = felt["kl"].values.ravel(), felt["token"].values.ravel()
    most = [at for at in np.argsort(-np.nan_to_num(values, nan=-1.0))[:named] if values[at] > 0]
    places = ", ".join(f"{str(tokens[at])!r} {values[at]:.2g}" for at in most)
    return [
        f"other text ({rows} sequences, not the keys'): KL {kl} and Δloss {loss} nats per token",
        visible(f"most at: {places} nats"),
    ]
