"""Which tokens of a long list point where the likely ones do, and which are a set of their own."""

from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor

from mlp_interp.models import Weights, describe
from mlp_interp.models.finite import check_weights
from mlp_interp.models.indices import count, integers
from mlp_interp.models.options import checked_count, checked_number
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.padding import places, which_count
from mlp_interp.models.protocol import Model
from mlp_interp.models.unembed import mean_direction
from mlp_interp.models.vectors import unit
from mlp_interp.prompts.texts import padded_texts
from mlp_interp.prompts.tokenizing import token_strings
from mlp_interp.results import single, strings, to_numpy, variable
from mlp_interp.runs import Runner

__all__ = ["modes", "unforced"]


_PLACES = 64
"""Of which all logits are held at a time."""


@own_mode()
@torch.no_grad()
def modes(
    model: Model,
    texts: Any,
    *,
    attention_mask: Any = None,
    positions: int | list[int] | None = None,
    nucleus: float = 0.9,
    k: int = 100,
    cosine: float = 0.4,
    least: int = 3,
    own: float = 2.0,
    first: int = 1,
) -> xr.Dataset:
    """Sets of unlikely tokens that a stream raises by itself, not because of the likely ones.

    The likely tokens (the fewest with probability `nucleus`) fix part of the normalised stream: its
    projection onto their readout directions is the shortest vector that gives them their logits.
    What it gives to other tokens is *forced*: they point where the likely ones point. The rest of
    the stream gives the likely tokens nothing, and what it gives others is their *own*: ``logit =
    forced + own`` (of logits over their mean, without the bias ``b'`` and without a cap).
    A mode is a cluster of tokens of the top `k`, outside of the likely ones, whose own parts are
    large.

    A mode says that the stream has a direction along which these tokens are alike. Whether anything
    made it on purpose, ``z`` is about: how far the set's mean own part is from what it is at the
    other places of the same texts, in their standard deviations. Sets whose z is small are always
    there. With thousands of places a z of 4 comes by chance: tokens' own parts have heavy tails.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        texts: Tokens, a text or several, or a corpus. z wants at least some dozen places.
        attention_mask: 1 where text is, beside tokens.
        positions: At which positions to look for modes, negative ones from the end of each text;
            None for all that count. z is over all that count.
        nucleus: Share of the probability that the likely tokens have.
        k: How many of the likeliest tokens to take apart; the likely ones among them.
        cosine: Clusters are cut where the mean cosine of readout directions falls below.
        least: Tokens of a mode.
        own: Tokens count where their own part is larger than so many root mean squares of all
            tokens' own parts at that place.
        first: Position from which on tokens count.

    Returns:
        A Dataset over ``place`` (with ``prompt`` and ``pos``) and ``rank``: ``token``, ``logit``,
        ``forced``, ``own`` (logits), ``probability``, ``likely``, and ``cluster``, the number of
        the mode along ``mode``, -1 for none; and over ``mode``: ``mode_place``, ``mode_size``,
        ``mode_mass`` (probability), ``mode_own`` (mean, logits), ``mode_z`` and ``mode_tokens``
        (text). ``likely_tokens`` by place: how many there are, also beyond `k`.

    Raises:
        ValueError: Options out of range, positions that texts do not have, or as `run`.

    References:
        Chang & McCallum, "Softmax bottleneck makes language models unable to represent multi-mode
        word distributions", 2022. Finlayson et al., "Closing the curious case of neural text
        degeneration", 2023.

    Example:
        >>> from mlp_interp import load_corpus, load_model
        >>> model = load_model("nano")
        >>> corpus = load_corpus("nano", model, sequences=4, length=32)
        >>> found = modes(model, corpus, positions=-1, k=50)
        >>> found["own"].dims, bool((abs(found["own"].where(found["likely"], 0)) < 1e-3).all())
        (('place', 'rank'), True)
    """
    for name, share in {"nucleus": nucleus, "cosine": cosine}.items():
        checked_number(name, share, lambda x: 0 < x < 1, "a number between 0 and 1")
    count("least", least, least=2)
    checked_number("own", own, lambda x: 0 <= x < np.inf, "a number from 0")
    weights = Weights.of(model)
    checked_count(k, weights.d_vocab, "tokens")
    padded = padded_texts(model, texts, attention_mask)
    counts = which_count(model, padded.tokens, padded.real, first)
    asked = _asked(positions, counts, padded.real)
    check_weights(model)
    runner = Runner.of(model)
    directions = single(runner.unembed.weight) - single(mean_direction(weights)[0])[:, None]
    streams = _finals(runner, padded.tokens)[counts]
    rows, found, rest = asked[counts].tolist(), [], []
    # At all places that count, since z compares a set's own part with what it is elsewhere.
    for some in torch.arange(len(streams)).split(_PLACES):
        logits = single(runner.unembed.logits(streams[some]))
        normalized = single(runner.unembed.normalize(streams[some]))
        for n, likely in enumerate(_nuclei(logits, nucleus)):
            rest.append(unforced(normalized[n], directions, likely))
            if rows[some[n]]:
                one = _Place(normalized[n], rest[-1], logits[n], likely, directions, k)
                found.append((one, one.clusters(cosine=cosine, least=least, own=own)))
    chosen = torch.tensor(rows).nonzero()[:, 0].tolist()
    result = _dataset(model, found, chosen, torch.stack(rest), directions, counts.nonzero())
    attrs = {**padded.attrs, **describe(model), "analysis": "modes", "unit": "logits"}
    attrs |= {"nucleus": nucleus, "cosine": cosine, "least": least, "own": own, "first": first}
    about = "sets of tokens that streams raise by themselves"
    return result.assign_attrs(attrs, long_name=about, exact=1)


