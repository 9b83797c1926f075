"""`activations`: a dictionary's latents in a run."""

from typing import Any

import torch

from mlp_interp.dictionaries import Dictionary, Latents
from mlp_interp.latents.spliced import read_in
from mlp_interp.models.own_mode import own_mode
from mlp_interp.runs import Run

__all__ = ["activations"]


@own_mode()
@torch.no_grad()
def activations(run: Run, dictionary: Dictionary) -> Latents:
    """Which latents of a dictionary are active in a run, and how strongly.

    Args:
        run: A run that keeps what the dictionary reads and writes, as ``run(model, tokens)`` does.
        dictionary: An SAE or transcoder of its model.

    Raises:
        ValueError: A dictionary of another model, or the run did not keep what it reads.

    Example:
        >>> import mlp_interp as mi
        >>> from mlp_interp.latents import train
        >>> model = mi.load_model("nano")
        >>> corpus = mi.load_corpus("nano", model, sequences=8, length=64)
        >>> sae = train(model, corpus, "2.mlp", n_latents=64, k=8, steps=3, batch_size=64)
        >>> activations(mi.run(model, torch.tensor([[0, 5, 6]])), sae).values.shape
        torch.Size([1, 3, 8])
    """
    read: Any = read_in(run, dictionary)[0]
    return dictionary.encode(read)
