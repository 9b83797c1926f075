"""Who sends and who receives: labels read and checked against a model."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from mlp_interp.interchange.graph import (
    LEVELS,
    LOGITS,
    check_own_keys,
    reads_at,
    writers,
    writes_at,
)
from mlp_interp.models import Weights
from mlp_interp.models.indices import distinct, each
from mlp_interp.residual.edited import edit_places
from mlp_interp.sites import EDITED, HEADS, Site, site_of

__all__ = [
    "Label",
    "Labels",
    "Receivers",
    "Senders",
    "Target",
    "check_range",
    "receivers_of",
    "senders_of",
    "targets_of",
    "texts_of",
]

Label = str | Site
Labels = Label | Sequence[Label] | Mapping[str, Label | Sequence[Label]]
"""A level, a label or site, several of these, or sets of them by name."""

_SET = ("q", "k", "v", "post", "mlp_out")
_SENDERS = "embed, 3.attn, L3H5, L3H5.q (or .k, .v), 3.mlp, L3N669"
_RECEIVERS = "3.attn, L3H5, L3H5.q (or .k, .v), 3.mlp, L3N669, logits"


class Target(NamedTuple):
    """An activation that a receiver's new input sets: q, k, v of a head, an MLP, a neuron.

    What an MLP or a neuron computes from its input is set in place of the input itself, which is
    the same and holds for every kind of MLP. `unit` is None for all heads, and for whole MLPs.
    """

    layer: int
    name: str
    unit: int | None

    def reads_at(self, *, parallel: bool) -> int:
        """When the receiver reads: what is written before, it sees."""
        return reads_at(self.name, self.layer, parallel=parallel)


@dataclass(frozen=True)
class Receivers:
    """A set of receivers whose inputs change together.

    Attributes:
        name: What a result calls it.
        targets: What their inputs set.
        logits: Whether the logits are among them.
        reads_at: When the last of them reads.
    """

    name: str
    targets: tuple[Target, ...]
    logits: bool
    reads_at: int

    @property
    def layers(self) -> list[int]:
        """Layers with receivers, in order."""
        return sorted({target.layer for target in self.targets})

    def at(self, layer: int) -> dict[str, list[int] | None]:
        """What is set in a block: heads or neurons by the activation's name; None for all."""
        here = [target for target in self.targets if target.layer == layer]
        units = {name: [t.unit for t in here if t.name == name] for name in _SET}
        return {
            name: None if None in chosen else sorted(u for u in chosen if u is not None)
            for name, chosen in units.items()
            if chosen
        }


@dataclass(frozen=True)
class Senders:
    """Components whose outputs are exchanged together.

    Attributes:
        name: What a result calls them.
        sites: Their sites.
    """

    name: str
    sites: tuple[Site, ...]

    @property
    def first(self) -> int:
        """When the first of them writes."""
        return min(writes_at(site) for site in self.sites)

    @property
    def place(self) -> tuple[int, int]:
        """Layer and head of a single sender; -1 where it has none, or where they are several."""
        site, *others = self.sites
        if others:
            return -1, -1
        layer, head = site.layer, site.head
        return -1 if layer is None else layer, -1 if head is None else head


def senders_of(weights: Weights, senders: Labels, receivers: Sequence[Receivers]) -> list[Senders]:
    """Read the senders.

    Raises:
        ValueError: There are none, one is unknown or the model lacks it, or it writes only after
            every receiver has read.
    """
    named = _named("senders", senders, weights)
    last = max(r.reads_at for r in receivers)
    groups = [
        Senders(name, tuple(_sender(weights, label) for label in labels))
        for name, labels in named.items()
    ]
    if isinstance(senders, str) and senders in LEVELS:
        return [group for group in groups if group.first < last]
    for group in groups:
        for site in group.sites:
            if writes_at(site) >= last:
                wanted = "; ".join(r.name for r in receivers[:4])
                raise ValueError(
                    f"senders={site.label!r} writes after the receivers have read ({wanted}"
                    f"{'; …' if len(receivers) > 4 else ''}); wanted one that writes before"
                )
    return groups


