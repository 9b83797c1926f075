"""Names of places in a model, and how researchers write them.

A `Site` is a TransformerLens activation name, a layer, and optionally a head or a neuron. The same
object names a component of the residual stream (``3.mlp``, ``L3H5``), the hook at which it can be
edited, and the row of a result. This module and `mlp_interp.models` are the only ones that spell
TransformerLens hook names.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Site", "component_coords"]

# TransformerLens short name -> hook name. Parameters (biases) have a place in the residual stream
# but no hook.
_HOOKS = {
    "embed": "hook_embed",
    "pos_embed": "hook_pos_embed",
    "resid_pre": "blocks.{layer}.hook_resid_pre",
    "resid_post": "blocks.{layer}.hook_resid_post",
    "attn_out": "blocks.{layer}.hook_attn_out",
    "mlp_out": "blocks.{layer}.hook_mlp_out",
    "q": "blocks.{layer}.attn.hook_q",
    "k": "blocks.{layer}.attn.hook_k",
    "v": "blocks.{layer}.attn.hook_v",
    "z": "blocks.{layer}.attn.hook_z",
    "pattern": "blocks.{layer}.attn.hook_pattern",
    "pre": "blocks.{layer}.mlp.hook_pre",
    "post": "blocks.{layer}.mlp.hook_post",
}
_PARAMETERS = ("b_O", "b_out", "bias")
_GLOBAL = ("embed", "pos_embed", "bias")
_PER_HEAD = ("q", "k", "v", "z", "pattern")
_PER_NEURON = ("pre", "post")
_SUBUPDATE = {"attn_out": "attn", "mlp_out": "mlp"}
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
}
_LABEL = re.compile(r"L(?P<layer>[0-9]+)(?P<unit>[HN])(?P<index>[0-9]+)(?:\.(?P<name>\w+))?")
_LAYERED = re.compile(r"(?P<layer>[0-9]+)\.(?P<name>\w+)")


@dataclass(frozen=True, slots=True)
class Site:
    """A place in the model: an activation name, a layer, and perhaps a head or a neuron.

    Args:
        name: TransformerLens' short name (``resid_pre``, ``attn_out``, ``mlp_out``, ``z``, ``q``,
            ``k``, ``v``, ``pattern``, ``pre``, ``post``, ``embed``, ``pos_embed``), or a bias that
            is written to the stream (``b_O``, ``b_out``) or to the logits (``bias``).
        layer: Block index; None for the embeddings and the readout bias.
        head: Head index, for ``q k v z pattern`` only.
        neuron: Neuron index, for ``pre`` and ``post`` only.

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
        if self.name not in _HOOKS and self.name not in _PARAMETERS:
            known = ", ".join([*_HOOKS, *_PARAMETERS])
            raise ValueError(f"name={self.name!r} is not a site; wanted one of {known}")
        if (self.layer is None) != (self.name in _GLOBAL):
            wanted = "no layer" if self.name in _GLOBAL else "a layer"
            raise ValueError(f"layer={self.layer!r}: site {self.name!r} wants {wanted}")
        if self.head is not None and self.name not in _PER_HEAD:
            raise ValueError(f"head={self.head!r}: only {', '.join(_PER_HEAD)} have heads")
        if self.neuron is not None and self.name not in _PER_NEURON:
            raise ValueError(f"neuron={self.neuron!r}: only {', '.join(_PER_NEURON)} have neurons")
        for name in ("layer", "head", "neuron"):
            index = getattr(self, name)
            if index is not None and index < 0:
                raise ValueError(f"{name}={index}: sites are counted from 0, not from the end")

    @property
    def hook_name(self) -> str:
        """The full TransformerLens hook name.

        Raises:
            ValueError: The site is a parameter, which no hook passes through.
        """
        if self.name in _PARAMETERS:
            raise ValueError(f"site {self.label!r} is a parameter; no hook passes through it")
        return _HOOKS[self.name].format(layer=self.layer)

    @property
    def label(self) -> str:
        """How researchers write it: ``embed``, ``3.attn``, ``L3H5``, ``3.mlp``, ``L3N669``."""
        if self.name in _GLOBAL:
            return self.name
        if self.head is not None:
            return f"L{self.layer}H{self.head}" + ("" if self.name == "z" else f".{self.name}")
        if self.neuron is not None:
            return f"L{self.layer}N{self.neuron}" + ("" if self.name == "post" else f".{self.name}")
        return f"{self.layer}.{_SUBUPDATE.get(self.name, self.name)}"

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
            ValueError: The text is not a label.
        """
        if label in _GLOBAL:
            return cls(label)
        if match := _LABEL.fullmatch(label):
            name = match["name"] or ("z" if match["unit"] == "H" else "post")
            unit = {"head" if match["unit"] == "H" else "neuron": int(match["index"])}
            return cls(name, int(match["layer"]), **unit)
        if match := _LAYERED.fullmatch(label):
            names = {short: name for name, short in _SUBUPDATE.items()}
            return cls(names.get(match["name"], match["name"]), int(match["layer"]))
        raise ValueError(
            f"label={label!r} is not a component label; wanted e.g. 'embed', '3.attn', '3.mlp', "
            "'L3H5' or 'L3N669'"
        )


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