def unforced(
    stream: Float[Tensor, " d_model"],
    directions: Float[Tensor, "d_model token"],
    likely: Int[Tensor, " likely"],
) -> Float[Tensor, " d_model"]:
    """The stream less the shortest vector that gives the likely tokens their logits.

    Args:
        stream: Normalised.
        directions: The readout's, which may be centred.
        likely: Ids of the likely tokens, from one on.
    """
    # Tokens of one kind point almost alike: an orthonormal basis of those that are not.
    basis, sizes, _ = torch.linalg.svd(directions[:, likely].double(), full_matrices=False)
    basis = basis[:, sizes > 1e-6 * sizes[0]]
    return (stream.double() - basis @ (basis.T @ stream.double())).to(stream)


class _Place:
    """The likeliest tokens of one place, taken apart."""

    def __init__(
        self,
        stream: Float[Tensor, " d_model"],
        rest: Float[Tensor, " d_model"],
        logits: Float[Tensor, " token"],
        likely: Int[Tensor, " likely"],
        directions: Float[Tensor, "d_model token"],
        k: int,
    ) -> None:
        own = rest @ directions
        self.token = logits.topk(k).indices
        self.probability = logits.softmax(0)[self.token]
        self.logit = stream @ directions[:, self.token]
        self.own = own[self.token]
        self.forced = self.logit - self.own
        self.likely, self.nucleus = torch.isin(self.token, likely), len(likely)
        self.typical = own.square().mean().sqrt()
        self.directions = directions

    def clusters(self, *, cosine: float, least: int, own: float) -> list[Int[Tensor, " rank"]]:
        """Ranks of the tokens of each mode, the heaviest mode first."""
        some = ((self.own > own * self.typical) & ~self.likely).nonzero()[:, 0]
        if len(some) < least:
            return []
        rows = to_numpy(unit(self.directions[:, self.token[some]].T).double())
        names = fcluster(linkage(rows, "average", metric="cosine"), 1 - cosine, "distance")
        groups = [some[torch.from_numpy(names == name).to(some.device)] for name in set(names)]
        groups = [group for group in groups if len(group) >= least]
        return sorted(groups, key=lambda group: -float(self.probability[group].sum()))


