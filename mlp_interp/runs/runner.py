"""Runs a model with edits: a forward pass, or a generation."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mlp_interp.edits import edits_of
from mlp_interp.edits.applying import Where
from mlp_interp.edits.edit import EDITABLE, Edit
from mlp_interp.models import Forward, HookForward, Weights, forward_of
from mlp_interp.models.protocol import Model
from mlp_interp.models.unembed import Unembed
from mlp_interp.prompts.texts import tokens_to_run
from mlp_interp.runs.generation import Generation, Sampling, generate
from mlp_interp.runs.padded import warn_of_padding
from mlp_interp.runs.recorded import Run
from mlp_interp.sites import GATED, Site, site_of

__all__ = ["Runner", "kept_sites", "run"]

_ALWAYS = ("embed", "resid_pre", "resid_post")  # every run keeps these


@torch.no_grad()
def run(
    model: Model,
    tokens: Any,
    *,
    sites: Site | str | Sequence[Site | str] = "all",
    edits: Edit | Sequence[Edit] = (),
) -> Run:
    """Run a model, with edits or without, and record what its places held.

    What comes back is a mapping of hook names to activations, as an `ActivationCache` is, that can
    be edited, decomposed, attributed and patched from.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        tokens: Token ids ``[batch, pos]`` or ``[pos]``, which are run as they are; or a text, or
            several of one length in tokens, which begin with BOS.
        sites: What to keep beside the streams: ``"all"`` (attention patterns are then computed
            where they are asked for); or sites, labels (``"3.mlp"``, ``"L3H5"``: whole
            activations), hook names, and names alone (``"post"``) for all layers.
        edits: What to do on the way; those of one place in the order given.

    Raises:
        ValueError: The tokens are not ones that the model can take, or texts of several lengths; a
            site cannot be kept, or an edit does not fit this model and these tokens.

    Example:
        >>> from mlp_interp import load_model
        >>> clean = run(load_model("nano"), torch.tensor([[0, 5, 6]]))
        >>> clean["blocks.3.hook_mlp_out"].shape, clean["L3H5"].shape
        (torch.Size([1, 3, 192]), torch.Size([1, 3, 32]))
        >>> silenced = clean.edited([Edit.set("2.mlp", 0.0)])
        >>> bool((silenced.final - clean.final).abs().max() > 0)
        True
    """
    return Runner.of(model).run(tokens_to_run(model, tokens), sites=sites, edits=edits)


def kept_sites(weights: Weights, sites: Site | str | Sequence[Site | str]) -> list[Site]:
    """Sites from all the ways to name some: see `run`.

    Raises:
        ValueError: A name that is none.
    """
    every = [name for name in EDITABLE if name not in _ALWAYS and name != "pattern"]
    every = weights.having([*every, *GATED])
    named = [sites] if isinstance(sites, Site | str) else list(sites)
    words = ("all", *EDITABLE[1:], *GATED)
    listed: list[Site] = []
    for one in named:
        if isinstance(one, str) and one in words:
            names = every if one == "all" else [one]
            listed += [Site(name, layer) for name in names for layer in range(weights.n_layers)]
        else:
            listed.append(site_of(one, argument="sites", words=words))
    return listed


class Runner:
    """Runs a model with edits.

    Nothing is left on the model, whether a run ends well or not: the pass either computes on the
    weights by itself or inside the library's own hook context.

    Example:
        >>> from mlp_interp import load_model
        >>> runner = Runner.of(load_model("nano"))
        >>> clean = runner.run(torch.tensor([[0, 5, 6]]))
        >>> silenced = runner.edited(clean, [Edit.set("2.mlp", 0.0)])
        >>> bool((silenced - clean.final).abs().max() > 0)
        True
    """

    def __init__(self, forward: Forward | HookForward) -> None:
        """Use a forward pass; see `of`."""
        self.forward = forward

    @classmethod
    def of(cls, model: Model) -> "Runner":
        """A runner for this model, on the fastest forward pass that is right for it."""
        return cls(forward_of(model))

    @property
    def weights(self) -> Weights:
        """The model's weights."""
        return self.forward.weights

    @cached_property
    def unembed(self) -> Unembed:
        """The model's readout."""
        return Unembed.of(self.weights.model)

    @torch.no_grad()
    def run(
        self,
        tokens: Any,
        *,
        sites: Site | str | Sequence[Site | str] = (),
        edits: Edit | Sequence[Edit] = (),
    ) -> Run:
        """Run tokens, with edits or without; keep every block's input, and what is at `sites`.

        Args:
            tokens: Token ids or texts, as in `run`.
            sites: Which activations to keep, as in `run`.
            edits: What to do on the way; those of one place in the order given.

        Raises:
            ValueError: The tokens are not ones that the model can take, a site cannot be kept, or
                an edit does not fit this model and these tokens.

        Example:
            >>> from mlp_interp import load_model
            >>> runner, tokens = Runner.of(load_model("nano")), torch.tensor([[0, 5, 6]])
            >>> run = runner.run(
            ...     tokens, sites=[Site("post", 1)], edits=[Edit.clamp("1.post", high=0.0)]
            ... )
            >>> bool(run["post", 1].max() <= 0), run.fired[0].times
            (True, 1)
        """
        tokens = self.weights.checked(tokens_to_run(self.weights.model, tokens))
        listed = edits_of(edits)
        warn_of_padding(self.weights, tokens, listed)
        return Run.record(self.forward, tokens, sites=kept_sites(self.weights, sites), edits=listed)

    @torch.no_grad()
    def edited(
        self, clean: Run, edits: Edit | Sequence[Edit]
    ) -> Float[Tensor, "batch pos d_model"]:
        """The final stream of the same tokens with `edits` applied, in the order given.

        Starts at the first edited block: everything below is as in the clean run. For what each
        edit did, and for activations, take `Run.edited`.

        Raises:
            ValueError: An edit does not fit the model and the run.
        """
        return clean.edited(edits, sites=()).final

    @torch.no_grad()
    def generate(
        self,
        tokens: Any,
        *,
        edits: Edit | Sequence[Edit] = (),
        where: Where = "all",
        max_new_tokens: int = 20,
        temperature: float | int = 0.0,
        top_k: int | None = None,
        seed: int | Sequence[int] = 0,
        eos: int | Literal["model"] | None = "model",
        use_cache: bool = True,
    ) -> Generation:
        """Continue prompts, with edits held on at every step.

        Args:
            tokens: Prompts of equal length (there is no padding): token ids or texts, as in `run`.
            edits: What to do on the way. Positions count in the whole text, new tokens included,
                negative ones from the end of the prompt; None is all positions.
            where: ``"new"`` keeps edits without positions of their own off the prompt: they apply
                where generated tokens are read (so the first new token is the model's own).
                ``"prompt"`` keeps them to the prompt.
            max_new_tokens: How many tokens to add at most.
            temperature: 0 takes the most likely token; else what the logits are divided by before
                one is drawn.
            top_k: Draw among the so many most likely tokens only; None for all.
            seed: Of the draws: one for all rows, or one for each. A row draws numbers of its own:
                with its own seed the same ones whatever else is in the batch and whatever is
                edited. torch's own random state is neither read nor changed.
            eos: The token that ends a text: ``"model"`` for the tokenizer's, None for no end. A
                text that has ended is filled up with it, until all have.
            use_cache: Keep keys and values of what has been read, so that a step runs one position
                only. Without it, and on models that the lean forward does not serve, a step runs
                the whole text; the tokens are the same.

        Returns:
            The texts, and what each edit did.

        Raises:
            ValueError: The tokens do not leave room for new ones in the model's context, an option
                is out of range, or an edit could never fire.

        Example:
            >>> from mlp_interp import load_model
            >>> runner, prompt = Runner.of(load_model("nano")), torch.tensor([[0, 5, 6]])
            >>> steer = Edit.add("1.resid_post", torch.ones(192), positions=[-1])
            >>> runner.generate(prompt, edits=[steer], max_new_tokens=4, eos=None).tokens.shape
            torch.Size([1, 7])
        """
        tokens = tokens_to_run(self.weights.model, tokens)
        sampling = Sampling(temperature, top_k, seed, len(tokens))
        return generate(
            self.forward,
            self.unembed,
            tokens,
            edits=edits,
            where=where,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            eos=eos,
            use_cache=use_cache,
        )
