"""Path patching against three passes with plain hooks, one sender at a time, in float64."""

import pytest
import torch
from contrasts import CASES, contrast_of
from random_models import BACKENDS
from reference_paths import EARLY, SETS, Slow, close

from mlp_interp import paths


@pytest.mark.parametrize(("architecture", "backend", "processing", "direction"), CASES)
def test_every_value_is_that_of_three_hooked_passes(
    kind, architecture, processing, backend, direction
):
    model = kind(architecture, backend, processing, torch.float64)
    contrast = contrast_of()
    slow = Slow(model, contrast, direction)
    for freeze in ("all", "attention"):
        found = paths.path_patch(
            model, contrast, senders=EARLY, receivers=SETS, direction=direction, freeze=freeze
        )
        assert list(found.receiver.values) == list(SETS)
        assert float(found.check_everything) < 1e-10
        assert float(found.check_nothing) < 1e-10
        for name, receivers in SETS.items():
            for sender in EARLY:
                expected = slow([sender], receivers, freeze)
                close(found.raw.sel(receiver=name, sender=sender), expected)
        close(found.clean if direction == "noising" else found.corrupted, slow.metric(slow.run({})))


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