def receivers_of(weights: Weights, receivers: Labels) -> list[Receivers]:
    """Read the sets of receivers.

    Raises:
        ValueError: There are none, or one is unknown or the model lacks it.
    """
    if isinstance(receivers, Mapping) or (isinstance(receivers, str) and receivers in LEVELS):
        named = _named("receivers", receivers, weights)
        named = {name: chosen for name, chosen in named.items() if not _only_writes(name)}
        if isinstance(receivers, str):
            named[LOGITS] = [LOGITS]
    else:
        labels = list(distinct("receivers", texts_of(receivers)))
        named = {" + ".join(map(str, labels)): labels}
    return [_receivers(weights, name, labels) for name, labels in named.items()]


def _only_writes(label: str) -> bool:
    """Whether a component of a level reads nothing from the stream that others have written."""
    return label.startswith(("embed", "edit:"))


def check_range(weights: Weights, argument: str, site: Site) -> None:
    """Refuse a layer, head or neuron that the model lacks.

    Raises:
        ValueError: It lacks it.
    """
    if site.head is not None and site.name in ("q", "k", "v"):
        check_own_keys(weights, f"{argument}={site.label!r}", [site.name])
    weights.place(site, argument=argument)


def texts_of(labels: Label | Sequence[Label]) -> list[str]:
    """One label or site, or several, as labels."""
    return [one.label if isinstance(one, Site) else one for one in each(labels)]


def _named(argument: str, labels: Labels, weights: Weights) -> dict[str, list[str]]:
    if isinstance(labels, Mapping):
        named = {name: texts_of(x) for name, x in labels.items()}
    elif isinstance(labels, str):
        named = {label: [label] for label in _listed(weights, labels)}
    else:
        named = {label: [label] for label in distinct(argument, texts_of(labels))}
    empty = [name for name, chosen in named.items() if not chosen]
    if not named or empty:
        where = f" at {empty[0]!r}" if empty else ""
        raise ValueError(
            f"{argument}={labels!r} is empty{where}; wanted labels such as "
            f"{_SENDERS if argument == 'senders' else _RECEIVERS}, or {' or '.join(LEVELS)}"
        )
    return named


def _listed(weights: Weights, label: str) -> list[str]:
    """The labels at a level; else the label itself."""
    if label not in LEVELS:
        return [label]
    sites = writers(weights.n_layers, weights.n_heads, label, mlps=weights.has_mlps)
    sites += edit_places(weights)
    return [site.label for site in sorted(sites, key=writes_at)]


def _sender(weights: Weights, label: str) -> Site:
    site = site_of(label, argument="senders", words=LEVELS)
    known = site.name in ("embed", "attn_out", "mlp_out") or (
        site.head is not None and site.name in HEADS
    )
    if site.name in EDITED and site not in edit_places(weights):
        raise ValueError(f"senders={label!r}: no edit is held on the model there")
    known = known or site.name in EDITED
    if not known and not (site.neuron is not None and site.name == "post"):
        raise ValueError(f"senders={label!r} writes nothing; wanted such as {_SENDERS}")
    check_range(weights, "senders", site)
    return site


def _receivers(weights: Weights, name: str, labels: Sequence[str]) -> Receivers:
    if not labels:
        raise ValueError(f"receivers={list(labels)} is empty; wanted such as {_RECEIVERS}")
    targets: dict[Target, None] = {}
    for label in labels:
        if label != LOGITS:
            targets.update(dict.fromkeys(_targets(weights, label)))
    logits = LOGITS in labels
    times = [target.reads_at(parallel=weights.parallel) for target in targets]
    if logits:
        times.append(2 * weights.n_layers)
    return Receivers(name, tuple(targets), logits, max(times))


def _targets(weights: Weights, label: str) -> Iterable[Target]:
    site = site_of(label, argument="receivers", words=(*LEVELS, LOGITS))
    check_range(weights, "receivers", site)
    if site.name == "z" and site.head is not None:
        check_own_keys(weights, f"receivers={label!r}")
    single = site.neuron is not None or (site.name == "z" and site.head is not None)
    if site.name in ("attn_out", "mlp_out", "q", "k", "v") or single:
        return targets_of(replace(site, name="post") if site.name == "pre" else site)
    raise ValueError(f"receivers={label!r} reads nothing; wanted such as {_RECEIVERS}")


def targets_of(site: Site) -> list[Target]:
    """What a component's inputs set; nothing for the embedding."""
    if site.layer is None:
        return []
    if site.name in ("attn_out", "z"):
        return [Target(site.layer, name, site.head) for name in ("q", "k", "v")]
    return [Target(site.layer, site.name, site.neuron if site.head is None else site.head)]