def _finals(runner: Runner, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
    return torch.cat([runner.run(part).final for part in tokens.split(16)])


def _nuclei(logits: Float[Tensor, "place token"], share: float) -> list[Int[Tensor, " likely"]]:
    """The fewest tokens with such a share of the probability, of each place."""
    p, order = logits.softmax(-1).sort(-1, descending=True)
    sizes = ((p.cumsum(-1) - p) < share).sum(-1)
    return [row[: int(size)] for row, size in zip(order, sizes, strict=True)]


def _asked(positions: Any, counts: Tensor, real: Tensor | None) -> Tensor:
    """Which of the places that count are asked for.

    Raises:
        ValueError: None of them is, or as `places`.
    """
    if positions is None:
        return counts
    columns, meant = places(positions, counts.shape[1], real)
    asked = torch.zeros_like(counts)
    asked[:, list(columns)] = True if meant is None else meant
    if not bool((asked & counts).any()):
        listed = integers("positions", positions)
        raise ValueError(f"positions={list(listed or ())} are none that count; wanted others")
    return asked & counts


def _dataset(
    model: Model,
    found: list[tuple[_Place, list[Tensor]]],
    rows: list[int],
    rest: Float[Tensor, "place d_model"],
    directions: Float[Tensor, "d_model token"],
    where: Int[Tensor, "place 2"],
) -> xr.Dataset:
    clusters, of_mode = [], []
    for place, (one, groups) in enumerate(found):
        named = torch.full_like(one.token, -1)
        for group in groups:
            named[group] = len(of_mode)
            own = rest @ directions[:, one.token[group]].mean(1)
            of_mode.append({"place": place, **_mode(model, one, group, own, rows[place])})
        clusters.append(named)
    grid: dict[str, Any] = {
        name: torch.stack([getattr(one, name) for one, _ in found])
        for name in ("token", "logit", "forced", "own", "probability", "likely")
    }
    units = {"token": "token id", "probability": "fraction", "likely": "none", "cluster": "none"}
    variables: dict[str, Any] = {
        name: variable(("place", "rank"), value, unit=units.get(name, "logits"))
        for name, value in {**grid, "cluster": torch.stack(clusters)}.items()
    }
    likely = [one.nucleus for one, _ in found]
    variables["likely_tokens"] = variable("place", np.array(likely), unit="tokens")
    kinds = {"place": "none", "size": "tokens", "mass": "fraction", "own": "logits", "z": "none"}
    for name, kind in kinds.items():
        values = np.array([mode[name] for mode in of_mode], dtype=float)
        values = values.astype(int) if name in ("place", "size") else values
        variables[f"mode_{name}"] = variable("mode", values, unit=kind)
    variables["mode_tokens"] = ("mode", strings([mode["tokens"] for mode in of_mode]))
    at = to_numpy(where[rows])
    coords = {"prompt": ("place", at[:, 0]), "pos": ("place", at[:, 1])}
    return xr.Dataset(variables, coords)


def _mode(
    model: Model,
    one: _Place,
    group: Int[Tensor, " rank"],
    own: Float[Tensor, " place"],
    row: int,
) -> dict[str, Any]:
    """What there is to say of one mode, whose mean own part is given at all places."""
    elsewhere = torch.cat([own[:row], own[row + 1 :]])
    spread = elsewhere.std() if len(elsewhere) > 1 else own.new_tensor(torch.nan)
    text = token_strings(getattr(model, "tokenizer", None), one.token[group].tolist())
    return {
        "size": len(group),
        "mass": float(one.probability[group].sum()),
        "own": float(own[row]),
        "z": float((own[row] - elsewhere.mean()) / spread),
        "tokens": "|".join(text),
    }
