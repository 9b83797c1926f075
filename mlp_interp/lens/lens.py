"""A lens: what stands between the stream of a layer and the readout."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from mlp_interp.models import Weights, describe
from mlp_interp.models._checksum import checksum
from mlp_interp.models.indices import count
from mlp_interp.models.options import check_choice
from mlp_interp.models.processing import centred
from mlp_interp.models.protocol import Model
from mlp_interp.models.unembed import directions
from mlp_interp.results import single

__all__ = ["Context", "Lens", "Part", "decoder", "logit", "sketch"]

Part = Literal["block", "attn", "mlp"]
Context = Literal["same", "clean"]

_TOKENS = 16
_NEAR = 1e-3
"""How far the numbers of a sketch may be apart, as a share: processing moves them by rounding."""


@dataclass(frozen=True, eq=False)
class Lens:
    """What stands between the stream that enters a layer and the readout.

    A lens reads the stream ``x`` as ``softmax(readout(T(D x)))``, where ``D`` is what the final
    norm keeps of a stream (a LayerNorm takes the mean over ``d_model`` out) and the readout
    normalises anew at every layer. Because ``T`` acts on ``D x``, a lens is the same for folded,
    centred and raw weights of one model.

    Made by `logit`, `decoder`, `mean`, `linear`, `tuned` and `load`.

    Attributes:
        kind: ``"logit"``, ``"decoder"``, ``"mean"``, ``"linear"`` or ``"tuned"``.
        weight: One matrix for each layer, the stream after the last block included; vectors
            multiply from the left. None for the identity.
        bias: What is added, for each layer. None for nothing.
        blocks: How many of the model's last blocks are part of the lens.
        part: What of those blocks.
        context: What they read at other positions: ``"same"``, the stream of the same layer, or
            ``"clean"``, what they read in the run.
        ahead: How many tokens further on than the next the lens looks.
        centred: Whether ``T`` is given ``D x``; translators of the tuned-lens package are given
            ``x``, and so belong to raw weights alone.
        known: Tells the model that it belongs to from others (`sketch`).
        attrs: How it was made.
    """

    kind: str
    weight: Float[Tensor, "layer d_model d_model"] | None = None
    bias: Float[Tensor, "layer d_model"] | None = None
    blocks: int = 0
    part: Part = "block"
    context: Context = "same"
    ahead: int = 0
    centred: bool = True
    known: Float[Tensor, " number"] | None = None
    attrs: dict[str, Any] = field(default_factory=dict)

    def translate(
        self, x: Float[Tensor, "*rest d_model"], layer: int
    ) -> Float[Tensor, "*rest d_model"]:
        """``T``: what the readout is given of the stream that enters a layer.

        Args:
            x: The stream, as the final norm keeps it (`mlp_interp.models.norm.Norm.keep`).
            layer: Which; the number of layers stands for the stream after the last.
        """
        if self.weight is not None:
            x = x @ self.weight[layer].to(x)
        return x if self.bias is None else x + self.bias[layer].to(x)

    def layers(self, n_layers: int) -> tuple[int, ...]:
        """The layers whose stream it can read, of a model with so many blocks."""
        first_run = n_layers - self.blocks
        return (*range(min(first_run + 1, n_layers)), n_layers)

    def check(self, model: Model) -> None:
        """Refuse a lens of another model, of streams that this one has not, or that is none.

        Raises:
            ValueError: It is one.
        """
        if not self.centred and centred(Weights.of(model)):
            raise ValueError(
                f"lens={self.kind!r} reads streams as they are, but those of "
                f"model={model.cfg.model_name!r} are centred; wanted "
                'load_model(..., processing="raw")'
            )
        self._check_numbers(model)
        if self.known is None:
            return
        found = sketch(Weights.of(model))
        same = self.known.shape == found.shape
        if not same or bool(((self.known - found).abs() > _NEAR * found.abs()).any()):
            theirs, ours = self.attrs, describe(model)
            raise ValueError(
                f"lens={self.kind!r} is of model={theirs.get('model', 'unknown')!r}, revision "
                f"{theirs.get('revision', 'unknown')}; wanted one of model={ours['model']!r}, "
                f"revision {ours['revision']}, or of the same weights"
            )

    def _check_numbers(self, model: Model) -> None:
        """Refuse maps of other sizes than the model's streams have, or with holes."""
        weights = Weights.of(model)
        shape = weights.n_layers + 1, weights.d_model, weights.d_model
        for name, x, wanted in (("weight", self.weight, shape), ("bias", self.bias, shape[:2])):
            if x is not None and (tuple(x.shape) != wanted or not bool(x.isfinite().all())):
                raise ValueError(
                    f"lens={self.kind!r} has {name} {tuple(x.shape)}; wanted finite numbers "
                    f"{wanted}, for each stream of model={model.cfg.model_name!r}"
                )

    def digest(self) -> str:
        """Tells it from others of its kind, by its numbers."""
        parts = [x for x in (self.weight, self.bias) if x is not None]
        return "".join(str(checksum(x)) for x in parts) or "none"

    def named(self, **attrs: Any) -> "Lens":
        """The same with more said about how it was made."""
        return replace(self, attrs={**self.attrs, **attrs})

    def __repr__(self) -> str:
        blocks = f", blocks={self.blocks}, part={self.part!r}" if self.blocks else ""
        blocks += f", context={self.context!r}" if self.context != "same" else ""
        ahead = f", ahead={self.ahead}" if self.ahead else ""
        return f"Lens({self.kind!r}{blocks}{ahead}, model={self.attrs.get('model')!r})"


