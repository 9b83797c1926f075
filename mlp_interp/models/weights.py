"""One small interface to a model's weights, whatever class holds them and however processed."""

import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.models.indices import each, is_single
from mlp_interp.models.norm import Norm, NormKind
from mlp_interp.models.protocol import Model
from mlp_interp.results import tokens_of
from mlp_interp.sites import GATED, NEURONS, Kind, Site, site_of

__all__ = ["Affine", "Block", "Weights"]

# What TransformerLens calls the norms: those without parameters end in Pre.
_NORMS: dict[str | None, NormKind] = {
    **dict.fromkeys(("LN", "LNPre"), "layer"),
    **dict.fromkeys(("RMS", "RMSPre"), "rms"),
    None: "none",
}
_PARAMETERS = (
    *("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O"),
    *("W_in", "b_in", "W_out", "b_out"),
)


@dataclass(frozen=True)
class Affine:
    """Scale and shift of a norm; ones and zeros where it has none or they are folded away."""

    w: Float[Tensor, " d_model"]
    b: Float[Tensor, " d_model"]

    @property
    def folded(self) -> bool:
        """Whether this norm only standardises."""
        return bool((self.w == 1).all() and (self.b == 0).all())


# What is written to the stream, by what writes it.
_WRITING = {"W_O": "z", "b_O": "z", "W_out": "post", "b_out": "post"}
_OUTPUTS = {"z": "hook_attn_out", "post": "hook_mlp_out"}


@dataclass(frozen=True)
class Block:
    """Weights of one block, in TransformerLens' orientation (vectors multiply from the left).

    Those that write to the stream have in them what the model multiplies attention and MLP outputs
    by before it adds them: see `Weights.parameter`.

    A gated MLP writes ``(act(x W_gate + b_gate) * (x W_in + b_in)) W_out + b_out``; where MLPs have
    no gates, the two are None. Where queries and keys are normalised before they are rotated, by
    an RMSNorm, `q_norm` and `k_norm` are its scales.
    """

    ln1: Affine
    ln2: Affine
    W_Q: Float[Tensor, "head d_model d_head"]
    W_K: Float[Tensor, "kv_head d_model d_head"]
    W_V: Float[Tensor, "kv_head d_model d_head"]
    W_O: Float[Tensor, "head d_head d_model"]
    b_Q: Float[Tensor, "head d_head"]
    b_K: Float[Tensor, "kv_head d_head"]
    b_V: Float[Tensor, "kv_head d_head"]
    b_O: Float[Tensor, " d_model"]
    W_in: Float[Tensor, "d_model d_mlp"]
    b_in: Float[Tensor, " d_mlp"]
    W_out: Float[Tensor, "d_mlp d_model"]
    b_out: Float[Tensor, " d_model"]
    W_gate: Float[Tensor, "d_model d_mlp"] | None
    b_gate: Float[Tensor, " d_mlp"] | None
    q_norm: Float[Tensor, " q_size"] | None
    k_norm: Float[Tensor, " k_size"] | None


