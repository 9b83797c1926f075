"""Attention patterns of several heads over one text."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mlp_interp.prompts.display import visible
from mlp_interp.views._page import NEGATIVE, POSITIVE, View, as_numbers, as_texts

MAX_TOKENS = 256
MAX_VALUES = 400_000


def attention(
    token_strs: Sequence[str],
    patterns: Any,
    *,
    names: Sequence[str] | None = None,
    caption: str = "",
) -> View:
    """Attention patterns [head, dst, src]: a small picture per head, the chosen one large.

    Args:
        token_strs: The tokens as text, one string each.
        patterns: Attention probabilities or other values from -1 to 1, [head, dst, src].
        names: The heads' labels; by default "head 0", "head 1", ….
        caption: One sentence to put below.

    Returns:
        A view; rows attend, columns are attended to.

    Raises:
        ValueError: If shapes and lengths do not fit, a value is not finite, or the view would be
            too large for a page.

    Example:
        >>> attention(["The", " cat"], [[[1.0, 0.0], [0.3, 0.7]]], names=["L0H1"])
        View(AttentionHeads, 2 tokens)
    """
    texts = as_texts(token_strs, limit=MAX_TOKENS)
    values = as_numbers("patterns", patterns, 3)
    if values.shape[1:] != (len(texts), len(texts)):
        raise ValueError(
            f"patterns must be [head, {len(texts)}, {len(texts)}] for {len(texts)} tokens, "
            f"got shape {values.shape}"
        )
    if not 0 < values.size <= MAX_VALUES:
        raise ValueError(
            f"a view shows up to {MAX_VALUES:,} attention values, got {values.size:,}; "
            f"choose fewer of the {len(values)} heads, or fewer tokens"
        )
    labels = [f"head {i}" for i in range(len(values))] if names is None else list(map(str, names))
    if len(labels) != len(values):
        raise ValueError(f"names must match heads: {len(labels)} names, {len(values)} heads")
    causal = not np.triu(values, 1).any()
    props = {
        "attention": values.tolist(),
        "tokens": [visible(text) if text.strip(" ") else "·" * len(text) for text in texts],
        "attentionHeadNames": labels,
        "maskUpperTri": bool(causal),
        "negativeColor": NEGATIVE,
        "positiveColor": POSITIVE,
    }
    return View("AttentionHeads", props, caption, height=620)
