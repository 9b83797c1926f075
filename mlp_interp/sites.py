"""Names of places in a model, and how researchers write them.

A `Site` is a TransformerLens activation name, a layer, and optionally a head or a neuron. The same
object names a component of the residual stream (``3.mlp``, ``L3H5``), the hook at which it can be
edited, and the row of a result. This module and `mlp_interp.models` are the only ones that spell
TransformerLens hook names.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches
from numbers import Integral
from operator import eq
from typing import Any, Literal, SupportsInt

import numpy as np

__all__ = [
    "ACTIVATIONS",
    "EDITED",
    "FAMILIES",
    "GATED",
    "HEADS",
    "LATENTS",
    "NEURONS",
    "STREAM",
    "Family",
    "Kind",
    "Site",
    "SiteLike",
    "component_coords",
    "did_you_mean",
    "head_grid_coords",
    "nearest_like",
    "neuron_of",
    "site_of",
]

STREAM = ("resid_pre", "resid_post", "attn_out", "mlp_out")
"""Activations of the stream's width, ``[batch, pos, d_model]``."""

HEADS = ("z", "q", "k", "v")
"""Activations with a vector for each head, ``[batch, pos, head, d_head]``."""

NEURONS = ("pre", "post")
"""Activations with a number for each neuron, ``[batch, pos, neuron]``."""

GATED = ("pre_linear",)
"""The same that only gated MLPs have: what the activation of the gate, `pre`, is multiplied by."""

Family = Literal["stream", "head", "neuron"]

FAMILIES: dict[Family, tuple[str, ...]] = {
    "stream": STREAM,
    "head": (*HEADS, "pattern"),
    "neuron": (*NEURONS, *GATED),
}
"""Sites by what they hold at a layer and position: one vector, one a head, or one number a neuron.
Sites of one family share the axes of their results."""

ACTIVATIONS = tuple("resid_pre q k v pattern z attn_out pre post mlp_out resid_post".split())
"""What every block computes, in that order; the pattern is ``[batch, head, pos, source]``."""

EDITED = ("edit:resid_pre", "edit:resid_post")
"""What edits of the stream write: they have a place in it, but no hook."""

LATENTS = ("latents", "error", "b_dec", "skip")
"""What a dictionary makes of what an MLP or attention writes: latents, what none of them explains,
its bias, and what passes by them. They have a place in the stream, but no hook."""

Kind = Literal["embed", "pos_embed", "attn", "mlp", "head", "neuron", "bias", "edit"]

# TransformerLens short name -> hook name. Parameters (biases) and edits have a place in the stream
# but no hook.
_HOOKS = {
    "embed": "hook_embed",
    "pos_embed": "hook_pos_embed",
    **{name: f"blocks.{{layer}}.hook_{name}" for name in STREAM},
    **{name: f"blocks.{{layer}}.attn.hook_{name}" for name in (*HEADS, "pattern")},
    **{name: f"blocks.{{layer}}.mlp.hook_{name}" for name in (*NEURONS, *GATED)},
}
_AXES = {
    **dict.fromkeys(("embed", "pos_embed", *STREAM), ("batch", "pos", "d_model")),
    **dict.fromkeys(HEADS, ("batch", "pos", "head", "d_head")),
    **dict.fromkeys((*NEURONS, *GATED), ("batch", "pos", "neuron")),
    "pattern": ("batch", "head", "pos", "source"),
}
_PARAMETERS = ("b_O", "b_out", "bias", *EDITED, *LATENTS)
_GLOBAL = ("embed", "pos_embed", "bias")
_KNOWN = (*_HOOKS, *_PARAMETERS)
_WITH = {"head": (*HEADS, "pattern"), "neuron": (*NEURONS, *GATED, "latents")}
_SUBUPDATE = {"attn_out": "attn", "mlp_out": "mlp"}
_BY_SUBUPDATE = {short: name for name, short in _SUBUPDATE.items()}
_KINDS = {
    "embed": "embed",
    "pos_embed": "pos_embed",
    "attn_out": "attn",
    "mlp_out": "mlp",
    "z": "head",
    "post": "neuron",
    "b_O": "bias",
    "b_out": "bias",
    "bias": "bias",
    **dict.fromkeys(EDITED, "edit"),
    "latents": "latent",
    "b_dec": "bias",
}
# What other people call them.
_ALIASES = {
    **{"mlp": "mlp_out", "attn": "attn_out", "resid": "resid_pre", "attn_scores": "pattern"},
    **dict.fromkeys(("head", "heads", "result"), "z"),
    **dict.fromkeys(("neuron", "neurons", "mlp_post"), "post"),
    "mlp_pre": "pre",
}
_EXAMPLES = {"attn": "3.attn", "mlp": "3.mlp", "head": "L3H5", "neuron": "L3N669", "bias": "3.b_O"}
_LABEL = re.compile(r"L(?P<layer>[0-9]+)(?P<unit>[HNF])(?P<index>[0-9]+)(?:\.(?P<name>\w+))?")
_BLOCK = re.compile(r"blocks\.(?P<layer>[0-9]+)\.(?P<rest>.+)")
_NAMES = {spelling: name for name, spelling in _HOOKS.items()}
_LAYERED = re.compile(r"(?P<layer>[0-9]+)\.(?P<name>\w+)")


