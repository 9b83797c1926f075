"""The forward pass that analyses use: lean where the model allows, through hooks elsewhere."""

from collections.abc import Collection
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.models.forward import (
    EmbeddedAt,
    Forward,
    Observer,
    Projections,
    UnsupportedModel,
    keep,
)
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.probe import probe_tokens
from mlp_interp.models.protocol import Model
from mlp_interp.models.remember import has_hooks, remembered, without_hooks
from mlp_interp.models.weights import Weights
from mlp_interp.sites import ACTIVATIONS, GATED, Site

__all__ = ["HookForward", "forward_of"]

_OBSERVED = tuple(name for name in ACTIVATIONS if name != "pattern")


class HookForward:
    """`Forward`'s interface over the model's own forward pass and hooks: slower, for any model."""

    engine = "hooks"

    def __init__(self, weights: Weights) -> None:
        """Wrap a model; nothing is read yet."""
        self.weights = weights

    def embeddings(self, at: EmbeddedAt = "resid_pre") -> Float[Tensor, "token d_model"]:
        """As `Forward.embeddings`: rows of ``W_E``, some times a number (Gemma, Granite).

        Raises:
            ValueError: The model makes other vectors of tokens (BLOOM, which normalises them).
        """
        weights = self.weights
        tokens = probe_tokens(weights, length=8)
        sites = [Site(at, 0 if at == "resid_pre" else None)]
        if at == "resid_pre" and weights.has_pos_embed:
            sites.append(Site("pos_embed"))
        with own_mode(), without_hooks(weights.model), torch.no_grad():
            _, cache = weights.model.run_with_cache(
                tokens, names_filter=[site.hook_name for site in sites], return_type=None
            )
        written, *positions = (cache[site.hook_name] for site in sites)
        written = written - sum(positions)
        rows = weights.W_E[tokens]
        factor = float((written * rows).sum() / rows.square().sum())
        if float((written - factor * rows).norm()) > 1e-3 * float(written.norm()):
            raise ValueError(
                f"model={weights.model.cfg.model_name!r} begins its stream with other vectors than "
                "rows of W_E; wanted a model that does, perhaps times a number"
            )
        return weights.W_E if abs(factor - 1) < 1e-5 else factor * weights.W_E

    @torch.no_grad()
    def embed(
        self, tokens: Int[Tensor, "batch pos"], *, observe: Observer = keep
    ) -> Float[Tensor, "batch pos d_model"]:
        """As `Forward.embed`, of a text's beginning."""
        result: list[Tensor] = []

        def embedded(x: Tensor, hook: Any = None) -> Tensor:
            return observe("embed", 0, x.clone())

        def enter(x: Tensor, hook: Any = None) -> None:
            result.append(x.clone())

        hooks = [(Site("embed").hook_name, embedded), (Site("resid_pre", 0).hook_name, enter)]
        self.weights.model.run_with_hooks(tokens, return_type=None, fwd_hooks=hooks)
        return result[0]

    @torch.no_grad()
    def run(
        self,
        resid: Float[Tensor, "batch pos d_model"],
        *,
        start: int = 0,
        stop: int | None = None,
        observe: Observer = keep,
        patterns: Collection[int] = (),
    ) -> Float[Tensor, "batch pos d_model"]:
        """As `Forward.run`; blocks outside ``start`` to ``stop`` run too, unseen."""
        return self._run(resid, start, stop, observe, patterns)

    def run_with_gradients(
        self, resid: Float[Tensor, "batch pos d_model"], *, start: int = 0
    ) -> Float[Tensor, "batch pos d_model"]:
        """The rest of the pass, through which gradients go back to `resid`.

        The bridge keeps the pattern of its last pass, and with it the whole graph: `run` once more
        when the gradients are there.
        """
        return self._run(resid, start, None, keep, ())

    def _run(
        self,
        resid: Tensor,
        start: int,
        stop: int | None,
        observe: Observer,
        patterns: Collection[int],
    ) -> Tensor:
        model, n_layers = self.weights.model, self.weights.n_layers
        stop = n_layers if stop is None else stop
        result: list[Tensor] = [resid]

        def enter(_x: Tensor, hook: Any = None) -> Tensor:
            return resid.clone()

        def leave(x: Tensor, hook: Any = None) -> None:
            result[0] = x.clone()

        def seen(name: str, layer: int) -> Any:
            # Clones: the bridge's hook points share storage, and an observer may keep what it sees.
            return lambda x, hook=None: observe(name, layer, x.clone())

        names = self.weights.having((*_OBSERVED, *GATED))
        hooks: list[tuple[str, Any]] = []
        if start < stop:
            hooks = [(Site("resid_pre", start).hook_name, enter)]
            hooks += [
                (Site(name, layer).hook_name, seen(name, layer))
                for layer in range(start, stop)
                for name in (*names, *(("pattern",) if layer in patterns else ()))
            ]
            hooks.append((Site("resid_post", stop - 1).hook_name, leave))
            tokens = torch.full(resid.shape[:2], _filler(model), device=resid.device)
            model.run_with_hooks(tokens, return_type=None, fwd_hooks=hooks)
        return result[0]


def _filler(model: Model) -> int:
    """A token that is not padding: the library would mask positions that hold that."""
    padding = getattr(getattr(model, "tokenizer", None), "pad_token_id", None)
    return 1 if padding == 0 else 0


def forward_of(model: Model) -> Forward | HookForward:
    """The fastest forward pass that computes what this model computes.

    What it takes to know is remembered until the model changes. A model on whose hook points
    somebody has left hooks is run with them. (Hooks after the last block have no effect: what is
    read is the stream that it leaves.)

    Raises:
        ValueError: The model is of a kind that the package cannot read.
    """
    weights = Weights.of(model)
    blocks = None if has_hooks(model) else remembered(model, lambda: _lean_blocks(model))
    return HookForward(weights) if blocks is None else Forward(weights, blocks)


def _lean_blocks(model: Model) -> tuple[Projections, ...] | None:
    try:
        return Forward.of(model).blocks
    except UnsupportedModel:
        return None
