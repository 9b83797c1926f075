"""`Dictionary`: an SAE or transcoder as data, which encodes and decodes."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mlp_interp.dictionaries.activations import Activation, JumpRelu
from mlp_interp.dictionaries.fitting import check_fit, check_module, warn_of_another
from mlp_interp.dictionaries.latents import Latents
from mlp_interp.models import Weights, describe
from mlp_interp.models._checksum import checksum
from mlp_interp.models.finite import check_finite
from mlp_interp.models.options import check_choice
from mlp_interp.models.processing import processing
from mlp_interp.sites import STREAM, Site

__all__ = ["AFTER_NORM", "Dictionary"]

Normalize = Literal["layer_norm", "constant_norm"]
Wants = Literal["raw", "folded"]

AFTER_NORM = ("mlp_in", "mlp_normalized")
"""What the MLP reads: with its norm's scale and shift, and without them."""

_NUMBERS = 2**22  # pre-activations at a time: 16 MiB in float32
_EPS = 1e-5  # of SAELens' LayerNorm, outside the root
_LEAST = 1e-12  # length by which an input of zeros is divided


@dataclass(frozen=True, eq=False, repr=False)
class Dictionary:
    """An overcomplete set of directions, of which a few are active at each token.

    ``x_hat = sum_j a_j W_dec[j] + b_dec (+ x W_skip)`` with ``a = activation((x - b_in) W_enc +
    b_enc)``. Of an SAE `reads` and `writes` are one place; a transcoder reads what the MLP reads
    and writes what it writes; a cross-layer transcoder also writes to later MLPs' outputs.

    Attributes:
        W_enc: What latents read.
        b_enc: Their biases.
        W_dec: What they write; of several layers one after the other.
        b_dec: What is written anyway.
        activation: Which latents are active, a rule for each token by itself.
        layer: Of the block that is read.
        reads: ``"mlp_in"``, what the MLP reads after its norm (with the norm's scale and shift
            where the model still has them), ``"mlp_normalized"``, the same without these (where
            TransformerLens has ``ln2.hook_normalized``), ``"resid_pre"``, or what it writes.
        writes: ``"mlp_out"``, ``"attn_out"``, ``"resid_pre"`` or ``"resid_post"``.
        spans: How many layers it writes to, its own the first; more than 1 for ``mlp_out`` only.
        b_in: What is taken from the input; None for nothing.
        W_skip: What the input adds by itself; None for nothing.
        normalize: What is done to each input, and undone to the output: ``"layer_norm"`` as SAELens
            does it, with the unbiased deviation and epsilon outside the root; ``"constant_norm"``,
            a length of ``sqrt(d_in)``; None for nothing.
        of_module: Whether what it writes is a module's own output, before the norm or multiplier
            that follows the module in some models.
        wants: The processing of the weights of the model it is for; None where nobody says.
        ahead: How many layers above its own the first one is that it writes to, in the parts of a
            cross-layer transcoder that `towards` makes.
        attrs: What is known of it.

    Raises:
        ValueError: Shapes or types that do not fit each other, weights that are not finite, an
            unknown place.

    References:
        Bricken et al., "Towards Monosemanticity", 2023; Dunefsky et al., "Transcoders Find
        Interpretable LLM Feature Circuits", 2024.

    Example:
        >>> from mlp_interp.dictionaries import TopK
        >>> axes = torch.cat([torch.eye(3), -torch.eye(3)])
        >>> sae = Dictionary(axes.T, torch.zeros(6), axes, torch.zeros(3), TopK(2), layer=1)
        >>> found, latents = sae(torch.tensor([3.0, -2.0, 0.5]))
        >>> found.tolist(), latents.indices.tolist(), latents.values.tolist()
        ([3.0, -2.0, 0.0], [0, 4], [3.0, 2.0])
    """

    W_enc: Float[Tensor, "d_in latent"]
    b_enc: Float[Tensor, " latent"]
    W_dec: Float[Tensor, "latent d_out"]
    b_dec: Float[Tensor, " d_out"]
    activation: Activation
    layer: int
    reads: str = "mlp_out"
    writes: str = "mlp_out"
    spans: int = 1
    b_in: Float[Tensor, " d_in"] | None = None
    W_skip: Float[Tensor, "d_in d_out"] | None = None
    normalize: Normalize | None = None
    of_module: bool = False
    wants: Wants | None = None
    ahead: int = 0
    attrs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice("writes", self.writes, STREAM)
        check_choice("reads", self.reads, (*AFTER_NORM, "resid_pre", self.writes))
        check_choice("normalize", self.normalize, (None, *get_args(Normalize)))
        check_choice("wants", self.wants, (None, *get_args(Wants)))
        if type(self.layer) is not int or self.layer < 0:
            raise ValueError(f"layer={self.layer!r}; wanted an integer from 0")
        if self.spans < 1 or (self.spans > 1 and self.writes != "mlp_out"):
            raise ValueError(f"spans={self.spans} with writes={self.writes!r}; wanted 1")
        if self.spans > 1 and self.W_skip is not None:
            raise ValueError(f"W_skip with spans={self.spans}; wanted None")
        if self.ahead < 0 or (self.ahead and (self.writes != "mlp_out" or self.is_sae)):
            raise ValueError(f"ahead={self.ahead} with writes={self.writes!r}; wanted 0")
        check_fit(self._tensors(), self.activation, self.spans)
        for name, x in self._tensors().items():
            check_finite(name, x)

    def _tensors(self) -> dict[str, Tensor]:
        found = {name: x for name, x in vars(self).items() if isinstance(x, Tensor)}
        if isinstance(self.activation, JumpRelu):
            found["threshold"] = self.activation.threshold
        return found

    @property
    def n_latents(self) -> int:
        """How many latents it has."""
        return self.W_dec.shape[0]

    @property
    def d_out(self) -> int:
        """Width of each place it writes to."""
        return self.W_dec.shape[1] // self.spans

    @property
    def sites(self) -> tuple[Site, ...]:
        """The places it writes to."""
        first = self.layer + self.ahead
        return tuple(Site(self.writes, first + n) for n in range(self.spans))

    @property
    def site(self) -> Site:
        """The first place it writes to."""
        return self.sites[0]

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change with any entry of it, and with what it is of."""
        names = [
            "layer",
            "reads",
            "writes",
            "spans",
            "normalize",
            *(["ahead"] if self.ahead else []),
        ]
        digest = hashlib.sha256(repr([getattr(self, name) for name in names]).encode())
        digest.update(f"{self.activation}".encode())
        for name, x in sorted(self._tensors().items()):
            digest.update(f"{name} {tuple(x.shape)} {checksum(x)}".encode())
        return digest.hexdigest()[:16]

    @property
    def of_model(self) -> str | None:
        """Name of the model that it was trained on; None where nobody says."""
        said = self.attrs.get("model_name", self.attrs.get("model"))
        return said if isinstance(said, str) else None

    @property
    def is_sae(self) -> bool:
        """Whether it reads what it writes."""
        return self.reads == self.writes

    def encode(self, x: Float[Tensor, "*rest d_in"]) -> Latents:
        """Which latents are active at each input, and how strongly.

        Raises:
            ValueError: Inputs of another width.
        """
        if x.shape[-1] != self.W_enc.shape[0]:
            raise ValueError(f"x={tuple(x.shape)}; wanted a last axis of {self.W_enc.shape[0]}")
        rest = x.shape[:-1]
        rows, scale, shift = self._normalized(x.reshape(-1, x.shape[-1]).to(self.W_enc))
        skipped = (
            None if self.W_skip is None else (rows @ self.W_skip).view(*rest, self.W_skip.shape[1])
        )
        taken = rows if self.b_in is None else rows - self.b_in
        size = max(1, _NUMBERS // self.n_latents)
        parts = [
            self.activation(torch.addmm(self.b_enc, some, self.W_enc)) for some in taken.split(size)
        ]
        indices, values = _joined(parts)
        return Latents(
            indices.view(*rest, indices.shape[-1]),
            values.view(*rest, values.shape[-1]),
            self.n_latents,
            None if scale is None else scale.view(*rest, 1),
            None if shift is None else shift.view(*rest, 1),
            skipped,
        )

    def decode(self, latents: Latents) -> Float[Tensor, "*rest d_out"]:
        """What active latents, biases and what passes by them write together."""
        written = self.weighted(latents.indices, latents.values) + self.b_dec
        if latents.skipped is not None:
            written = written + latents.skipped
        return latents.rescaled(written)

    def weighted(
        self, indices: Tensor, values: Float[Tensor, "*rest slot"]
    ) -> Float[Tensor, "*rest d_out"]:
        """Decoder rows times some numbers, summed over slots."""
        slots = values.shape[-1]
        summed = F.embedding_bag(
            indices.reshape(-1, slots),
            self.W_dec,
            per_sample_weights=values.reshape(-1, slots),
            mode="sum",
        )
        return summed.view(*values.shape[:-1], self.W_dec.shape[1])

    def __call__(
        self, x: Float[Tensor, "*rest d_in"]
    ) -> tuple[Float[Tensor, "*rest d_out"], Latents]:
        """What it makes of inputs, and the latents that are active."""
        latents = self.encode(x)
        return self.decode(latents), latents

    def to(self, target: torch.dtype | torch.device | str) -> "Dictionary":
        """The same on another device, or in another floating type."""
        held = {k: x.to(target) for k, x in vars(self).items() if isinstance(x, Tensor)}
        activation = self.activation
        if isinstance(activation, JumpRelu):
            activation = JumpRelu(activation.threshold.to(target))
        return replace(self, activation=activation, **held)

    def towards(self, layer: int) -> "Dictionary":
        """The part that writes to one of its layers.

        Raises:
            ValueError: It does not write there.
        """
        layers = [site.layer for site in self.sites]
        if layer not in layers:
            raise ValueError(f"layer={layer} of {self!r}; wanted one of {layers}")
        if self.spans == 1:
            return self
        start = layers.index(layer) * self.d_out
        W_dec, b_dec = (x[..., start : start + self.d_out] for x in (self.W_dec, self.b_dec))
        return replace(self, W_dec=W_dec, b_dec=b_dec, spans=1, ahead=layer - self.layer)

    def check(self, weights: Weights, *, name: str = "dictionary") -> None:
        """Refuse a model for which it was not made.

        The mean over ``d_model`` that centring takes out of the stream, and the scale and shift of
        norms that folding takes out of what MLPs read, cannot be had back from the processed
        weights: what a dictionary of the raw model would read is not there.

        Args:
            weights: The model's.
            name: What the caller calls it, for the error.

        Raises:
            ValueError: The model has other sizes, or other processing.

        Warns:
            UserWarning: It says that it is of another model of these sizes, once for the two.
        """
        widths = (self.W_enc.shape[0], self.d_out)
        if widths != (weights.d_model, weights.d_model):
            raise ValueError(
                f"{name} reads and writes {widths} numbers; wanted d_model={weights.d_model}"
            )
        last = self.layer + self.ahead + self.spans - 1
        if last >= weights.n_layers:
            raise ValueError(
                f"{name} is of layer {last}; wanted one of the model's 0 to {weights.n_layers - 1}"
            )
        weights.check_names([self.writes], argument=name)
        if self.reads in AFTER_NORM:
            weights.check_names(["post"], argument=name)
        if self.of_module:
            check_module(weights, self.writes, range(last + 1 - self.spans, last + 1), name=name)
        if self.wants is not None:
            found = processing(weights, self.layer, self.reads)
            if found not in (None, self.wants):
                raise ValueError(
                    f"{name} wants {self.wants} weights, and those of "
                    f"model={weights.model.cfg.model_name!r} are {found}; wanted load_model(name, "
                    f"processing={self.wants!r})"
                )
        if self.of_model is not None:
            warn_of_another(self.of_model, describe(weights.model)["model"], name=name)

    def _normalized(
        self, x: Float[Tensor, "row d_in"]
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Inputs as latents read them, and by what outputs are scaled and shifted."""
        if self.normalize == "layer_norm":
            shift = x.mean(-1, keepdim=True)
            scale = x.std(-1, keepdim=True)
            return (x - shift) / (scale + _EPS), scale, shift
        if self.normalize == "constant_norm":
            scale = x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
            return x / scale.clamp_min(_LEAST), scale, None
        return x, None, None

    def __repr__(self) -> str:
        place = f"{self.layer}.{self.reads}"
        kind = "SAE" if self.is_sae else "transcoder"
        to = "" if self.is_sae else f" to {', '.join(site.label for site in self.sites)}"
        return (
            f"Dictionary: {kind} of {place}{to}, {self.n_latents} latents, {self.activation}"
            f"{'' if self.wants is None else f', for {self.wants} weights'}"
        )


def _joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Pieces of rows under each other, in as many slots as the widest has."""
    slots = max(values.shape[-1] for _, values in parts)
    wide = [tuple(F.pad(x, (0, slots - x.shape[-1])) for x in part) for part in parts]
    indices, values = zip(*wide, strict=True)
    return torch.cat(indices), torch.cat(values)