@dataclass(frozen=True, slots=True)
class Site:
    """A place in the model: an activation name, a layer, and perhaps a head or a neuron.

    Args:
        name: TransformerLens' short name (``resid_pre``, ``attn_out``, ``mlp_out``, ``z``, ``q``,
            ``k``, ``v``, ``pattern``, ``pre``, ``pre_linear``, ``post``, ``embed``, ``pos_embed``),
            a bias that is written to the stream (``b_O``, ``b_out``) or to the logits (``bias``),
            what edits of the stream write (one of `EDITED`), or a dictionary's (one of `LATENTS`).
        layer: Block index; None for the embeddings and the readout bias.
        head: Head index, for `HEADS` and ``pattern`` only.
        neuron: Neuron index, for `NEURONS` and `GATED` only; of ``latents``, which latent.

    Raises:
        ValueError: The name is unknown, or the layer, head or neuron does not go with it.

    Example:
        >>> Site("mlp_out", 3).label, Site("z", 3, head=5).label, Site("post", 3, neuron=669).label
        ('3.mlp', 'L3H5', 'L3N669')
        >>> Site.parse("L3H5").hook_name
        'blocks.3.attn.hook_z'
    """

    name: str
    layer: int | None = None
    head: int | None = None
    neuron: int | None = None

    def __post_init__(self) -> None:
        if self.name not in _KNOWN:
            near = did_you_mean(self.name, _KNOWN)
            raise ValueError(
                f"name={self.name!r} is not a site{near}; wanted one of {', '.join(_KNOWN)}"
            )
        if (self.layer is None) != (self.name in _GLOBAL):
            wanted = "no layer" if self.name in _GLOBAL else "a layer"
            raise ValueError(f"layer={self.layer!r}: site {self.name!r} wants {wanted}")
        for unit, names in _WITH.items():
            index = getattr(self, unit)
            if index is not None and self.name not in names:
                raise ValueError(f"{unit}={index!r}: only {', '.join(names)} have {unit}s")
        for what in ("layer", "head", "neuron"):
            index = getattr(self, what)
            if type(index) is not int or index < 0:
                _check_index(what, index)

    @property
    def hook_name(self) -> str:
        """The full TransformerLens hook name.

        Raises:
            ValueError: The site is a parameter or an edit, which no hook passes through.
        """
        if self.name in _PARAMETERS:
            what = "an edit" if self.name in EDITED else "a parameter"
            raise ValueError(f"site {self.label!r} is {what}; no hook passes through it")
        return _HOOKS[self.name].format(layer=self.layer)

    @classmethod
    def of_hook(cls, hook_name: str) -> "Site":
        """The site of a full hook name: the inverse of `hook_name`.

        Raises:
            ValueError: No site has this hook.

        Example:
            >>> Site.of_hook("blocks.3.attn.hook_z").label
            '3.z'
        """
        match = _BLOCK.match(hook_name)
        spelling = f"blocks.{{layer}}.{match['rest']}" if match else hook_name
        if spelling not in _NAMES:
            raise ValueError(f"hook name {hook_name!r} is that of no site")
        return cls(_NAMES[spelling], int(match["layer"]) if match else None)

    @property
    def label(self) -> str:
        """How researchers write it: ``embed``, ``3.attn``, ``L3H5``, ``3.mlp``, ``L3N669``."""
        if self.name in _GLOBAL:
            return self.name
        if self.head is not None:
            return f"L{self.layer}H{self.head}" + ("" if self.name == "z" else f".{self.name}")
        if self.name == "latents" and self.neuron is not None:
            return f"L{self.layer}F{self.neuron}"
        if self.neuron is not None:
            return f"L{self.layer}N{self.neuron}" + ("" if self.name == "post" else f".{self.name}")
        if self.name in EDITED:
            return f"edit:{self.layer}.{self.name.removeprefix('edit:')}"
        return f"{self.layer}.{_SUBUPDATE.get(self.name, self.name)}"

    @property
    def whole(self) -> "Site":
        """The activation that it is part of: the same without head and neuron."""
        return Site(self.name, self.layer)

    @property
    def axes(self) -> tuple[str, ...]:
        """Axis words of its whole activation.

        Raises:
            ValueError: The site is a parameter.

        Example:
            >>> Site("z", 3, head=5).axes
            ('batch', 'pos', 'head', 'd_head')
        """
        if self.name in _PARAMETERS:
            raise ValueError(f"site {self.label!r} is a parameter; no activation is there")
        return _AXES[self.name]

    @property
    def unit(self) -> int:
        """The head or neuron.

        Raises:
            ValueError: The site names neither.
        """
        unit = self.neuron if self.head is None else self.head
        if unit is None:
            raise ValueError(f"site {self.label!r} names neither a head nor a neuron")
        return unit

    @property
    def kind(self) -> str:
        """What it is in the stream: embed, pos_embed, attn, mlp, head, neuron, bias; else name."""
        return _KINDS.get(self.name, self.name)

    @classmethod
    def parse(cls, label: str) -> "Site":
        """Read a label back: the inverse of `label`.

        Raises:
            ValueError: The text is not a label; the nearest one is named.
        """
        return _parse(label, "label")