@dataclass(frozen=True)
class Weights:
    """Read access to the weights of a `HookedTransformer` or `TransformerBridge`.

    Nothing is copied until it is asked for, and what is given is detached: no gradient can reach
    the user's parameters through it.

    Example:
        >>> from mlp_interp import load_model
        >>> weights = Weights.of(load_model("nano"))
        >>> weights.n_layers, weights.block(0).W_in.shape == (weights.d_model, weights.d_mlp)
        (4, True)
    """

    model: Model

    @classmethod
    def of(cls, model: Model) -> "Weights":
        """Wrap a model.

        Raises:
            ValueError: It is not a decoder of attention and MLPs.

        Warns:
            UserWarning: Autocast is on, in which numbers are of half precision but where it is left
                (`mlp_interp.models.own_mode`).
        """
        _check_kind(model)
        if any(torch.is_autocast_enabled(device) for device in ("cpu", "cuda")):
            warnings.warn(
                "autocast is on: what is computed in it, such as ablations, decompositions and "
                "sweeps, is rounded to half precision (lenses, heads, weights, memories, neurons, "
                "latents, features, superposition, reach, directions, gradients and exchanges of "
                "runs leave it); call analyses outside it",
                stacklevel=1,  # one place, so that it is said once
            )
        return cls(model)

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return int(self.model.cfg.n_layers)

    @property
    def n_heads(self) -> int:
        """Attention heads per block."""
        return int(self.model.cfg.n_heads)

    @property
    def n_kv_heads(self) -> int:
        """Heads of keys and values; fewer than `n_heads` where queries share them."""
        return int(getattr(self.model.cfg, "n_key_value_heads", None) or self.n_heads)

    @property
    def joint_head_norms(self) -> bool:
        """Whether one norm takes the queries, or keys, of all heads together (OLMo 2)."""
        norm = self._inner_norm(self.model.blocks[0].attn, "q_norm")
        return norm is not None and norm.numel() > self.d_head

    def heads_at(self, name: str) -> int:
        """How many heads the activation of this name has: keys and values may be shared."""
        return self.n_kv_heads if name in ("k", "v") else self.n_heads

    def value_of(self, head: int) -> int:
        """Which of the keys and values a head reads."""
        return head * self.n_kv_heads // self.n_heads

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.model.cfg.d_model)

    @property
    def d_head(self) -> int:
        """Width of a head."""
        return int(self.model.cfg.d_head)

    @property
    def has_mlps(self) -> bool:
        """Whether blocks have MLPs; in attention-only models these are of no neurons."""
        return not getattr(self.model.cfg, "attn_only", False)

    @property
    def outputs(self) -> tuple[str, ...]:
        """What a block adds to the stream, in order."""
        return ("attn_out", "mlp_out") if self.has_mlps else ("attn_out",)

    @property
    def d_mlp(self) -> int:
        """Neurons per block."""
        if not self.has_mlps:
            return 0
        # Not as the configuration says: for some models the library guesses it there.
        return int(self.model.blocks[0].mlp.W_in.shape[-1])

    @property
    def d_vocab(self) -> int:
        """Number of logits."""
        return int(self.W_U.shape[-1])

    @property
    def parallel(self) -> bool:
        """Whether attention and MLP of a block both read ``resid_pre`` (GPT-NeoX, Pythia)."""
        return bool(self.model.cfg.parallel_attn_mlp)

    @property
    def has_pos_embed(self) -> bool:
        """Whether positions are added to the stream (GPT-2), rather than rotated in (Pythia)."""
        return self.model.cfg.positional_embedding_type == "standard"

    @property
    def gated(self) -> bool:
        """Whether the MLPs are gated: what a neuron's activation function gives is a factor."""
        return bool(getattr(self.model.cfg, "gated_mlp", False))

    @property
    def norm(self) -> Norm:
        """How the blocks normalise what they read."""
        norm = self._norm
        # Blocks that only normalise what they write (OLMo 2).
        raw = self.post_norms and self._norm_before(0, "ln1") is None
        return Norm("none", norm.eps) if raw else norm

    @property
    def final_norm(self) -> Norm:
        """How the readout normalises the final stream."""
        norm = self._norm
        rms = getattr(self.model.cfg, "final_rms", False) and norm.kind == "layer"
        return Norm("rms", norm.eps) if rms else norm

    @property
    def _norm(self) -> Norm:
        cfg = self.model.cfg
        kind = _NORMS[cfg.normalization_type]
        rms = getattr(cfg, "uses_rms_norm", False)
        return Norm("rms" if rms else kind, float(cfg.eps))

    @property
    def post_norms(self) -> bool:
        """Whether attention and MLP outputs are normalised before they are added to the stream.

        Then what a head or neuron adds depends on what the others of its block write: by itself it
        is known with the norm's scale held as it was, which is called the frozen post-norm
        (`mlp_interp.models.writes`).
        """
        return self.post_norm(0, "z") is not None

    def post_norm(self, layer: int, name: str) -> Norm | None:
        """The norm of what a block's heads (``z``) or neurons (``post``) write, if there is one.

        Its scale is in the weights that write: see `parameter`.
        """
        return None if self._norm_after(layer, name) is None else self._norm

    def check_no_post_norms(self, what: str) -> None:
        """Refuse a model in which heads and neurons do not write by themselves.

        Args:
            what: Who cannot take that, for the error.

        Raises:
            ValueError: It has `post_norms`.
        """
        if self.post_norms:
            raise ValueError(
                f"{what}: model={self.model.cfg.model_name!r} normalises what attention and MLP "
                "write, so that what a head or neuron adds depends on the others of its block; "
                "wanted a model without such norms"
            )

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights."""
        return self.W_U.dtype

    @property
    def device(self) -> torch.device:
        """Device of the readout."""
        return self.W_U.device

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        """Token embedding."""
        return self.model.W_E.detach()

    @property
    def W_pos(self) -> Float[Tensor, "n_ctx d_model"]:
        """Positional embedding; only where `has_pos_embed`."""
        return self.model.pos_embed.W_pos.detach()

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        """Unembedding, without the final norm's scale."""
        return self.model.W_U.detach()

    @property
    def b_U(self) -> Float[Tensor, " d_vocab"]:
        """Unembedding bias; zeros where the model has none."""
        bias = self.model.b_U
        if bias is None:
            return self.W_U.new_zeros(self.d_vocab)
        return bias.detach() if self._divisor == 1 else bias.detach() / self._divisor

    @property
    def ln_final(self) -> Affine:
        """The final norm's scale and shift, less what the model divides its logits by."""
        affine = self._affine(getattr(self.model, "ln_final", None))
        if self._divisor == 1:
            return affine
        return Affine(affine.w / self._divisor, affine.b / self._divisor)

    @property
    def cap(self) -> float | None:
        """What logits are bounded by (Gemma 2), as ``cap tanh(x / cap)``; None for nothing."""
        names = ("output_logits_soft_cap", "final_logit_softcapping")
        caps = (float(getattr(self.model.cfg, name, None) or 0) for name in names)
        return next((cap for cap in caps if cap > 0), None)

    @property
    def _divisor(self) -> float:
        """What logits are divided by at last (Granite)."""
        return float(getattr(self.model.cfg, "logits_scaling", None) or 1)

    def checked(self, tokens: Any) -> Int[Tensor, "batch pos"]:
        """Tokens that this model can take, on its device, as 64-bit integers.

        Raises:
            ValueError: They are not an integer tensor ``[batch, pos]`` with at least one token, an
                id is outside the vocabulary, or there are more positions than the model's context
                has; some libraries would go on with something else.
        """
        tokens, _ = tokens_of(tokens)
        lowest, highest, size = int(tokens.min()), int(tokens.max()), self.W_E.shape[0]
        if lowest < 0 or highest >= size:
            wrong = lowest if lowest < 0 else highest
            raise ValueError(f"tokens hold {wrong}; wanted ids from 0 to {size - 1}")
        context = int(self.model.cfg.n_ctx)
        if tokens.shape[1] > context:
            raise ValueError(
                f"sequences of {tokens.shape[1]} tokens exceed the model's context of {context}"
            )
        return tokens.to(self.device, torch.int64)

    def having(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of some activations that blocks of this model have."""
        lacking = () if self.gated else GATED
        if not self.has_mlps:
            lacking = ("mlp_out", "b_out", *NEURONS, *GATED)
        return tuple(name for name in names if name not in lacking)

    def check_names(self, names: Collection[str], *, argument: str = "site") -> None:
        """Refuse activations, by their names, that blocks of this model do not have.

        Raises:
            ValueError: One is named that MLPs have, or gated ones alone, and this model has none.
        """
        there = self.having(names)
        wrong = next((name for name in names if name not in there), None)
        if wrong is None:
            return
        why = "its MLPs are not gated; wanted 'pre' or 'post'"
        if not self.has_mlps:
            why = "it is attention-only; wanted what attention computes, or the stream"
        raise ValueError(
            f"{argument}={wrong!r}, of which model={self.model.cfg.model_name!r} has none: {why}"
        )

    def place(
        self,
        given: Any,
        *,
        kind: Kind | None = None,
        argument: str = "site",
        words: Sequence[str] = (),
        per_head: bool = False,
    ) -> Site:
        """The site that somebody named, as `site_of` reads it: one that the model has.

        Args:
            given: As of `site_of`; in pairs negatives count from the end.
            kind: As of `site_of`.
            argument: As of `site_of`.
            words: As of `site_of`.
            per_head: Count keys and values by the heads that read them, of which several may share
                one.

        Raises:
            ValueError: It is no site, one of another kind, or the model has no such layer, head or
                neuron.
        """
        units = self.n_heads if kind == "head" else self.d_mlp
        site = site_of(
            given, kind=kind, argument=argument, sizes=(self.n_layers, units), words=words
        )
        self.check_names([site.name], argument=argument)
        heads = self.n_heads if per_head else self.heads_at(site.name)
        sizes = {"layer": self.n_layers, "head": heads, "neuron": self.d_mlp}
        for what, size in sizes.items():
            index = getattr(site, what)
            if index is not None and index >= size:
                raise ValueError(
                    f"{argument}={site.label!r}; wanted a {what} from 0 to {size - 1}, which the "
                    "model has"
                )
        return site

    @property
    def heads(self) -> list[Site]:
        """What every head writes, layer by layer."""
        layers, heads = range(self.n_layers), range(self.n_heads)
        return [Site("z", layer, head=head) for layer in layers for head in heads]

    def places(
        self,
        given: Any,
        *,
        kind: Kind | None = None,
        argument: str = "sites",
        words: Sequence[str] = (),
        per_head: bool = False,
    ) -> list[Site]:
        """The sites that somebody named, one or several, in the order given.

        Args:
            given: As of `place`; two numbers in a tuple are one pair.
            kind: As of `place`.
            argument: What the caller calls them, for errors.
            words: As of `place`.
            per_head: As of `place`.

        Raises:
            ValueError: As `place`; also none, or one twice.
        """
        pair = isinstance(given, tuple) and len(given) == 2 and all(map(is_single, given))
        listed = [given] if pair else each(given)
        found = [
            self.place(one, kind=kind, argument=argument, words=words, per_head=per_head)
            for one in listed
        ]
        if not found or len(set(found)) < len(found):
            labels = [site.label for site in found]
            raise ValueError(
                f"{argument}={labels}; wanted at least one {kind or 'site'}, each once"
            )
        return found

    def shape_of(self, site: Site, batch: int, pos: int) -> tuple[int, ...]:
        """Shape of the whole activation at a site, of so many texts of so many positions.

        Raises:
            ValueError: The site is a parameter, or this model has none.
        """
        self.check_names([site.name])
        sizes = {
            "batch": batch,
            "pos": pos,
            "source": pos,
            "head": self.heads_at(site.name),
            "d_head": self.d_head,
            "neuron": self.d_mlp,
            "d_model": self.d_model,
        }
        return tuple(sizes[axis] for axis in site.axes)

    def parameter(self, layer: int, name: str) -> Tensor:
        """One of the weights of a `Block`, by its name, without reading the rest of the block.

        A bias that the model lacks is zero. What writes to the stream has in it the multiplier that
        follows (Granite), and the scale of the norm that follows (Gemma 2, OLMo 2), apart from what
        that norm divides by.

        Raises:
            ValueError: It lacks other weights of this name.
        """
        value = self.unscaled(layer, name)
        if name not in _WRITING:
            return value
        norm = self._norm_after(layer, _WRITING[name])
        value = value if norm is None else value * self._offset(norm.w)
        multiplier = self.multiplier(layer)
        return value if multiplier == 1 else value * multiplier

    def multiplier(self, layer: int) -> float:
        """By what a block multiplies what it adds to the stream (Granite); 1 in most models."""
        return float(getattr(self.model.blocks[layer], "residual_contribution_scale", 1.0))

    def unscaled(self, layer: int, name: str) -> Tensor:
        """The same without what follows before the stream.

        Raises:
            ValueError: As `parameter`.
        """
        block = self.model.blocks[layer]
        of_mlp = name.endswith(("_in", "_out", "_gate"))
        if of_mlp and not self.has_mlps:
            shapes = {"W_in": (self.d_model, 0), "W_out": (0, self.d_model)}
            return self.W_U.new_zeros(shapes.get(name) or self._bias_shape(name))
        owner = block.mlp if of_mlp else block.attn
        value = getattr(owner, name, None)
        if value is None:
            if not name.startswith("b_"):
                raise ValueError(f"name={name!r}: block {layer} has no such weights")
            return self.W_U.new_zeros(self._bias_shape(name))
        if name[2:] in ("K", "V"):
            # HookedTransformer gives shared ones once for each head that reads them.
            value = value[:: max(1, value.shape[0] // self.n_kv_heads)]
        return value.detach()

    def _bias_shape(self, name: str) -> tuple[int, ...]:
        if name in ("b_O", "b_out"):
            return (self.d_model,)
        if name in ("b_in", "b_gate"):
            return (self.d_mlp,)
        return self.heads_at(name[2:].lower()), self.d_head

    def block(self, layer: int) -> Block:
        """The weights of one block."""
        block = self.model.blocks[layer]
        ln1, ln2 = (self._norm_before(layer, name) for name in ("ln1", "ln2"))
        gate, bias = (
            self.parameter(layer, name) if self.gated else None for name in ("W_gate", "b_gate")
        )
        return Block(
            ln1=self._affine(ln1),
            # Where attention and MLP share one LayerNorm (GPT-J), there is no second module.
            ln2=self._affine(ln1 if ln2 is None else ln2),
            W_gate=gate,
            b_gate=bias,
            q_norm=self._inner_norm(block.attn, "q_norm"),
            k_norm=self._inner_norm(block.attn, "k_norm"),
            **{name: self.parameter(layer, name) for name in _PARAMETERS},
        )

    def _norm_after(self, layer: int, name: str) -> Any | None:
        """The module that normalises what heads (``z``) or neurons (``post``) write together."""
        block = self.model.blocks[layer]
        # The bridge's names say which module's output is added; it has OLMo 2's as ln1 and ln2 with
        # TransformerLens 3. HookedTransformer has modules of this name or none.
        usual = "ln1_post" if name == "z" else "ln2_post"
        source = getattr(block, "hook_aliases", {}).get(_OUTPUTS[name], usual)
        module = str(source).split(".")[0]
        return getattr(block, module, None) if module.startswith("ln") else None

    def _norm_before(self, layer: int, name: str) -> Any | None:
        """The module that normalises what attention (``ln1``) or MLP (``ln2``) reads."""
        norm = getattr(self.model.blocks[layer], name, None)
        after = (self._norm_after(layer, output) for output in _OUTPUTS)
        return None if any(norm is module for module in after) else norm

    def _inner_norm(self, attention: Any, name: str) -> Tensor | None:
        norm = getattr(attention, name, None)
        return None if norm is None else self._offset(norm.w)

    def _offset(self, w: Tensor) -> Tensor:
        # The bridge holds Gemma's scales as they are trained: less one.
        offset = float(getattr(self.model.cfg, "rmsnorm_uses_offset", False))
        return w.detach() + offset if offset else w.detach()

    def _affine(self, norm: Any) -> Affine:
        # A folded HookedTransformer has LayerNormPre, which holds no parameters at all.
        w, b = getattr(norm, "w", None), getattr(norm, "b", None)
        if w is None or b is None:
            W_U = self.W_U
            w = W_U.new_ones(self.d_model) if w is None else w
            b = W_U.new_zeros(self.d_model) if b is None else b
        return Affine(w=self._offset(w), b=b.detach())


def _check_kind(model: Any) -> None:
    """Refuse what is no model, or one that the package cannot read, by what it has.

    Raises:
        ValueError: It is one of these.
    """
    missing = [n for n in ("cfg", "blocks", "W_U") if not hasattr(model, n)]
    if missing:
        raise ValueError(
            f"model={type(model).__name__} has no {', '.join(missing)}; wanted a "
            "TransformerLens HookedTransformer or TransformerBridge"
        )
    cfg = model.cfg
    if cfg.normalization_type not in _NORMS:
        raise ValueError(
            f"model={cfg.model_name!r} normalises with {cfg.normalization_type}; wanted LayerNorm "
            "('LN', 'LNPre'), RMSNorm ('RMS', 'RMSPre') or no norm (None)"
        )
    if _drops_out(model):
        raise ValueError(
            f"model={cfg.model_name!r} is in training mode and has dropout, so that every pass "
            "gives other numbers; wanted model.eval()"
        )
    lacking = _lacking(model)
    if lacking:
        raise ValueError(
            f"model={cfg.model_name!r} has {lacking}; wanted a decoder whose blocks are attention "
            "and one MLP, with positions rotated in, added or none"
        )


def _drops_out(model: Model) -> bool:
    """Whether the model is being trained, with dropout: then every pass gives other numbers."""
    return bool(getattr(model, "training", False)) and any(
        module.training and (rate := getattr(module, name, 0)) and isinstance(rate, float)
        for module in model.modules()
        for name in (("p",) if isinstance(module, torch.nn.Dropout) else ("attention_dropout",))
    )


def _lacking(model: Model) -> str:
    """What keeps a model's blocks from being attention and an MLP; empty where nothing does."""
    for layer, block in enumerate(model.blocks):
        if not hasattr(block, "attn"):
            return f"no attention in block {layer}, a {type(block).__name__}"
        if type(getattr(block, "mlp", None)).__name__.startswith("MoE"):
            return f"several experts for one MLP in block {layer}"
    if model.cfg.positional_embedding_type == "standard" and not hasattr(model, "pos_embed"):
        return "positions that are added without an embedding of them"
    return ""
