"""Many facts written at once, over several layers: the closed form of MEMIT."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mlp_interp.edits import Edit
from mlp_interp.models.indices import indices
from mlp_interp.models.options import checked_number
from mlp_interp.models.own_mode import in_own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.rewrites.facts import (
    Fact,
    Placed,
    Prefixes,
    Rows,
    about,
    continued,
    placed,
    prefixes_of,
    texts_in,
)
from mlp_interp.rewrites.keys import Keys, checked_model
from mlp_interp.rewrites.making import Part, check_fact, rewrite_of, warn_unless_said
from mlp_interp.rewrites.result import Rewrite, edits_of_parts
from mlp_interp.rewrites.values import Found, Search, States, checked_search, find_value
from mlp_interp.runs import Runner
from mlp_interp.sites import Site

__all__ = ["rewrite_many"]


@in_own_mode
@torch.no_grad()
def rewrite_many(
    model: Model,
    facts: Sequence[Sequence[str]],
    *,
    layers: int | Sequence[int],
    keys: xr.Dataset,
    others: float | int = 0.1,
    prefixes: Prefixes = 8,
    preserve: Sequence[str] = (),
    ridge: float | int = 1e-4,
    search: Search = Search(),
    seed: int = 0,
) -> Rewrite:
    """Write several facts at once, each layer taking its share of the change.

    For each fact a change δ of the stream that leaves the last of the layers is looked for, as in
    `rewrite`. Then layer by layer, from the first, what is still missing there of every fact is
    shared out among the layers left: ``W ← W + Uᵀ R`` with ``U = (λI + K C⁻¹ Kᵀ)⁻¹ K C⁻¹``, rows of
    ``K`` being the facts' keys with the layers before changed already, those of ``R`` the shares.
    With one layer and ``others=0`` this is `rewrite`.

    Args:
        model: The model; it is not changed. `rewritten` changes it for a while.
        facts: ``(subject, prompt, target)`` of each.
        layers: The layers, in any order.
        keys: What `associations` gave for all of them.
        others: How much other keys count against the facts: ``λ``, as a share of the neurons, which
            is what ``kᵀC⁻¹k`` is on average. Of a fact with such a key ``1 / (1 + others)`` is
            written. At 0 all facts are written in full, and no two may have one key.
        prefixes: As in `rewrite`, the same for all facts.
        preserve: As in `rewrite`; each goes with the facts whose subject it names.
        ridge: As in `rewrite`.
        search: As in `rewrite`.
        seed: As in `rewrite`.

    Returns:
        The `Rewrite`, with a term for each fact in each layer.

    Raises:
        ValueError: As `rewrite`, the text naming the fact; no facts, one fact twice, or two with
            one subject and ``others=0``.

    Warns:
        UserWarning: As `rewrite`, once for each fact.

    References:
        Meng et al., "Mass-Editing Memory in a Transformer", 2023, section 4.

    Example:
        >>> from mlp_interp import load_corpus, load_model
        >>> from mlp_interp.rewrites import associations
        >>> model = load_model("nano")
        >>> keys = associations(model, load_corpus("nano", model, sequences=16), layers=[0, 1])
        >>> found = rewrite_many(
        ...     model,
        ...     [
        ...         ("France", "The capital of France is", " Rome"),
        ...         ("Japan", "The capital of Japan is", " Oslo"),
        ...     ],
        ...     layers=[0, 1],
        ...     keys=keys,
        ... )
        >>> found
        Rewrite('The capital of France is' -> ' Rome' and 1 more; layers 0, 1)
    """
    weights = checked_model(model, "rewrite_many")
    chosen = sorted(indices("layers", layers, weights.n_layers))
    preserve = texts_in("preserve", preserve)
    checked_search(search)
    others = checked_number("others", others, lambda x: 0 <= x < math.inf, "a finite number from 0")
    listed = _checked(model, facts, others)
    runner = Runner.of(model)
    for n, fact in enumerate(listed):
        check_fact(runner, fact, chosen[-1], what=f"facts[{n}].")
    held = {layer: Keys.of(keys, weights, layer, ridge) for layer in chosen}
    kept = _kept(model, listed, preserve)
    texts = prefixes_of(runner, prefixes, seed=seed)
    rows = [continued(model, fact, texts) for fact in listed]
    wanted = _Wanted.of(runner, rows, kept, chosen[-1], search)
    parts: dict[int, Part] = {}
    for left, layer in zip(range(len(chosen), 0, -1), chosen, strict=True):
        edits = edits_of_parts(weights, {n: (part.u, part.delta) for n, part in parts.items()})
        seen, missing = wanted.missing(runner, rows, layer, edits)
        u = _readers(held[layer], seen.mean(1), others)
        parts[layer] = Part(held[layer], u, missing / left, seen)
    made = rewrite_of(
        runner,
        listed,
        parts,
        wanted.found,
        sizes=wanted.sizes,
        attrs={
            "analysis": "rewrite_many",
            "exact": 0,
            "approximation": "values are searched for, and other keys known by their moments",
            "prefixes": len(texts),
            "preserve": "\n".join(preserve),
            **vars(search),
            "others": float(others),
            "ridge": float(ridge),
            "seed": int(seed),
        },
    )
    warn_unless_said(runner, made, listed)
    return made


def _checked(model: Model, facts: Sequence[Sequence[str]], others: float | int) -> list[Placed]:
    listed = isinstance(facts, Iterable) and not isinstance(facts, str | Fact)
    if not listed or not len(facts := list(facts)):
        raise ValueError(f"facts={facts!r}; wanted a list of (subject, prompt, target)")
    listed = [placed(model, fact, what=f"facts[{n}].") for n, fact in enumerate(facts)]
    for name, several in (("prompt", True), ("subject", others == 0)):
        given = [getattr(fact.fact, name) for fact in listed]
        if several and len({*given}) < len(given):
            raise ValueError(
                f"facts have {name}s {given}, some of them twice; wanted each once"
                + ("" if name == "prompt" else ", or others above 0")
            )
    return listed


def _kept(model: Model, facts: Sequence[Placed], preserve: Sequence[str]) -> list[Rows | None]:
    """The preserved prompts of each fact."""
    subjects = [fact.fact.subject for fact in facts]
    for text in preserve:
        if not any(subject in text for subject in subjects):
            raise ValueError(f"preserve={text!r} names none of the subjects {subjects}")
    return [about(model, s, [text for text in preserve if s in text]) for s in subjects]


def _readers(
    held: Keys, keys: Float[Tensor, "fact d_mlp"], others: float | int
) -> Float[Tensor, "fact d_mlp"]:
    """``(λI + K C⁻¹ Kᵀ)⁻¹ K C⁻¹``."""
    keys = keys.double()
    solved = held.solve(keys)
    load = others * keys.shape[1] * torch.eye(len(keys), dtype=keys.dtype)
    return torch.linalg.solve(load + keys @ solved.T, solved)


@dataclass(frozen=True)
class _Wanted:
    """Where the stream that leaves the last layer is to be at each subject.

    Attributes:
        layer: The last layer.
        stream: The mean over contexts, and the change.
        found: How the changes were found.
        sizes: How long what the MLP writes there is.
    """

    layer: int
    stream: Float[Tensor, "fact d_model"]
    found: list[Found]
    sizes: list[float]

    @classmethod
    def of(
        cls,
        runner: Runner,
        rows: Sequence[Rows],
        kept: Sequence[Rows | None],
        layer: int,
        search: Search,
    ) -> "_Wanted":
        """Look for a change of every fact."""
        streams, changes, sizes = [], [], []
        for some, preserved in zip(rows, kept, strict=True):
            texts = States.of(runner, some, layer)
            held = None if preserved is None else States.of(runner, preserved, layer)
            found = find_value(runner, layer, texts, held, search)
            streams.append(_left(texts) + found.delta.double().cpu())
            changes.append(found)
            sizes.append(float(texts.value.double().mean(0).norm()))
        return cls(layer, torch.stack(streams), changes, sizes)

    def missing(
        self, runner: Runner, rows: Sequence[Rows], layer: int, edits: Sequence[Edit]
    ) -> tuple[Float[Tensor, "fact context d_mlp"], Float[Tensor, "fact d_model"]]:
        """A layer's keys with edits below it, and how far the streams are from where they belong.

        Returns:
            Keys and what is missing, both in double precision.
        """
        keys, streams = [], []
        sites = [Site(name, n) for n in {layer, self.layer} for name in ("post", "mlp_out")]
        for some in rows:
            run = runner.run(some.tokens, sites=sites, edits=edits)
            keys.append(States.of_run(run, some, layer).key.double().cpu())
            streams.append(_left(States.of_run(run, some, self.layer)))
        return torch.stack(keys), self.stream - torch.stack(streams)


def _left(texts: States) -> Float[Tensor, " d_model"]:
    """The stream at the subject, averaged over texts."""
    at = torch.arange(len(texts.leaves), device=texts.leaves.device)
    return texts.leaves[at, texts.rows.subject].double().mean(0).cpu()