SiteLike = Site | str | Iterable[SupportsInt]
"""How a site is named: by its label, itself, or, a head or a neuron, as ``(layer, index)``."""


def site_of(
    given: SiteLike,
    *,
    kind: Kind | None = None,
    argument: str = "site",
    sizes: tuple[int, int] | None = None,
    words: Sequence[str] = (),
) -> Site:
    """The site that somebody named, in any of the ways in which one is named.

    Args:
        given: A label (``"L3N669"``, ``"L3H5"``, ``"3.mlp"``), a hook name
            (``"blocks.3.hook_mlp_out"``), a `Site`, or, where `kind` is a head or a neuron, the
            pair ``(layer, index)``.
        kind: What it must be; None for any site.
        argument: What the caller calls it, for errors.
        sizes: How many layers there are, and heads or neurons in each: negatives in pairs count
            from these ends. None refuses negatives, as where no model is known.
        words: What may stand in place of a site and was not given, for errors.

    Raises:
        ValueError: It is not a site, or one of another kind.

    Example:
        >>> site_of("3.mlp"), site_of((3, 669), kind="neuron").label
        (Site(name='mlp_out', layer=3, head=None, neuron=None), 'L3N669')
        >>> site_of((-1, -3), kind="head", sizes=(4, 6)).label
        'L3H3'
        >>> site_of("L3H5", kind="neuron", argument="neuron")
        Traceback (most recent call last):
        ValueError: neuron='L3H5' is no neuron; wanted e.g. 'L3N669'
    """
    if isinstance(given, str):
        site = _of_hook(given) or _parse(given, argument, words, kind)
    elif isinstance(given, Site):
        site = given
    else:
        site = _of_pair(given, kind, argument, sizes)
    all_units = kind in ("head", "neuron") and site == site.whole
    if kind is not None and (site.kind != kind or all_units):
        wanted = _EXAMPLES.get(kind, kind)
        raise ValueError(f"{argument}={site.label!r} is no {kind}; wanted e.g. {wanted!r}")
    return site


