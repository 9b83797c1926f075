"""`reachable_share`: how many sets of each size can be had, and by how much they lead."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Int
from tqdm.auto import tqdm

from mlp_interp import corpus as corpora
from mlp_interp.corpus import SweepOptions
from mlp_interp.corpus.reducers import quantiles
from mlp_interp.models import describe
from mlp_interp.models.indices import count, indices
from mlp_interp.models.options import checked_seed
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.padding import Padded, which_count
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.texts import padded_texts
from mlp_interp.reach._law import largest_set, needed_dimension, share_by_law
from mlp_interp.reach._margin import Margin
from mlp_interp.reach._own_lists import OwnGaps
from mlp_interp.reach._reachable import checked_tolerance
from mlp_interp.reach._readout import Readout
from mlp_interp.reach._solve import solved
from mlp_interp.results import described, variable

__all__ = ["reachable_share"]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@own_mode()
@torch.no_grad()
def reachable_share(
    model: Model,
    k: int | Sequence[int] = (1, 5, 10, 20),
    *,
    n: int = 64,
    pool: Literal["all", "seen"] | Any = "all",
    corpus: Any = None,
    exclude: int | str | Sequence[int | str] = (),
    tolerance: float = 0.05,
    rounds: int = 12,
    seed: int = 0,
    first: int = 1,
    progress: bool = False,
    sweep: SweepOptions = SweepOptions(),
) -> xr.Dataset:
    """Which share of random sets of `k` tokens can be the top of the ranking, for each `k`.

    Sets are drawn at random and asked of `reachable`. Beside the share stands the one that a
    readout of independent Gaussian rows of this size would have (`needed_dimension`), and beside
    the margins of random sets, with a corpus, the gaps by which the model's own lists lead there:
    what a list could lead by, and what lists do lead by. A share of one says that no list of this
    length is ruled out by the width of the stream; not that the model ever makes it. Random sets
    are the hardest: tokens that a text has at one place are alike, and can be had together sooner.

    Args:
        model: As of `reachable`.
        k: How many tokens, one size or several.
        n: Sets of each size.
        pool: What they are drawn from: ``"all"`` tokens, those ``"seen"`` in the corpus, or ids.
        corpus: A `Corpus`; tokens ``[sequence, pos]``, padded or not; texts. None for none.
        exclude: Tokens, by id or text, one or several, that are in no list, such as those that pad
            the vocabulary.
        tolerance: How exact margins are, logits.
        rounds: As of `reachable`. Few sets need more, and those take long; they stay undecided.
        seed: Of the sets; those of one size do not depend on which others are asked for.
        first: Position of each text from which on the model's own lists count.
        progress: Show a bar.
        sweep: Batches, where finished shards are kept, on what machines.

    Returns:
        A Dataset along ``k``: ``share`` (sets proven reachable), ``share_se`` (the standard
        deviation of the share given what was drawn, every share being as likely before: not zero
        where all sets agree), ``undecided`` (share of sets that are proven neither way; the share
        is that much larger at most), ``margin_quantile`` (logits; a set that is not proven to be
        reachable counts as 0), ``margin`` ``[k, set]``, ``needed`` (dimensions by the law) and
        ``law`` (the share by it), ``own_gap_quantile`` (logits between the `k`-th of the model's
        list and the next, over all positions of the corpus, right to 2.3%; NaN without a corpus);
        ``dimension`` and ``law_k`` (the largest size that the law allows, up to half of all tokens)
        in attrs.

    Raises:
        ValueError: Sizes that are not from 1 to the number of tokens that can be drawn, or leave no
            rival; ``pool="seen"`` without a corpus, or ids that there are not or are excluded;
            other options out of range; or as `reachable` and `sweep`.

    References:
        As `reachable` and `needed_dimension`.

    Example:
        >>> from mlp_interp import load_model
        >>> found = reachable_share(load_model("nano"), [1, 10], n=4)
        >>> found["share"].values.tolist(), bool(found["margin"].min() > 1)
        ([1.0, 1.0], True)
    """
    count("n", n)
    count("rounds", rounds)
    tolerance = checked_tolerance(tolerance)
    checked_seed(seed)
    readout = Readout.of(model, exclude)
    texts = None if corpus is None else padded_texts(model, corpus)
    if texts is not None:
        which_count(model, texts.tokens, texts.real, first)
    drawn_from = _pool(readout, pool, texts)
    sizes = _sizes(readout, k, len(drawn_from))
    margins: list[list[Margin]] = []
    for size in sizes:
        draws = np.random.default_rng([seed, size])
        sets = np.stack([draws.choice(drawn_from, size, replace=False) for _ in range(n)])
        margins.append(
            solved(
                readout,
                sets,
                ordered=False,
                tolerance=tolerance,
                decide=False,
                rounds=rounds,
                each=_bar(f"sets of {size}", progress),
            )
        )
    result = _dataset(readout, sizes, margins)
    excluded = tuple(np.flatnonzero(~readout.rivals).tolist())
    data, attrs = _own_gaps(
        model, texts, OwnGaps(sizes=sizes, exclude=excluded, first=first), sweep
    )
    about = {
        "analysis": "reachable share",
        "unit": "share",
        "exact": 0,
        "approximation": "a sample of sets, each decided to a tolerance",
        "errors": "standard deviation over draws of sets",
        "pool": pool if isinstance(pool, str) else f"{len(drawn_from)} ids",
        "n": n,
        "seed": seed,
        "tolerance": tolerance,
        "rounds": rounds,
        "dimension": readout.dimension,
        "law_k": largest_set(int(readout.rivals.sum()), readout.dimension),
        **({"exclude": list(excluded)} if excluded else {}),
    }
    return result.assign(own_gap_quantile=data).assign_attrs({**attrs, **describe(model), **about})


def _pool(readout: Readout, pool: Any, texts: Padded | None) -> Int[np.ndarray, " token"]:
    """Ids that sets are drawn from."""
    if isinstance(pool, str):
        if pool not in ("all", "seen"):
            raise ValueError(f"pool={pool!r}; wanted 'all', 'seen' or token ids")
        if pool == "all":
            return np.flatnonzero(readout.rivals)
        if texts is None:
            raise ValueError("pool='seen' without a corpus; wanted one")
        tokens = texts.tokens if texts.real is None else texts.tokens[texts.real]
        seen = tokens.unique().numpy()
        return seen[readout.rivals[seen]]
    ids = np.array(indices("pool", pool, readout.unembed.d_vocab))
    if not readout.rivals[ids].all():
        raise ValueError(f"pool has {ids[~readout.rivals[ids]].tolist()}, which exclude leaves out")
    return ids


def _sizes(readout: Readout, k: Any, drawn_from: int) -> tuple[int, ...]:
    plain = k.tolist() if hasattr(k, "tolist") else k
    listed = list(plain) if isinstance(plain, Iterable) else [plain]
    if not listed:
        raise ValueError("k is empty; wanted at least one size")
    most = min(drawn_from, int(readout.rivals.sum()) - 1)
    sizes = sorted(count("k", one, most=most) for one in listed)
    if len(set(sizes)) < len(sizes):
        raise ValueError(f"k={listed}; wanted each size once")
    return tuple(sizes)


def _bar(what: str, shown: bool) -> Callable[[Any], Any]:
    return lambda sets: tqdm(sets, desc=what, disable=not shown)


def _dataset(readout: Readout, sizes: tuple[int, ...], margins: list[list[Margin]]) -> xr.Dataset:
    verdict = np.array([[one.verdict for one in some] for some in margins])
    margin = np.array([[max(one.lower, 0.0) for one in some] for some in margins])
    n, had = verdict.shape[1], (verdict == 1).sum(1)
    spread = np.sqrt((had + 1) * (n - had + 1) / (n + 3)) / (n + 2)
    d_vocab, dimension = int(readout.rivals.sum()), readout.dimension
    needed = [needed_dimension(d_vocab, k) for k in sizes]
    law = [share_by_law(d_vocab, k, dimension) for k in sizes]
    points = np.quantile(margin, QUANTILES, axis=1).T
    variables = {
        "share": variable("k", had / n, unit="share", long_name="sets that can be had"),
        "share_se": variable("k", spread, unit="share"),
        "undecided": variable("k", (verdict == -1).mean(1), unit="share"),
        "margin": variable(("k", "set"), margin, unit="logits", long_name="it can lead by"),
        "margin_quantile": variable(("k", "quantile"), points, unit="logits"),
        "needed": variable("k", needed, unit="dimensions", long_name="by the law"),
        "law": variable("k", law, unit="share", long_name="of sets, for Gaussian rows"),
    }
    about = {
        "share": "sets that can be had",
        "undecided": "sets of which neither is proved",
        "margin_quantile": "quantiles of what sets can lead by",
    }
    found = xr.Dataset(variables, {"k": list(sizes), "quantile": list(QUANTILES)})
    return described(found, about)


def _own_gaps(
    model: Model, texts: Padded | None, reducer: OwnGaps, options: SweepOptions
) -> tuple[xr.Variable, dict[str, Any]]:
    """Quantiles of the model's own gaps, and what results say of the data."""
    about = {"unit": "logits", "long_name": "the model's own lists lead by"}
    if texts is None:
        nothing = np.full((len(reducer.sizes), len(QUANTILES)), np.nan)
        return xr.Variable(("k", "quantile"), nothing, about), {"data": "none"}
    swept = corpora.sweep(model, texts, reducer, options=options)[reducer.name]
    found = quantiles(swept, list(QUANTILES)).transpose("k", "quantile")
    attrs = {key: value for key, value in swept.attrs.items() if key != "reducer"}
    return xr.Variable(("k", "quantile"), found.values, about), {**attrs, "first": reducer.first}
