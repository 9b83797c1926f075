"""The readout: from a residual stream to logits, with the final norm folded in."""

import weakref
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.models.norm import Norm
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.probe import probe_tokens
from mlp_interp.models.protocol import Model
from mlp_interp.models.remember import without_hooks
from mlp_interp.models.weights import Weights
from mlp_interp.models.writes import sum_error, summed_sites
from mlp_interp.sites import Site

__all__ = [
    "Unembed",
    "capped",
    "capped_change",
    "check_readout",
    "directions",
    "mean_direction",
    "readout_error",
]

# What of a configuration changes logits after the unembedding, and the readout does not read.
_OTHERS = {"logit_scale": 1}

# Whether the readout is the model's, and the mean column of W_U, each with what tells that they
# still hold. Weak, so that they never keep a model in memory.
_compared: "weakref.WeakKeyDictionary[Any, tuple[tuple, str | None]]" = weakref.WeakKeyDictionary()
_means: "weakref.WeakKeyDictionary[Any, tuple[tuple, Tensor]]" = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Unembed:
    """``logits(x) = x W' / sigma(x) + b'``, whatever processing the model has had.

    With the final norm's scale ``gamma``, shift ``beta`` and unembedding ``W_U, b_U``, let ``D`` be
    what the norm keeps of a vector (a LayerNorm's subtracts the mean over ``d_model``). Then
    ``W' = D diag(gamma) W_U``, ``b' = beta W_U + b_U`` and ``sigma(x) = sqrt(|D x|^2 / d_model +
    eps)``, see `Norm`. Folded, centred and raw weights give the same log-probabilities through it;
    logits themselves differ between processings by a constant per position, because centring the
    unembedding removes one.

    Attributes:
        weight: ``W'``, ``[d_model, d_vocab]``.
        bias: ``b'``, ``[d_vocab]``.
        norm: How the stream is normalised.
        cap: What logits are bounded by at last, see `Weights.cap`: all else about the readout is of
            logits before that.

    References:
        Elhage et al., "A Mathematical Framework for Transformer Circuits", 2021, on folding.

    Example:
        >>> import torch
        >>> from mlp_interp import load_model
        >>> model = load_model("nano")
        >>> unembed = Unembed.of(model)
        >>> logits, cache = model.run_with_cache(torch.tensor([[0, 5, 6]]))
        >>> final = cache[f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"]
        >>> bool(torch.allclose(unembed.logits(final), logits, atol=1e-4))
        True
    """

    weight: Float[Tensor, "d_model d_vocab"]
    bias: Float[Tensor, " d_vocab"]
    norm: Norm
    cap: float | None = None

    @classmethod
    @torch.no_grad()
    def of(cls, model: Model) -> "Unembed":
        """Fold a model's final norm and unembedding; the model is not changed.

        Where the model's own weights are folded and centred already, they are shared, not copied.

        Raises:
            ValueError: The model's logits are not those of this readout, or it is not finite.
        """
        weights = Weights.of(model)
        check_readout(weights)
        found, mean = cls._folded(weights)
        if not bool((mean.isfinite() & found.bias.isfinite()).all()):
            raise ValueError(
                f"model={model.cfg.model_name!r} has an unembedding with NaN or infinity; wanted "
                "finite weights: look at them with check_model(model)"
            )
        return found

    @classmethod
    @torch.no_grad()
    def unchecked(cls, weights: Weights) -> "Unembed":
        """The same without any check."""
        return cls._folded(weights)[0]

    @classmethod
    def _folded(cls, weights: Weights) -> tuple["Unembed", Float[Tensor, " d_vocab"]]:
        """The readout, and the mean of every column before it was centred."""
        affine, norm = weights.ln_final, weights.final_norm
        folded = weights.W_U if affine.folded else affine.w[:, None] * weights.W_U
        mean = folded.mean(0)
        # Processing that folds the LayerNorm centres the columns too, up to rounding; leaving them
        # as they are then saves a copy of the largest matrix of the model.
        if norm.kind == "layer" and not _small_beside(mean, folded):
            folded = folded - mean
        shift = weights.b_U if affine.folded else affine.b @ weights.W_U + weights.b_U
        return cls(folded, shift, norm, weights.cap), mean

    @property
    def d_vocab(self) -> int:
        """Number of logits."""
        return self.weight.shape[1]

    @cached_property
    def largest(self) -> float:
        """Largest L2 norm of a token's direction: bounds how far any logit can move."""
        return float(self.squares.max().sqrt())

    @cached_property
    def squares(self) -> Float[Tensor, " d_vocab"]:
        """Squared L2 norm of every token's direction."""
        # By blocks that stay in cache: the square of the whole matrix would be a copy of it.
        return torch.cat([part.square().sum(0) for part in self.weight.split(1024, dim=1)])

    def scale(self, x: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest 1"]:
        """``sigma(x)``: what the final norm divides by."""
        return self.norm.scale(x)

    def normalize(self, x: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_model"]:
        """``D x / sigma(x)``: the stream as the unembedding reads it, without scale and shift."""
        return self.norm.standardize(x)

    def logits(self, x: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_vocab"]:
        """Logits of a residual stream."""
        return capped(self.normalize(x) @ self.weight + self.bias, self.cap)

    def directions(self, tokens: Int[Tensor, "*rest"]) -> Float[Tensor, "*rest d_model"]:
        """Columns of ``W'``: the direction in the stream that raises each token's logit.

        Raises:
            ValueError: A token id is outside the vocabulary.
        """
        _check_ids(tokens, self.d_vocab)
        return self.weight.T[tokens.to(self.weight.device)]


def _small_beside(mean: Float[Tensor, " d_vocab"], matrix: Float[Tensor, "_ d_vocab"]) -> bool:
    """Whether means of columns are rounding beside some entry; mostly the first block has one."""
    most = 1e6 * float(mean.abs().max())
    # (The sizes of all entries would be a copy, and so would be the extremes of a transposed one.)
    parts = matrix.split(1024, dim=1)
    return any(most <= float(end.abs()) for part in parts for end in part.aminmax())


def capped(logits: Tensor, cap: float | None) -> Tensor:
    """Logits under a cap, if there is one: ``cap tanh(logits / cap)``."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


def capped_change(logits: Tensor, change: Tensor, cap: float | None) -> Tensor:
    """How logits under a cap change.

    Computed from the change, so that small ones keep full relative precision.

    Args:
        logits: Under the cap.
        change: Of what the cap is put on.
        cap: None for no cap.
    """
    if cap is None:
        return change
    clean, moved = logits / cap, torch.tanh(change / cap)
    return cap * moved * (1 - clean.square()) / (1 + clean * moved)


def directions(
    weights: Weights, tokens: Int[Tensor, "*rest"]
) -> tuple[Float[Tensor, "*rest d_model"], Float[Tensor, "*rest"]]:
    """Some columns of ``W'`` and entries of ``b'``, without folding the rest of the matrix.

    Raises:
        ValueError: A token id is outside the vocabulary, or the model's logits are not those of
            this readout.
    """
    check_readout(weights)
    W_U, affine = weights.W_U, weights.ln_final
    _check_ids(tokens, W_U.shape[-1])
    tokens = tokens.to(W_U.device)
    columns = W_U.T[tokens]
    folded = weights.final_norm.keep(columns * affine.w)
    return folded, columns @ affine.b + weights.b_U[tokens]


def mean_direction(weights: Weights) -> tuple[Float[Tensor, " d_model"], Float[Tensor, ""]]:
    """Mean over the vocabulary of the columns of ``W'`` and of ``b'``.

    The mean of ``W_U``, for which the whole matrix is read, is kept for as long as the model lives
    and its ``W_U`` stays as it is.
    """
    W_U, affine = weights.W_U, weights.ln_final
    # In-place changes raise the version, but not those through `.data`: so some entries are looked
    # at. What stays unseen is a change of single columns, of which the mean hardly takes notice.
    flat = W_U.reshape(-1) if W_U.is_contiguous() else W_U.T.reshape(-1)
    some = flat[:: max(1, len(flat) // 4096) | 1].double()
    state = (W_U.data_ptr(), W_U._version, tuple(W_U.shape), float(some.sum()), float(some.norm()))
    known = _means.get(weights.model)
    if known is None or known[0] != state:
        with own_mode():
            known = _means[weights.model] = (state, W_U.mean(-1))
    column = known[1]
    folded = weights.final_norm.keep(column * affine.w)
    return folded, column @ affine.b + weights.b_U.mean()


@torch.no_grad()
def readout_error(weights: Weights) -> tuple[float, float]:
    """How far the folded readout is from the model's own logits, on `probe_tokens`.

    Returns:
        The largest difference of log-probabilities, in nats; and the largest difference of logits
        at any position, less their mean over the vocabulary, as a share of the largest such logit
        of that position.
    """
    final = Site("resid_post", weights.n_layers - 1)
    logits, cache = _probed(weights, [final])
    return _readout_error(weights, logits, cache[final.hook_name])


@torch.no_grad()
def _probed(weights: Weights, sites: list[Site]) -> tuple[Tensor, Any]:
    names = [site.hook_name for site in sites]
    with without_hooks(weights.model):  # what edits do to other tokens is not asked
        return weights.model.run_with_cache(probe_tokens(weights), names_filter=names)


def _readout_error(weights: Weights, logits: Tensor, final: Tensor) -> tuple[float, float]:
    found = Unembed.unchecked(weights).logits(final).double()
    logits = logits.double()
    nats = float((found.log_softmax(-1) - logits.log_softmax(-1)).abs().max())
    logits = logits - logits.mean(-1, keepdim=True)
    apart = (found - found.mean(-1, keepdim=True) - logits).abs().amax(-1)
    return nats, float((apart / logits.abs().amax(-1).clamp_min(1e-12)).nan_to_num().max())


def check_readout(weights: Weights) -> None:
    """Refuse a model whose logits are not ``x W' / sigma(x) + b'`` of its final stream ``x``.

    Nor is one let through whose stream is not the sum of what embeddings, heads and neurons write.

    Compared once, and again when the configuration, the modules after the last block or the hooks
    on them change.

    Raises:
        ValueError: They are others; the text says by how much, and why where the configuration
            tells.
    """
    model = weights.model
    if not hasattr(model, "run_with_cache"):
        return  # a portable copy of a model that was compared
    state = _readout_state(weights)
    known = _compared.get(model)
    if known is None or known[0] != state:
        with own_mode():
            known = _compared[model] = (state, _mismatch(weights))
    if known[1] is not None:
        raise ValueError(f"model={model.cfg.model_name!r} {known[1]}")


def _mismatch(weights: Weights) -> str | None:
    """What is wrong with the readout, or None."""
    cfg = weights.model.cfg
    names = [n for n, usual in _OTHERS.items() if getattr(cfg, n, None) not in (None, usual)]
    sites = summed_sites(weights)
    logits, cache = _probed(weights, sites)
    _, share = _readout_error(weights, logits, cache[sites[-1].hook_name])
    apart = sum_error(weights, cache)
    tolerance = 1e-4 if weights.dtype in (torch.float32, torch.float64) else 5e-2
    if apart > 10 * tolerance:
        return (
            "adds to its stream other vectors than its embeddings, heads and neurons write: they "
            f"differ by {apart:.1e} of the stream; wanted a model whose stream is their sum"
        )
    if share <= tolerance:
        return None
    why = f" (its configuration has {', '.join(names)})" if names else ""
    return (
        f"has other logits than its final norm and unembedding give{why}: they differ by "
        f"{share:.1e} of the largest logit; wanted a model whose logits are the unembedding of its "
        "normalised final stream"
    )


def _readout_state(weights: Weights) -> tuple[Any, ...]:
    """What the formula of the readout depends on; the weights themselves may change."""
    model = weights.model
    modules = [getattr(model, name, None) for name in ("ln_final", "unembed")]
    hooks = [
        tuple(map(id, getattr(part, name, {}) or ()))
        for module in modules
        if isinstance(module, torch.nn.Module)
        for part in module.modules()
        for name in ("_forward_hooks", "_forward_pre_hooks", "fwd_hooks")
    ]
    return repr(vars(model.cfg)), tuple(map(id, modules)), tuple(hooks)


def _check_ids(tokens: Int[Tensor, "*rest"], size: int) -> None:
    if tokens.numel() and not (0 <= int(tokens.min()) and int(tokens.max()) < size):
        raise ValueError(
            f"tokens={tokens.tolist()} has ids outside the vocabulary; wanted 0 to {size - 1}"
        )