def neuron_of(given: SiteLike, *, argument: str = "neuron") -> Site:
    """The neuron that somebody named, where it may be read on either side of its nonlinearity.

    Args:
        given: As of `site_of`; ``"L3N669"`` and pairs are the activation, ``"L3N669.pre"`` is what
            it is computed from.
        argument: What the caller calls it, for errors.

    Raises:
        ValueError: It is no neuron.

    Example:
        >>> neuron_of("L3N669.pre").name, neuron_of((3, 669)).name
        ('pre', 'post')
    """
    kind = None if isinstance(given, str | Site) else "neuron"
    site = site_of(given, kind=kind, argument=argument)
    if site.neuron is None:
        raise ValueError(f"{argument}={site.label!r}; wanted a neuron, e.g. 'L3N669'")
    return site


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """For an error: the known name nearest to an unknown one, in brackets; empty if none is near.

    Names of other people and other packages are known, too.

    Example:
        >>> did_you_mean("mlp_uot", ["attn_out", "mlp_out"])
        " (did you mean 'mlp_out'?)"
    """
    if "resid_mid" in given:
        return (
            " (parallel blocks have no resid_mid, so it is no site: 'resid_pre' and 'attn_out' are)"
        )
    by_case = {name.lower(): name for name in known}
    bare = given.lower().removeprefix("hook_")
    alias = _ALIASES.get(bare)
    near = [alias] if alias in by_case else get_close_matches(bare, by_case)
    if not near:
        return ""
    best = max(near, key=lambda one: _likeness(one, bare))
    return f" (did you mean {by_case[best]!r}?)"


def nearest_like(given: Any, examples: Iterable[str]) -> str:
    """`did_you_mean` among labels that are made as some examples are, with the numbers given.

    Example:
        >>> nearest_like("L3H5.VO", ["embed", "L1H3.OV", "L1H3.QK"])
        " (did you mean 'L3H5.OV'?)"
    """
    if not isinstance(given, str):
        return ""
    numbers = re.findall("[0-9]+", given)

    def renumbered(example: str) -> str:
        left = iter(numbers)
        return re.sub("[0-9]+", lambda own: next(left, own[0]), example)

    return did_you_mean(given, map(renumbered, examples))


def _likeness(known: str, given: str) -> tuple[float, int]:
    """How like two names are; of those equally like, equal letters in equal places tell."""
    return SequenceMatcher(None, known, given).ratio(), sum(map(eq, known, given))


def _of_hook(text: str) -> Site | None:
    """The site of a hook name; None of what is none, which may be a label."""
    try:
        return Site.of_hook(text) if "hook_" in text else None
    except ValueError:
        return None


def _parse(label: str, argument: str, words: Sequence[str] = (), kind: str | None = None) -> Site:
    if label in _GLOBAL:
        return Site(label)
    if match := _LABEL.fullmatch(label):
        if match["unit"] == "F":
            return Site("latents", int(match["layer"]), neuron=int(match["index"]))
        head = match["unit"] == "H"
        name, index = match["name"] or ("z" if head else "post"), int(match["index"])
        if name in _WITH["head" if head else "neuron"]:
            return Site(name, int(match["layer"]), **{"head" if head else "neuron": index})
    if match := _LAYERED.fullmatch(label.removeprefix("edit:")):
        name = _BY_SUBUPDATE.get(match["name"], match["name"])
        name = f"edit:{name}" if label.startswith("edit:") else name
        if name in _KNOWN and name not in _GLOBAL:
            return Site(name, int(match["layer"]))
    words = [word for word in words if word != label]  # one that stands where it may not
    example = _EXAMPLES.get(kind or "")
    near = did_you_mean(label, words)
    near = near or (nearest_like(label, [example]) if example else _nearest_label(label))
    wanted = f"{', '.join(map(repr, words))}, or a label, " if words else ""
    raise ValueError(
        f"{argument}={label!r} is not a component label{near}; wanted {wanted}e.g. "
        + (repr(example) if example else "'embed', '3.attn', '3.mlp', 'L3H5' or 'L3N669'")
    )


