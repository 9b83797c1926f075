"""Names of heads and neurons on the page: each tells what asks for all about it."""

import re
import shlex
from collections.abc import Mapping

from markupsafe import Markup, escape

__all__ = ["commands", "linked"]

_UNIT = re.compile(r"\bL\d+[HN]\d+")


def linked(text: str) -> Markup:
    """A text, escaped, with every name of a head or neuron as a link; the page's script knows them.

    Example:
        >>> print(linked("L0H0 & more"))
        <a class="unit" href="#more">L0H0</a> &amp; more
    """
    return Markup(_UNIT.sub(r'<a class="unit" href="#more">\g<0></a>', str(escape(text))))


def commands(attrs: Mapping[str, str]) -> dict[str, str]:
    """What shows all about a head and about a neuron, whose name stands for the braces.

    A command where the model can be loaded by name, and Python where it is the user's own.

    Args:
        attrs: What a result says of its model.

    Example:
        >>> commands({"model": "nano", "revision": "main", "processing": "raw"})["neuron"]
        'mlp-interp neuron {} --model nano --processing raw'
    """
    model, processing = attrs["model"], attrs["processing"]
    if model == "memory" or processing not in ("folded", "raw"):
        return {
            "head": 'mlp_interp.heads.roles(model).where(lambda x: x.component == "{}", drop=True)',
            "neuron": 'mlp_interp.neurons.neuron_page(model, "{}", corpus)',
        }
    options = ["--model", model]
    if attrs["revision"] not in ("main", "unknown"):
        options += ["--revision", attrs["revision"]]
    if processing == "raw":
        options += ["--processing", processing]
    ends = shlex.join(options)
    return {"head": f"mlp-interp heads {{}} {ends}", "neuron": f"mlp-interp neuron {{}} {ends}"}
