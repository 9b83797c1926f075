"""Path patching against three passes with plain hooks, one sender at a time, in float64."""

import pytest
import torch
from contrasts import contrast_of, exactness
from random_models import ARCHITECTURES, BACKENDS, PROCESSINGS, pairwise
from reference_paths import EARLY, SETS, Slow, close

from mlp_interp import paths

FEW = pairwise(ARCHITECTURES, BACKENDS, PROCESSINGS, ("denoising", "noising"), together=1)


@pytest.mark.parametrize(("architecture", "backend", "processing", "direction"), FEW)
def test_every_value_is_that_of_three_hooked_passes(
    kind, architecture, processing, backend, direction
):
    model = kind(architecture, backend, processing, torch.float64)
    contrast = contrast_of()
    slow = Slow(model, contrast, direction)
    atol = exactness(architecture, backend)
    sets, early = SETS, EARLY
    if architecture == "llama":  # whose heads share keys and values
        sets = {name: [x for x in labels if not _shared(x)] for name, labels in SETS.items()}
        early = [label for label in EARLY if not _shared(label)]
    for freeze in ("all", "attention"):
        found = paths.path_patch(
            model, contrast, senders=early, receivers=sets, direction=direction, freeze=freeze
        )
        assert list(found.receiver.values) == list(sets)
        assert float(found.check_everything) < atol
        assert float(found.check_nothing) < atol
        # Of every pair one of the two ways to freeze has a pass of its own.
        for number, (name, receivers) in enumerate(sets.items()):
            for sender in early[(number + (freeze == "all")) % 2 :: 2]:
                expected = slow([sender], receivers, freeze)
                close(found.raw.sel(receiver=name, sender=sender), expected, atol=atol)
        own = found.clean if direction == "noising" else found.corrupted
        close(own, slow.metric(slow.run({})), atol=atol)


def _shared(label):
    """Whether a label names single keys or values, or a head with its own."""
    return label.endswith((".k", ".v")) or label == "L2H0"


@pytest.mark.parametrize("architecture", ["parallel", "sequential"])
@pytest.mark.parametrize("freeze", ["all", "attention"])
def test_groups_and_single_positions_too(kind, architecture, freeze):
    """Senders exchanged together, also where one follows another, and positions on both sides."""
    model = kind(architecture, BACKENDS[0], "raw", torch.float64)
    contrast = contrast_of(differ=(1, 3))
    slow = Slow(model, contrast)
    groups = {
        "heads": ["L0H0", "L0H3", "L1H1.q", "L1H1.k"],
        "through": ["embed", "L0H2", "L1N3", "L1N4"],
        "mlps": ["0.mlp", "1.mlp", "L0N2"],
        "late": ["1.attn", "L1H2", "L0N60"],
    }
    for receivers, hear in ((SETS["mixed"], [2, 6]), (SETS["with logits"], [1])):
        found = paths.path_patch(
            model,
            contrast,
            senders={name: x for name, x in groups.items() if name != "heads"},
            receivers=receivers,
            positions=[-1, 3],
            receiver_positions=hear,
            freeze=freeze,
        )
        assert list(found.pos.values) == [6, 3]
        for name in found.sender.values:
            for position in found.pos.values:
                where = slice(int(position), int(position) + 1)
                expected = slow(groups[name], receivers, freeze, where, hear)
                close(found.raw.sel(sender=name, pos=position)[0], expected)
    found = paths.path_patch(model, contrast, senders=groups, receivers="logits", freeze=freeze)
    for name in ("through", "mlps", "late"):
        close(found.raw.sel(sender=name)[0], slow(groups[name], ["logits"], freeze))