@torch.no_grad()
def sketch(weights: Weights) -> Float[Tensor, " number"]:
    """Some numbers that tell a model from others, whatever processing it has had.

    They are the model's sizes, and distances between tokens in the readout and in the embedding.
    """
    tokens = torch.linspace(0, weights.d_vocab - 1, _TOKENS + 1).long().to(weights.device)
    columns = single(directions(weights, tokens)[0])
    rows = single(weights.W_E[tokens.clamp_max(len(weights.W_E) - 1)])
    rows = weights.norm.keep(rows.to(columns.device))
    sizes = torch.tensor([weights.n_layers, weights.d_model, weights.d_vocab])
    apart = [(x[1:] - x[:1]).norm(dim=-1).cpu() for x in (columns, rows)]
    return torch.cat([sizes.to(columns.dtype), *apart])


def about(model: Model, kind: str) -> dict[str, Any]:
    """What a lens knows of its model."""
    return {
        "kind": kind,
        "known": sketch(Weights.of(model)),
        "attrs": {"analysis": f"{kind} lens", **describe(model)},
    }


def logit(model: Model) -> Lens:
    """The logit lens: the model's own readout, applied to the stream of any layer.

    What it shows at early layers is as much about the lens as about the model: a stream that later
    layers turn into a prediction need not be one already.

    Args:
        model: The model.

    References:
        nostalgebraist, "interpreting GPT: the logit lens", 2020.

    Example:
        >>> from mlp_interp import load_model
        >>> logit(load_model("nano"))
        Lens('logit', model='nano')
    """
    return Lens(**about(model, "logit"))


def decoder(
    model: Model, blocks: int = 1, *, part: Part = "block", context: Context = "same"
) -> Lens:
    """The model's last blocks as the decoder: what it says if all blocks between are left out.

    The stream that enters a layer goes through the last blocks and the readout. Nothing is trained,
    and what is read was computed by the model's own weights; the last blocks read a stream that
    they were not trained on, though. With ``context="clean"`` that is so at the one position that
    is read alone: what they find at earlier ones is what they find in the run, so that a large
    distance is about this position, and a small one may be due to what later layers have made of
    the earlier ones.

    Args:
        model: The model.
        blocks: How many of its last blocks; 0 is the logit lens.
        part: ``"block"``; or ``"attn"`` or ``"mlp"``, that half of these blocks alone. In a
            parallel block both halves read the same stream; in a sequential one the MLP alone reads
            what it never reads in the model, the stream without what attention adds.
        context: ``"same"``: blocks between are left out at all positions; ``"clean"``: at the
            position that is read, and keys and values of the earlier ones are those of the run.
            Models that the lean pass cannot stand in for take a pass for each position.

    Raises:
        ValueError: The model does not have so many blocks, or another part or context; a clean
            context for MLPs alone, which read none.

    References:
        nostalgebraist, "interpreting GPT: the logit lens", 2020, the extended decoder.

    Example:
        >>> from mlp_interp import load_model
        >>> decoder(load_model("nano"), 1, part="mlp")
        Lens('decoder', blocks=1, part='mlp', model='nano')
    """
    most = Weights.of(model).n_layers - 1
    count("blocks", blocks, least=0, most=most)
    check_choice("part", part, get_args(Part))
    check_choice("context", context, get_args(Context))
    if context == "clean" and part == "mlp":
        raise ValueError("context='clean' with part='mlp', which reads no context; wanted 'same'")
    return replace(Lens(**about(model, "decoder")), blocks=blocks, part=part, context=context)
