"""What a model says to every prompt that a rewrite was scored on, before it and after."""

from html import escape

import numpy as np
import xarray as xr

from mlp_interp.views._compare import Comparison

__all__ = ["rewrite"]

_ASKS = {
    "efficacy": "the fact",
    "paraphrase": "the same in other words",
    "neighbourhood": "a neighbour",
    "same_subject": "the same subject",
    "reverse": "the subject",
}
_WANTED = ("text", "answer", "kind_of", "top_token", "top1", "log_probability")


def rewrite(scores: xr.Dataset, *, caption: str = "") -> Comparison:
    """The likeliest token after each prompt before and after a rewrite, where it is wrong marked.

    Below each stands the probability of what is wanted there: the new fact after the rewritten
    prompt and paraphrases, what was right before after all others.

    Args:
        scores: What `rewrites.score_rewrite` returns.
        caption: One sentence to put below.

    Returns:
        A table with a row for each prompt, kind by kind.

    Raises:
        ValueError: It is no such Dataset.

    Example:
        >>> from mlp_interp import load_corpus, load_model, rewrites
        >>> model = load_model("nano")
        >>> text = load_corpus("nano", model, sequences=16)
        >>> keys = rewrites.associations(model, text, layers=[0])
        >>> fact = "France", "The capital of France is", " Rome"
        >>> found = rewrites.rewrite(model, *fact, layer=0, keys=keys)
        >>> rewrite(rewrites.score_rewrite(model, found, same_subject=["In France, people speak"]))
        Comparison(2 pairs of texts)
    """
    if not isinstance(scores, xr.Dataset) or any(n not in scores.variables for n in _WANTED):
        raise ValueError(
            f"scores={type(scores).__name__}; wanted the Dataset of rewrites.score_rewrite"
        )
    rows = "".join(_row(scores.isel(prompt=n)) for n in range(scores.sizes["prompt"]))
    head = "<tr><th>prompt</th><th>asks for</th><th>wanted</th><th>before</th><th>after</th></tr>"
    said = f"{scores.attrs.get('rewrite', '')}. {caption}".strip(" .")
    below = escape(f"{said}. Marked is what is not wanted; percentages are of what is wanted.")
    body = f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>"
    return Comparison(f"{body}<figcaption>{below}</figcaption>", scores.sizes["prompt"])


def _row(one: xr.Dataset) -> str:
    cells = [f'<td class="mlp-prompt">{escape(one.text.item())}</td>']
    cells.append(f"<td>{escape(_ASKS[one.kind_of.item()])}</td>")
    cells.append(f"<td>{escape(one.answer.item().strip())}</td>")
    for way in ("before", "after"):
        here = one.sel(way=way)
        token = escape(here.top_token.item().strip() or "␣")
        token = token if here.top1.item() else f"<mark>{token}</mark>"
        likely = 100 * float(np.exp(here.log_probability))
        cells.append(f'<td class="mlp-plain">{token}<small>{likely:.1f}%</small></td>')
    return f"<tr>{''.join(cells)}</tr>"
