"""Total ablation: take components away in the forward pass, so that later layers react."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby
from typing import Any, Literal

import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from mlp_interp.ablation.baselines import Baseline, StandIn, stand_in
from mlp_interp.ablation.effects import account
from mlp_interp.ablation.groups import Groups, resolve, single_neurons
from mlp_interp.ablation.second_order import check_method, exactness
from mlp_interp.ablation.total_neurons import estimated_changes, neuron_changes
from mlp_interp.edits import Edit
from mlp_interp.edits.actions import Set
from mlp_interp.metrics import Effects
from mlp_interp.metrics.rows import joined, next_tokens, of_text, read_changes
from mlp_interp.models import Forward, Weights, describe
from mlp_interp.models.padding import which_count
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.texts import padded_texts
from mlp_interp.runs import Run, Runner
from mlp_interp.runs.effects import stream_changes
from mlp_interp.sites import Site

__all__ = [
    "ablate_total",
    "edits_for",
    "read_later",
    "read_sites",
    "sites_to_keep",
    "total_changes",
    "total_effects",
]

_WHOLE = ("embed", "attn_out", "mlp_out")
_EDITED = (*_WHOLE, "z", "post")
_OF_MLP, _OF_ATTENTION = ("mlp_out", "post", "b_out"), ("attn_out", "z", "b_O")
_SUMS = {"pos_embed": "resid_pre", "b_O": "attn_out", "b_out": "mlp_out"}


@torch.no_grad()
def ablate_total(
    model: Model,
    tokens: Any,
    groups: Groups = "component",
    *,
    attention_mask: Any = None,
    first: int = 1,
    baseline: Baseline = "zero",
    method: Literal["exact", "second_order"] = "exact",
    tolerance: float = 0.1,
    seed: int = 0,
    progress: bool = False,
) -> xr.Dataset:
    """What the prediction loses when components are removed in the forward pass.

    Later layers read the ablated stream, so this is the direct effect (`ablate_direct` with
    ``norm="recompute"``) plus what goes through later layers. Each group restarts from its first
    ablated layer, on the clean run's stream.

    Args:
        model: The model.
        tokens: Tokens ``[batch, pos]``, padded or not, texts, or a list of token ids for each.
        groups: What to take away: a level, a list of components (each alone), or named sets.
        attention_mask: 1 where text is, 0 where padding is; None tells it by the rule of
            `mlp_interp.models.padding`. Each text's numbers are those that it has alone.
        first: Position of each text from which on components are taken away, and count in means.
            1 leaves out the first, which models attend to when there is nothing to attend to, and
            BOS wherever it stands: what they write there is hundreds of times as large as
            elsewhere, and a mean with it is no mean of the others. 0 takes all.
        baseline: What stands in: ``"zero"``, the ``"mean"`` of the clean run over all tokens that
            count, or ``"resample"``, the clean activation at the same position of another
            sequence, which wants texts of one length.
        method: ``"exact"``, or, for single neurons only, ``"second_order"``: as in `ablate_direct`,
            the effect of the change of the final stream, which is always that of a pass of its own.
        tolerance: Largest relative error of the KL that ``"second_order"`` may make.
        seed: Which sequences are resampled.
        progress: Show a progress bar.

    Returns:
        A Dataset as of `ablate_direct`; texts begin at position 0, and padding is NaN.

    Raises:
        ValueError: Unknown components or options, overlapping groups, tokens of the wrong shape.

    Example:
        >>> from mlp_interp import load_model
        >>> result = ablate_total(load_model("nano"), torch.arange(40).reshape(4, 10), ["0.mlp"])
        >>> result.kl.dims, result.sizes["pos"]
        (('component', 'prompt', 'pos'), 10)
    """
    texts = padded_texts(model, tokens, attention_mask)
    runner = Runner.of(model)
    named = resolve(runner.weights, groups)
    check_method(model, method, tolerance, single_neurons=single_neurons(named))
    counts = which_count(model, texts.tokens, texts.real, first)
    stand = stand_in(baseline, counts, seed=seed, real=texts.real)
    clean = runner.run(texts.tokens, sites=sites_to_keep(runner.weights, named))
    bound = tolerance if method == "second_order" else None
    effects = total_effects(
        runner, clean, named, stand, real=texts.real, tolerance=bound, progress=progress
    )
    return account(
        effects,
        named,
        positions=range(texts.tokens.shape[1]),
        counts=counts,
        attrs={
            **texts.attrs,
            **describe(model),
            "analysis": "total ablation",
            **exactness(method, tolerance),
            "method": method,
            "engine": runner.forward.engine,
            "baseline": baseline,
            "first": first,
            "seed": seed,
        },
    )


def total_effects(
    runner: Runner,
    clean: Run,
    groups: Mapping[str, tuple[Site, ...]],
    stand: StandIn,
    *,
    real: Bool[Tensor, "batch pos"] | None = None,
    tolerance: float | None = None,
    progress: bool = False,
) -> Effects:
    """Effects of removing each group in the forward pass, ``[component, batch, pos]``.

    With a tolerance, single neurons' are of second order where that is within it.
    """
    if isinstance(runner.forward, Forward) and single_neurons(groups):
        many = tolerance is not None
        changes = neuron_changes(runner, clean, groups, stand, estimates=many, progress=progress)
    else:
        members = tqdm(groups.values(), desc="total ablation", disable=not progress, leave=False)
        edits = (edits_for(runner.weights, clean, sites, stand) for sites in members)
        changes = stream_changes(runner, clean, edits)
    unembed, targets = runner.unembed, next_tokens(clean.tokens, real)
    asked = unembed, unembed.normalize(clean.final), targets
    if tolerance is None:
        found = [read_changes(*asked, some) for some in changes]
    else:
        found = [estimated_changes(*asked, some, tolerance) for some in changes]
    return of_text(joined(found), real)


def total_changes(
    runner: Runner, clean: Run, groups: Sequence[tuple[Site, ...]], stand: StandIn
) -> Float[Tensor, "group batch pos d_model"]:
    """Changes of the normalised final stream when each group is removed in the forward pass."""
    normalize, normalized = runner.unembed.normalize, runner.unembed.normalize(clean.final)
    changes = normalized.new_empty(len(groups), *normalized.shape)
    for i, final in enumerate(_final_streams(runner.weights, clean, groups, stand)):
        changes[i] = normalize(final) - normalized
    return changes


def read_later(runner: Runner, sites: Sequence[Site]) -> bool:
    """Whether anything but the final norm reads what these components add to the stream.

    Of one whose answer is no the total effect is the direct one.
    """
    weights = runner.weights
    if not isinstance(runner.forward, Forward) or weights.post_norms:
        return True  # somebody's hooks may read it; a norm of the block's own output does
    last = (*_OF_MLP, *_OF_ATTENTION) if weights.parallel else _OF_MLP
    return any(site.layer != weights.n_layers - 1 or site.name not in last for site in sites)


def _final_streams(
    weights: Weights, clean: Run, groups: Iterable[tuple[Site, ...]], stand: StandIn
) -> Iterator[Float[Tensor, "batch pos d_model"]]:
    """Final streams without each group; one that begins with the group before goes on from it."""
    done, run = (), clean
    for sites in groups:
        if sites[: len(done)] != done:
            done, run = (), clean
        new, done = sites[len(done) :], sites
        after = 1 + max((site.layer or 0 for site in sites), default=-1)
        # Where the next may go on.
        kept = _writers(weights, after) if after < weights.n_layers else ()
        run = run.edited(edits_for(weights, clean, new, stand), sites=kept)
        yield run.final


def read_sites(groups: Mapping[str, Sequence[Site]]) -> list[Site]:
    """Whole activations that the clean run must keep so that `edits_for` has stand-ins."""
    sites = (site.whole for members in groups.values() for site in members)
    return [site for site in dict.fromkeys(sites) if site.name in _EDITED]


def sites_to_keep(weights: Weights, groups: Mapping[str, Sequence[Site]]) -> list[Site]:
    """`read_sites`, and what their blocks write: where a pass leaves there, it runs no more."""
    sites = read_sites(groups)
    written = (_writers(weights, site.layer) for site in sites if site.layer is not None)
    return list(dict.fromkeys([*sites, *chain.from_iterable(written)]))


def _writers(weights: Weights, layer: int) -> list[Site]:
    return [Site(name, layer) for name in weights.outputs]


def edits_for(weights: Weights, clean: Run, sites: Sequence[Site], stand: StandIn) -> list[Edit]:
    """Edits that take `sites` away and put their stand-ins in their place."""
    ordered = sorted(sites, key=lambda s: (-1 if s.layer is None else s.layer, s.name))
    runs = groupby(ordered, key=lambda site: site.whole)
    return [_edit(weights, clean, whole, tuple(run), stand) for whole, run in runs]


def _edit(
    weights: Weights, clean: Run, whole: Site, sites: tuple[Site, ...], stand: StandIn
) -> Edit:
    if whole.name in _EDITED:
        replacement = stand(whole, clean.at(whole))
        # Where tokens do not count, activations are those of the ablated run, not of the clean one.
        where = None if bool(stand.counts.all()) else stand.at(replacement)
        if whole.name in _WHOLE:
            return Edit(whole, Set(replacement, where))
        units = tuple(site.unit for site in sites)
        return Edit(whole, Set(replacement[:, :, list(units)], where), units=units)
    # Positions and biases are no activations of their own: take them out of the sum they are in.
    value = _constant(weights, clean, whole)
    place = Site(_SUMS[whole.name], whole.layer or 0)
    return Edit.add(place, stand(whole, value) - value)


def _constant(weights: Weights, clean: Run, site: Site) -> Float[Tensor, "batch pos d_model"]:
    shape = clean.final.shape
    if site.name == "pos_embed":
        return weights.W_pos[: shape[1]].expand(shape)
    return weights.parameter(site.layer or 0, site.name).expand(shape)
