"""Where a dictionary belongs, from the names that other packages give to places."""

import re
from typing import Any

__all__ = ["place_of"]

# Of TransformerLens, with SAELens; `hook_mlp_in` and `hook_resid_mid` come before the norm, and
# `hook_normalized` before its scale and shift.
_HOOK = re.compile(r"blocks\.(?P<layer>\d+)\.(?P<name>[\w.]+)")
_HOOKS = {
    "ln2.hook_normalized": "mlp_normalized",
    "hook_resid_pre": "resid_pre",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
}
# Of Hugging Face's modules, with sparsify: a module is its output, a block the stream after it.
_MODULE = re.compile(r"(?:[\w.]*\.)?(?:layers|h)\.(?P<layer>\d+)(?:\.(?P<name>\w+))?")
_MODULES = {"mlp": "mlp_out", "attention": "attn_out", "self_attn": "attn_out", "attn": "attn_out"}
# Of dictionary_learning, and of this package.
_NAMED = re.compile(r"(?P<name>resid_pre|resid_post|attn_out|mlp_out)_layer_(?P<layer>\d+)")
_OURS = re.compile(
    r"(?P<layer>\d+)\.(?P<name>mlp_in|mlp_normalized|resid_pre|resid_post|attn_out|attn|mlp_out|mlp)"
)
_SHORT = {"attn": "attn_out", "mlp": "mlp_out"}


def place_of(text: Any) -> tuple[str, int] | None:
    """Name and layer of a place; None of what is none that a dictionary can read or write.

    Example:
        >>> place_of("blocks.3.hook_mlp_out"), place_of("layers.3.mlp"), place_of("layers.3")
        (('mlp_out', 3), ('mlp_out', 3), ('resid_post', 3))
        >>> place_of("blocks.3.ln2.hook_normalized"), place_of("3.mlp_in")
        (('mlp_normalized', 3), ('mlp_in', 3))
    """
    if not isinstance(text, str):
        return None
    if match := _OURS.fullmatch(text):
        return _SHORT.get(match["name"], match["name"]), int(match["layer"])
    if match := _HOOK.fullmatch(text):
        name = _HOOKS.get(match["name"])
    elif match := _MODULE.fullmatch(text):
        name = _MODULES.get(match["name"]) if match["name"] else "resid_post"
    elif match := _NAMED.search(text):
        name = match["name"]
    else:
        return None
    return None if name is None else (name, int(match["layer"]))
