"""Sphinx configuration. Build with `make docs`; a warning is an error there."""

import os
import sys
from contextlib import ExitStack
from importlib.metadata import version as installed_version

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

project = "mlp_interp"
author = "mlp_interp contributors"
copyright = "2026, mlp_interp contributors"
release = installed_version("mlp-interp")

sys.path.insert(0, os.path.dirname(__file__))  # links.py, warm.py

extensions = [
    "links",
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "**/.ipynb_checkpoints", "jupyter_execute"]
default_role = "py:obj"  # `load_model` in a docstring links to it

# The notebooks and the pages with code cells run in the build, without a network, and the build
# fails if one of them does. What they inherit from here keeps their output fit for a page.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_merge_streams = True
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["TQDM_DISABLE"] = "1"
os.environ["PLOTLY_RENDERER"] = "notebook"  # figures bring plotly.js along
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # tqdm would like widgets

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "imported-members": False}
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False  # "*rest" in an axis string is not emphasis

html_math_renderer = "mathml"
html_theme = "furo"
html_title = f"mlp_interp {release}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_copy_source = False
html_show_sourcelink = False


def mathml(visitor, source, *, display):
    """Write a formula as MathML, which browsers draw by themselves: no script, no network."""
    visitor.body.append(convert(source, display=display))
    raise SkipNode


def plain_returns(app, what, name, obj, options, lines):
    """Keep napoleon from reading "A Dataset of numbers: ..." under Returns as a type."""
    for i, line in enumerate(lines[:-1]):
        if line.strip() == "Returns:":
            text = lines[i + 1].lstrip()
            lines[i + 1] = lines[i + 1].removesuffix(text) + ": " + text


def setup(app):
    """Register `mathml` as what draws formulas, and `plain_returns` before napoleon."""
    if sys.platform == "linux":  # elsewhere a process that has torch cannot be copied
        import warm

        opened = ExitStack()
        opened.enter_context(warm.kernels())
        app.connect("build-finished", lambda app, error: opened.close())
    app.connect("autodoc-process-docstring", plain_returns, priority=400)
    app.add_html_math_renderer(
        "mathml",
        (lambda visitor, node: mathml(visitor, node.astext(), display="inline"), None),
        (lambda visitor, node: mathml(visitor, node.astext(), display="block"), None),
    )
