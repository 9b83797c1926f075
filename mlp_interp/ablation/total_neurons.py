"""Total effects of single neurons: thousands of passes that differ in one vector a position.

What a neuron adds to the stream after its block is known without running the block, so passes begin
at the next one, as many of them together as give matrix products of full size.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from mlp_interp.ablation.baselines import StandIn
from mlp_interp.ablation.second_order import estimated
from mlp_interp.metrics import Effects
from mlp_interp.metrics.rows import batches, distributions, joined
from mlp_interp.models import Forward
from mlp_interp.models.unembed import Unembed
from mlp_interp.runs import Run, Runner
from mlp_interp.sites import Site

__all__ = ["estimated_changes", "neuron_changes"]

_TOGETHER = 2048  # tokens a pass: products are at full speed, and what a block holds stays small
_HELD = {False: 2**25, True: 2**26}  # numbers of changes; estimates cost a covariance each time


def neuron_changes(
    runner: Runner,
    clean: Run,
    groups: Mapping[str, Sequence[Site]],
    stand: StandIn,
    *,
    estimates: bool = False,
    progress: bool = False,
) -> Iterator[Float[Tensor, "some batch pos d_model"]]:
    """Changes of the normalised final stream when each neuron is removed in the forward pass.

    Args:
        runner: Of the model.
        clean: The run without, by the lean forward, with the neurons' activations.
        groups: Single neurons.
        stand: What stands in for them.
        estimates: Whether what is done with the changes costs as much for few as for many.
        progress: Show a progress bar.

    Yields:
        As many at a time, in the groups' order, as keep the changes small.
    """
    normalize, numbers = runner.unembed.normalize, clean.final.numel()
    normalized = normalize(clean.final)
    held: list[Tensor] = []
    with tqdm(total=len(groups), desc="total ablation", disable=not progress, leave=False) as bar:
        for streams in _final_streams(clean, [sites[0] for sites in groups.values()], stand):
            held.append(normalize(streams) - normalized)
            bar.update(len(streams))
            if sum(map(len, held)) * numbers >= _HELD[estimates]:
                yield torch.cat(held)
                held = []
    if held:
        yield torch.cat(held)


def _final_streams(
    clean: Run, neurons: Sequence[Site], stand: StandIn
) -> Iterator[Float[Tensor, "some batch pos d_model"]]:
    """Final streams without each neuron."""
    forward: Forward = clean.lean
    together = max(1, _TOGETHER // clean.tokens.numel())
    for whole, some in groupby(neurons, key=lambda site: site.whole):
        layer, own = whole.layer or 0, clean.at(whole)
        change = stand(whole, own) - own
        vectors, after = forward.weights.parameter(layer, "W_out"), clean.streams[layer + 1]
        for sites in batches(some, together):
            units = [site.unit for site in sites]
            written = change[..., units].movedim(-1, 0)[..., None] * vectors[units, None, None]
            ends = forward.run((after + written).flatten(0, 1), start=layer + 1)
            yield ends.unflatten(0, (len(units), -1))


def estimated_changes(
    unembed: Unembed,
    normalized: Float[Tensor, "batch pos d_model"],
    targets: Int[Tensor, "batch pos"],
    changes: Float[Tensor, "group batch pos d_model"],
    tolerance: float,
) -> Effects:
    """Effects ``[group, batch, pos]``, in second order where that is within `tolerance`."""
    changed, columns = changes.flatten(1, 2), []
    for rows, clean in distributions(unembed, normalized.flatten(0, 1), targets.flatten()):
        here = changed[:, rows]
        columns += estimated(clean, [lambda row, here=here: here[:, row]], tolerance)
    return Effects(*(x.unflatten(1, targets.shape) for x in joined(columns, dim=1)))