def _nearest_label(text: str) -> str:
    """`did_you_mean` among the labels that have the text's numbers, or the site of a hook name."""
    layer, unit, *_ = [*map(int, re.findall("[0-9]+", text)[:2]), 0, 0]
    sites = [Site(name, None if name in _GLOBAL else layer) for name in _KNOWN]
    labels = {site.hook_name: site.label for site in sites if site.name in _HOOKS}
    labels |= {site.name: site.label for site in sites}
    sites += [Site(name, layer, head=unit) for name in _WITH["head"]]
    sites += [Site(name, layer, neuron=unit) for name in _WITH["neuron"]]
    units = {"z": Site("z", layer, head=unit), "post": Site("post", layer, neuron=unit)}
    labels |= {
        text: units[name].label if name in units else labels[name]
        for text, name in _ALIASES.items()
    }
    if (bare := text.removeprefix("hook_")) in labels:
        return f" (did you mean {labels[bare]!r}?)"
    return did_you_mean(text, [site.label for site in sites])


def _of_pair(
    given: Any, kind: str | None, argument: str, sizes: tuple[int, int] | None = None
) -> Site:
    pair = _plain(given)
    pair = [_plain(i) for i in pair] if isinstance(pair, Sequence) else []
    if kind not in ("head", "neuron"):
        raise ValueError(
            f"{argument}={given!r}; wanted a label such as '3.mlp', 'L3H5' or 'L3N669', or a Site"
        )
    lowest = (0, 0) if sizes is None else tuple(-size for size in sizes)
    if len(pair) != 2 or not all(map(_is_index, pair, lowest)):
        counted = "counted from 0" if sizes is None else f"from {lowest}"
        raise ValueError(
            f"{argument}={given!r}; wanted a label such as {_EXAMPLES[kind]!r}, a Site or the pair "
            f"(layer, {kind}), {counted}"
        )
    layer, index = (int(i) - least * (i < 0) for i, least in zip(pair, lowest, strict=True))
    return Site("z", layer, head=index) if kind == "head" else Site("post", layer, neuron=index)


def _plain(given: Any) -> Any:
    """Numbers and lists of Python, where numpy or torch holds them."""
    return given.tolist() if hasattr(given, "tolist") else given


def _is_index(index: Any, least: int = 0) -> bool:
    return isinstance(index, Integral) and not isinstance(index, bool) and int(index) >= least


def _check_index(what: str, index: Any) -> None:
    if index is None or _is_index(index):
        return
    if isinstance(index, Integral) and not isinstance(index, bool):
        raise ValueError(f"{what}={index}: sites are counted from 0, not from the end")
    raise ValueError(f"{what}={index!r}; wanted an integer from 0")


def component_coords(sites: Sequence[Site]) -> dict[str, tuple[str, np.ndarray]]:
    """xarray coordinates of a ``component`` dimension: label, kind, layer, head, neuron.

    Integers are -1 where a component has no such index, so that the coordinates stay integers and
    survive netCDF.
    """

    def index(values: Iterable[int | None]) -> tuple[str, np.ndarray]:
        return "component", np.array([-1 if v is None else v for v in values], dtype=np.int64)

    return {
        "component": ("component", np.array([s.label for s in sites], dtype=object).astype(str)),
        "kind": ("component", np.array([s.kind for s in sites], dtype=object).astype(str)),
        "layer": index(s.layer for s in sites),
        "head": index(s.head for s in sites),
        "neuron": index(s.neuron for s in sites),
    }


def head_grid_coords(
    layers: Sequence[int], heads: Sequence[int]
) -> dict[str, tuple[tuple[str, str], np.ndarray]]:
    """A coordinate that names each cell of a layer x head grid as components are named.

    Example:
        >>> head_grid_coords([0], [0, 1])["component"][1].tolist()
        [['L0H0', 'L0H1']]
    """
    labels = [[Site("z", layer, head=head).label for head in heads] for layer in layers]
    return {"component": (("layer", "head"), np.array(labels, dtype=object).astype(str))}
