"""How large is what each sub-update writes?"""

from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from mlp_interp.models import Weights, describe, forward_of
from mlp_interp.models.indices import count
from mlp_interp.models.padding import which_count
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.texts import padded_texts
from mlp_interp.sites import Site, component_coords

__all__ = ["norms"]

_STATISTICS = ("q25", "median", "q75", "mean", "first")


@torch.no_grad()
def norms(
    model: Model,
    corpus: Any,
    *,
    attention_mask: Any = None,
    first: int = 1,
    batch_size: int = 16,
    progress: bool = False,
) -> xr.Dataset:
    """L2 norm of every sub-update, and of the stream it is written to, over a corpus.

    Sub-updates are the embeddings and each layer's whole attention and MLP output. Norms depend on
    processing: centring takes out the mean over ``d_model``, which the next LayerNorm ignores
    anyway; compare like with like.

    Args:
        model: The model.
        corpus: A `Corpus`; tokens ``[sequence, pos]``, padded or not; texts, or a list of token ids
            for each. Padding does not count.
        attention_mask: 1 where text is, 0 where padding is; None tells it by the rule of
            `mlp_interp.models.padding`.
        first: Position of each text from which on tokens count. 1 leaves out the first, and BOS
            wherever it stands, where trained models write hundreds of times as much as elsewhere;
            0 counts all.
        batch_size: Sequences a forward pass.
        progress: Show a progress bar.

    Returns:
        A Dataset with ``norm[component, stat]`` and ``resid_norm[resid_layer, stat]`` (the stream
        at each layer's input; ``resid_layer = n_layers`` is the final stream), unit L2 norm;
        statistics ``q25, median, q75, mean`` over the tokens that count, and ``first``, the mean
        over those that are left out (NaN if none are). Needs 4 bytes a token and sub-update.

    Raises:
        ValueError: The corpus is empty or not tokens, no token counts, `batch_size` is below one,
            or a norm is not finite.

    Example:
        >>> import torch
        >>> from mlp_interp import load_model
        >>> result = norms(load_model("nano"), torch.arange(40).reshape(4, 10))
        >>> result.norm.sel(component="0.mlp", stat="median").item() > 0
        True
    """
    batch_size = count("batch_size", batch_size)
    texts = padded_texts(model, corpus, attention_mask)
    weights, forward = Weights.of(model), forward_of(model)
    tokens = weights.checked(texts.tokens)
    counts = which_count(model, tokens, texts.real, first).cpu()
    left_out = ~counts if texts.real is None else texts.real.cpu() & ~counts
    embeddings = [Site("embed"), Site("pos_embed")] if weights.has_pos_embed else [Site("embed")]
    sites = [*embeddings]
    for layer in range(weights.n_layers):
        sites += [Site(name, layer) for name in weights.outputs]
    stream = [Site("resid_pre", layer) for layer in range(weights.n_layers)]
    stream.append(Site("resid_post", weights.n_layers - 1))
    collected: dict[Site, list[Tensor]] = {site: [] for site in [*sites, *stream]}

    def observe(name: str, layer: int, x: Tensor) -> Tensor:
        site = Site(name, layer)
        if site in collected:
            collected[site].append(x.norm(dim=-1).float().cpu())
        return x

    def embedded(_name: str, _layer: int, x: Tensor) -> Tensor:
        # Not rows of the table: some models scale them before they are written.
        collected[Site("embed")].append(x.norm(dim=-1).float().cpu())
        return x

    for batch in tqdm(tokens.split(batch_size), desc="norms", disable=not progress):
        if weights.has_pos_embed:
            positions = weights.W_pos[: batch.shape[1]].norm(dim=-1).float().cpu()
            collected[Site("pos_embed")].append(positions.expand(batch.shape))
        forward.run(forward.embed(batch, observe=embedded), observe=observe)

    found = {site: torch.cat(pieces) for site, pieces in collected.items()}
    for site, values in found.items():
        if not bool(torch.isfinite(values[counts | left_out]).all()):
            raise ValueError(
                f"{site.label} holds NaN or infinity; wanted finite values: look at the weights "
                "with check_model(model)"
            )
    unit, places = {"unit": "L2 norm"}, (counts, left_out)
    return xr.Dataset(
        {
            "norm": (("component", "stat"), _statistics([found[s] for s in sites], *places), unit),
            "resid_norm": (
                ("resid_layer", "stat"),
                _statistics([found[s] for s in stream], *places),
                unit,
            ),
        },
        coords={
            **component_coords(sites),
            "stat": list(_STATISTICS),
            "resid_layer": np.arange(weights.n_layers + 1),
        },
        attrs={
            **texts.attrs,
            **describe(model),
            "unit": "L2 norm",
            "exact": 1,
            "first": first,
            "long_name": "size of what each sub-update writes to the residual stream",
        },
    )


def _statistics(found: list[Tensor], counts: Tensor, left_out: Tensor) -> np.ndarray:
    rows = []
    for each in found:
        values = each[counts].numpy()
        # The mean of nothing is NaN, without a warning in torch.
        others = float(each[left_out].mean())
        rows.append([*np.quantile(values, (0.25, 0.5, 0.75)), values.mean(), others])
    return np.array(rows)
