"""`repetition`: is a token that comes again copied, and from which layer on is it there?"""

from typing import Any

import numpy as np
import torch
import xarray as xr

from mlp_interp.lens._read import read
from mlp_interp.lens.lens import Lens
from mlp_interp.models import Weights
from mlp_interp.models.indices import count
from mlp_interp.models.options import checked_seed
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.padding import first_token
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.tokenizing import ordinary_ids
from mlp_interp.results import mean_and_error_over, variable

__all__ = ["repetition"]


@own_mode()
@torch.no_grad()
def repetition(
    model: Model,
    *,
    n: int = 64,
    period: int = 24,
    lens: Lens | None = None,
    first: int = 1,
    seed: int = 0,
) -> xr.Dataset:
    """From which layer on does the stream say the token that is about to come again?

    Random tokens, then the same ones again. In the second copy every next token is the one that
    came a period before: whoever says it has copied it, since nothing else tells it. The first
    copy, in which nothing does, is the null.

    Args:
        model: The model.
        n: How many texts.
        period: Tokens of a copy.
        lens: The lens; None for the logit lens.
        first: The smallest id that is drawn. Special tokens are not, nor ids that the tokenizer
            lacks, such as the padding of a vocabulary: BOS is at the beginning and nowhere else.
        seed: Of the tokens.

    Returns:
        A Dataset along ``layer``: ``rank`` (median over all places of how many tokens are likelier
        than the one that comes again), ``probability`` (mean over texts, and ``probability_se``),
        and the same in the first copy: ``rank_chance``, ``probability_chance``.

    Raises:
        ValueError: Counts below 1, two copies beyond the model's context, a lens of another model.

    References:
        nostalgebraist, "interpreting GPT: the logit lens", 2020, on copies of rare tokens; Olsson
        et al., "In-context Learning and Induction Heads", 2022.

    Example:
        >>> from mlp_interp import load_model
        >>> found = repetition(load_model("nano"), n=4)
        >>> found["rank"].values.tolist()[2:]
        [0.0, 0.0, 0.0]
    """
    weights = Weights.of(model)
    size = min(weights.d_vocab, len(weights.W_E))  # some models predict fewer than they read
    known = [i for i in ordinary_ids(model) if i < size]
    count("n", n)
    count("period", period, least=2, most=(int(model.cfg.n_ctx) - 1) // 2)
    count("first", first, least=0, most=known[-1])
    drawn_from = torch.tensor([i for i in known if i >= first])
    generator = torch.Generator().manual_seed(checked_seed(seed))
    bos = first_token(model)
    copy = drawn_from[torch.randint(len(drawn_from), (n, period), generator=generator)]
    begins = torch.full((n, 1), 0 if bos is None else bos)
    tokens = torch.cat([begins, copy, copy], 1)
    # The first token of a copy is not known to come; of the second copy, the ones after it are.
    again, before = range(period + 1, 2 * period), range(1, period)
    mask: Any = torch.ones_like(tokens)
    read_all = read(model, tokens, lens, attention_mask=mask, k=1)
    found = xr.Dataset(attrs=read_all.attrs, coords=read_all[["layer", "site"]].coords)
    for places, end in ((again, ""), (before, "_chance")):
        there = read_all.sel(pos=list(places))
        median = there["rank_next"].median(("prompt", "pos"))
        found[f"rank{end}"] = variable("layer", median.values, unit="tokens")
        p: Any = np.exp(there["logp_next"])
        mean, error = mean_and_error_over(p.mean("pos"), "prompt")
        found[f"probability{end}"] = variable("layer", mean.values, unit="probability")
        found[f"probability{end}_se"] = variable("layer", error.values, unit="probability")
    return found.assign_attrs(
        analysis="repetition",
        long_name="what layers say of a token that is about to come again",
        unit="probability",
        data=f"{n} texts of {period} random tokens, twice",
        seed=seed,
    )
