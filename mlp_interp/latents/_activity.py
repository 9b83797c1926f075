"""`activity`: how often latents are active over a corpus, how strongly, and where most."""

from typing import Any

import xarray as xr

from mlp_interp.corpus import SweepOptions
from mlp_interp.corpus import sweep as run_sweep
from mlp_interp.corpus.reducers import Fraction, Moments, TopExamples
from mlp_interp.corpus.reducers.of_latents import OfLatents
from mlp_interp.dictionaries import Dictionary
from mlp_interp.latents.spliced import check_one_layer
from mlp_interp.models import Weights
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.results import described

__all__ = ["activity"]

_ABOUT = {
    "fraction": "share of positions at which it is active",
    "mean": "mean activation, zeros included",
    "std": "standard deviation of the activation, zeros included",
    "greatest": "largest activation",
    "mean_active": "mean activation where it is active",
    "activation": "largest activations, one a sequence",
    "sequence": "in which sequence",
    "pos": "at which position",
    "token": "token that stands there",
    "around": "tokens around it",
}


@own_mode()
def activity(
    model: Model,
    dictionary: Dictionary,
    corpus: Any,
    *,
    k: int = 5,
    before: int = 10,
    after: int = 5,
    attention_mask: Any = None,
    first: int = 1,
    sweep: SweepOptions = SweepOptions(),
) -> xr.Dataset:
    """How often every latent is active over a corpus, how strongly, and where most.

    One pass, up to what the dictionary reads. A latent that is never active in this text may be so
    in another; one that is active nearly everywhere is seldom about anything. The largest
    activations show what it likes best, not what it does most of the time: see `page`.

    Args:
        model: The model.
        dictionary: An SAE or transcoder for it, of one layer.
        corpus: A `Corpus`, also one on disk; tokens ``[sequence, pos]``, padded or not; texts.
        k: How many examples of each latent, at most one of a sequence.
        before: Tokens of context before each.
        after: Tokens of context after it.
        attention_mask: As of `mlp_interp.sweep`.
        first: Position from which on tokens count; 1 leaves out the first, and BOS.
        sweep: How the corpus is run; what is kept of it is found by a fingerprint of the
            dictionary.

    Returns:
        A Dataset along ``latent``: ``fraction`` with ``fraction_se`` over sequences, ``mean``,
        ``std``, ``greatest``, ``mean_active``; and along ``example``, too, ``activation``,
        ``sequence``, ``pos``, with ``token`` and ``around`` along ``context``, as
        `mlp_interp.corpus.reducers.TopExamples` gives them: where a latent is active in fewer
        sequences, the rest are examples of nothing, with an activation of 0.

    Raises:
        ValueError: A dictionary of several layers or of another model; what `mlp_interp.sweep`
            refuses.

    Example:
        >>> from mlp_interp import load_corpus, load_model
        >>> from mlp_interp.latents import train
        >>> model = load_model("nano")
        >>> corpus = load_corpus("nano", model, sequences=8, length=64)
        >>> sae = train(model, corpus, "2.mlp", n_latents=64, k=8, steps=3, batch_size=64)
        >>> found = activity(model, sae, corpus, k=2)
        >>> round(float(found.fraction.sum()), 3), found.activation.sizes
        (8.0, Frozen({'latent': 64, 'example': 2}))
    """
    weights = Weights.of(model)
    check_one_layer(weights, dictionary)
    options: dict[str, Any] = {"site": "post", "layers": (dictionary.layer,), "first": first}
    inner = {
        "fraction": Fraction(**options),
        "moments": Moments(**options),
        "top": TopExamples(k=k, before=before, after=after, **options),
    }
    reducers = {name: OfLatents.of(weights, dictionary, one) for name, one in inner.items()}
    found = run_sweep(model, corpus, reducers, attention_mask=attention_mask, options=sweep)
    fired = found["fraction"][["fraction", "fraction_se"]]
    result = fired.merge(found["moments"][["mean", "std", "greatest"]]).merge(found["top"])
    share = result["fraction"].where(result["fraction"] > 0)
    result["mean_active"] = (result["mean"] / share).assign_attrs(unit="activation")
    result = described(result, _ABOUT)
    attrs = {k: v for k, v in found["fraction"].attrs.items() if k != "reducer"}
    return result.assign_attrs(
        {
            **attrs,
            "analysis": "activity of latents",
            "dictionary": repr(dictionary),
            "fingerprint": dictionary.fingerprint,
            "unit": "see each variable",
            "first": first,
            "errors": "standard error over sequences",
        }
    )
