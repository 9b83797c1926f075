"""Names of functions in running text lead to their API page, and arXiv ids to the paper.

Guides write ``mi.patch`` as plain code, so that they read the same on any page that shows Markdown.
"""

import importlib
import re
from collections import defaultdict

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform

import mlp_interp

CALLABLES = ("function", "class", "exception", "method", "classmethod", "staticmethod")
# A name, with `mi.` or not, and perhaps the arguments of a call: `mi.plots.heads(shares)`.
NAME = re.compile(r"(mi\.|mlp_interp\.)?([A-Za-z_]\w*(?:\.\w+)*)(\(.*\))?", re.DOTALL)
PAPER = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
OUTSIDE = (nodes.reference, nodes.literal_block, nodes.raw)


class LinkNames(SphinxPostTransform):
    """Code that names something of the API becomes a link to it."""

    default_priority = 15  # after references are resolved

    def run(self, **_):
        """Turn every literal that names one documented object into a link."""
        domain = self.env.get_domain("py")
        by_last = last_names(domain)
        for literal in [*self.document.findall(nodes.literal)]:
            name = documented(literal.astext(), by_last)
            if name is None or within(literal, OUTSIDE):
                continue
            entry = domain.objects[name]
            target = self.app.builder.get_relative_uri(self.env.docname, entry.docname)
            link = nodes.reference("", "", internal=True, refuri=f"{target}#{entry.node_id}")
            link["reftitle"] = name
            literal.replace_self(link)
            link += literal


class LinkPapers(SphinxPostTransform):
    """``arXiv:2202.05262`` becomes a link to the paper."""

    default_priority = 16

    def run(self, **_):
        """Split every text that has such an id."""
        for text in [*self.document.findall(nodes.Text)]:
            parts = PAPER.split(text.astext())
            if len(parts) == 1 or within(text, (*OUTSIDE, nodes.literal)):
                continue
            made = [nodes.Text(parts[0])]
            for paper, rest in zip(parts[1::2], parts[2::2], strict=True):
                uri = f"https://arxiv.org/abs/{paper}"
                made += [nodes.reference("", f"arXiv:{paper}", refuri=uri), nodes.Text(rest)]
            text.parent.replace(text, made)


def within(node, kinds):
    """Whether a node lies in one of some kinds."""
    while node is not None:
        if isinstance(node, kinds):
            return True
        node = node.parent
    return False


def last_names(domain):
    """Documented names of what can be called, by their last part."""
    found = defaultdict(list)
    for name, entry in domain.objects.items():
        if entry.objtype in CALLABLES and not entry.aliased:
            found[name.rpartition(".")[2]].append(name)
    return found


def documented(code, by_last):
    """The one documented name that code like ``mi.patch(...)`` is about; None where there is none.

    A bare word, ``patch``, may be an argument or plain English: it counts where it looks like a
    name (``mean_difference``, ``Edit``) or is called.
    """
    match = NAME.fullmatch(code)
    if match is None:
        return None
    prefix, path, call = match.groups()
    bare = not prefix and "." not in path and not call
    if bare and path.islower() and "_" not in path:
        return None
    names = by_last.get(path.rpartition(".")[2], [])
    same = [name for name in names if f".{name}".endswith(f".{path}")]
    meant = reached(mlp_interp, path)
    if meant is not None:
        same = [name for name in names if found(name) == meant]
    return same[0] if len(same) == 1 else None


def reached(start, path):
    """What a dotted path leads to from an object; None where it leads nowhere."""
    for part in path.split("."):
        start = getattr(start, part, None)
    return start


def found(name):
    """The object of a full name."""
    module, _, rest = name.rpartition(".")
    while module:
        try:
            return reached(importlib.import_module(module), rest)
        except ImportError:
            module, _, last = module.rpartition(".")
            rest = f"{last}.{rest}"
    return None


def setup(app):
    """Register both."""
    app.add_post_transform(LinkNames)
    app.add_post_transform(LinkPapers)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
