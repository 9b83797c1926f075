"""The one runner that applies edits: to a forward pass, a recorded run or a generation."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.edits.applying import Applier, Fired, Where
from mlp_interp.edits.edit import EDITABLE, Edit
from mlp_interp.models import Forward, HookForward, Weights, forward_of
from mlp_interp.runs.generate import Generation, Sampling, generate
from mlp_interp.sites import Site
from mlp_interp.unembed import Unembed

__all__ = ["Run", "Runner"]


@dataclass(frozen=True)
class Run:
    """A forward pass to compare with, to restart from, and to take values from.

    Attributes:
        tokens: What was run.
        streams: The stream at every block's input, and the final one last.
        seen: Activations at the sites that were asked for, as the model went on with them: edited,
            where the run was.
        fired: What each edit did, in the order given; empty where there were none.
    """

    tokens: Int[Tensor, "batch pos"]
    streams: tuple[Float[Tensor, "batch pos d_model"], ...]
    seen: dict[Site, Tensor]
    fired: tuple[Fired, ...] = ()

    @property
    def final(self) -> Float[Tensor, "batch pos d_model"]:
        """The final stream."""
        return self.streams[-1]

    def at(self, site: Site) -> Tensor:
        """The whole activation at a site.

        Raises:
            ValueError: The run did not keep it.
        """
        whole = Site(site.name, site.layer)
        if whole in self.seen:
            return self.seen[whole]
        layer = site.layer or 0
        if site.name == "resid_pre" and layer < len(self.streams) - 1:
            return self.streams[layer]
        kept = ", ".join(s.label for s in self.seen) or "no sites"
        raise ValueError(f"site={whole.label!r} was not kept by the run, which has {kept}")


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
    def of(cls, model: Any) -> "Runner":
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
        tokens: Int[Tensor, "batch pos"],
        *,
        sites: Sequence[Site] = (),
        edits: Sequence[Edit] = (),
    ) -> Run:
        """Run tokens, with edits or without; keep every block's input, and what is at `sites`.

        Args:
            tokens: Token ids.
            sites: Which activations to keep, whole, whatever head or neuron a site names: the
                sites that can be edited.
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
            >>> bool(run.seen[Site("post", 1)].max() <= 0), run.fired[0].times
            (True, 1)
        """
        tokens = self.weights.checked(tokens)
        applier = Applier(edits, self.weights, (tokens.shape[0], tokens.shape[1]))
        wanted = {(site.name, site.layer or 0): self._kept(site) for site in sites}
        streams: list[Tensor] = []
        seen: dict[Site, Tensor] = {}

        def observe(name: str, layer: int, x: Tensor) -> Tensor:
            x = applier(name, layer, x)
            if name == "resid_pre":
                streams.append(x)
            if (name, layer) in wanted:
                seen[wanted[name, layer]] = x
            return x

        patterns = applier.patterns | {layer for name, layer in wanted if name == "pattern"}
        embedded = self.forward.embed(tokens, observe=observe)
        streams.append(self.forward.run(embedded, observe=observe, patterns=patterns))
        applier.check()
        return Run(tokens, tuple(streams), seen, applier.fired)

    def _kept(self, site: Site) -> Site:
        layers = self.weights.n_layers
        if site.name not in EDITABLE or (site.layer or 0) >= layers:
            raise ValueError(
                f"site={site.label!r} cannot be kept; wanted one of {', '.join(EDITABLE)} at "
                f"layers 0 to {layers - 1}"
            )
        return Site(site.name, site.layer)

    @torch.no_grad()
    def edited(self, clean: Run, edits: Sequence[Edit]) -> Float[Tensor, "batch pos d_model"]:
        """The final stream of the same tokens with `edits` applied, in the order given.

        Starts at the first edited block: everything below is as in the clean run. For what each
        edit did, and for activations, `run` the tokens with the edits.

        Raises:
            ValueError: `clean` was run with edits, or an edit does not fit the model and the run.
        """
        if clean.fired:
            raise ValueError(
                f"clean was run with {len(clean.fired)} edits of its own; wanted a run without"
            )
        if not edits:
            return clean.final
        applier = Applier(edits, self.weights, (clean.tokens.shape[0], clean.tokens.shape[1]))
        start = applier.first
        if start < 0:
            stream, start = self.forward.embed(clean.tokens, observe=applier), 0
        else:
            stream = clean.streams[start]
        final = self.forward.run(stream, start=start, observe=applier, patterns=applier.patterns)
        applier.check()
        return final

    @torch.no_grad()
    def logits(self, run: Run) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits of a run at every position, up to a constant per position on raw weights."""
        return self.unembed.logits(run.final)

    @torch.no_grad()
    def generate(
        self,
        tokens: Int[Tensor, "batch pos"],
        *,
        edits: Sequence[Edit] = (),
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
            tokens: Prompts of equal length (there is no padding).
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
