"""`page`: all about one latent, as one result: when it is active, on what, what that does."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mlp_interp.corpus import SweepOptions
from mlp_interp.corpus import sweep as run_sweep
from mlp_interp.corpus.reducers import BandExamples, Fraction, Histogram, Moments, TopExamples
from mlp_interp.corpus.reducers.of_latents import OfLatents
from mlp_interp.dictionaries import Dictionary
from mlp_interp.dictionaries.naming import Latent, latent_site
from mlp_interp.edits import Edit
from mlp_interp.latents.in_runs import activations
from mlp_interp.latents.spliced import check_one_layer, sites_of
from mlp_interp.models import Weights, describe
from mlp_interp.models.options import check_counts, checked_count, checked_seed
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.padding import check_first
from mlp_interp.models.protocol import Model
from mlp_interp.neurons.page import sections
from mlp_interp.neurons.page.page import OCTAVES, band_edges, some_of
from mlp_interp.neurons.page.removal import removal
from mlp_interp.neurons.weights.statistics import tokens_along
from mlp_interp.prompts.texts import padded_texts
from mlp_interp.results import single, variable
from mlp_interp.runs import Run
from mlp_interp.sites import Site

__all__ = ["page"]


@own_mode()
def page(
    model: Model,
    dictionary: Dictionary,
    latent: Latent,
    corpus: Any,
    *,
    attention_mask: Any = None,
    k: int = 10,
    examples: int = 4,
    before: int = 12,
    after: int = 6,
    ablate: int = 32,
    first: int = 1,
    seed: int = 0,
    sweep: SweepOptions = SweepOptions(),
) -> xr.Dataset:
    """Everything about one latent, as `mlp_interp.neurons.neuron_page` says it of a neuron.

    The same sections in the same places, so that a latent can be held against the best neuron:
    `mlp_interp.views.neuron` shows both. A latent *fires* where it is active. What is lost without
    it is measured with its activation set to zero, and what the dictionary does not explain kept
    where it is: an effect near zero says that the model hardly misses it, not that it means
    nothing.

    Args:
        model: The model.
        dictionary: An SAE or transcoder for it, of one layer.
        latent: Its number, or its label as ``"L2F17"``.
        corpus: As of `activity`.
        attention_mask: As of `activity`.
        k: How many tokens of each sign, neighbours, and largest activations.
        examples: How many of each band of activation.
        before: Tokens of context before each example.
        after: Tokens of context after it.
        ablate: Sequences, drawn from the corpus, on which the latent is taken away.
        first: Position from which on tokens count, as of `activity`.
        seed: Of both draws.
        sweep: How the corpus is run, both times.

    Returns:
        A Dataset with the variables of `mlp_interp.neurons.neuron_page`, but for what is said of
        weights and along ``site``: ``encoder_norm``, ``decoder_norm``, ``encoder_bias``, and
        ``encoder_cosine``, of what it reads with what it writes (of an SAE, where it is far below
        1, it reads along another direction than it writes). ``similar`` are other latents of the
        dictionary.

    Raises:
        ValueError: No such latent; a dictionary of several layers or of another model; an option
            out of range.

    Example:
        >>> from mlp_interp import load_corpus, load_model
        >>> from mlp_interp.latents import train
        >>> model = load_model("nano")
        >>> corpus = load_corpus("nano", model, sequences=8, length=64)
        >>> sae = train(model, corpus, "2.mlp", n_latents=64, k=8, steps=3, batch_size=64)
        >>> found = page(model, sae, "L2F17", corpus[:4], k=3, ablate=2)
        >>> str(found.component.values), found["top_text"].dims, 0 < float(found["fraction"]) < 1
        ('L2F17', ('example', 'context'), True)
    """
    weights = Weights.of(model)
    check_one_layer(weights, dictionary)
    site = latent_site(dictionary, latent, others=())
    most = min(weights.d_vocab, dictionary.n_latents - 1)
    checked_count(k, most, "tokens, or of other latents")
    check_counts(examples=examples, ablate=ablate)
    checked_seed(seed)
    texts = padded_texts(model, corpus, attention_mask)
    check_first(first)
    unit = _Latent(weights, dictionary, site.unit)
    words = tokens_along(model, site, weights.norm.keep(unit.value), k)
    options: dict[str, Any] = {"site": "post", "layers": (dictionary.layer,), "first": first}
    shown: dict[str, Any] = {"before": before, "after": after}
    inner = {
        "fraction": Fraction(**options),
        "top": TopExamples(k=k, **shown, **options),
        "moments.latents": Moments(**options),
        "bins.latents": Histogram(octaves=OCTAVES, **options),
    }
    reducers = {n: OfLatents.of(weights, dictionary, x, [site.unit]) for n, x in inner.items()}
    found = {
        name: result.isel(latent=0, drop=True)
        for name, result in run_sweep(model, texts, reducers, options=sweep).items()
    }
    bands = BandExamples(
        neuron=Site("post", dictionary.layer, neuron=0).label,
        edges=band_edges(found["bins.latents"]),
        k=examples,
        first=first,
        seed=seed,
        **shown,
    )
    again = {"bands": OfLatents.of(weights, dictionary, bands, [site.unit])}
    drawn = run_sweep(model, texts, again, options=sweep)["bands"]
    ablated = some_of(len(texts.tokens), ablate, seed)
    removed = removal(
        model,
        unit,
        texts.tokens[ablated].long(),
        words["promoted"].values,
        held_at=0.0,
        real=None if texts.real is None else texts.real[ablated],
        first=first,
        size=sweep.batch_size,
    )
    parts = {
        **unit.weights_said(),
        **sections.activity(found, ["latents"]),
        **sections.examples(model, _active(found["top"]), "top", "example"),
        **sections.examples(model, drawn.rename(example="draw"), "band", "draw"),
        **sections.bands(drawn),
        **words.drop_vars(["component", "layer", "neuron"], errors="ignore").data_vars,
        **removed,
        **sections.direct(words, removed["direct_coefficient"]),
        **unit.similar(k),
    }
    return xr.Dataset(
        parts,
        coords={"component": site.label, "layer": dictionary.layer, "latent": site.unit},
        attrs={
            **texts.attrs,
            **describe(model),
            "analysis": "page of a latent",
            "exact": 1,
            "long_name": f"what {site.label} reads, when it is active, and what that does",
            "dictionary": repr(dictionary),
            "fingerprint": dictionary.fingerprint,
            "unit": "see each variable",
            "positions": found["fraction"].attrs["entries"],
            "first": first,
            "ablated_sequences": len(ablated),
            "held_at": 0.0,
            "seed": seed,
        },
    )


def _active(top: xr.Dataset) -> xr.Dataset:
    """The largest activations that are any: a latent that is not active is about nothing there."""
    return top.isel(example=(top["activation"] > 0).values)


@dataclass(frozen=True)
class _Latent:
    """A latent as a unit that can be taken away."""

    model: Weights
    dictionary: Dictionary
    number: int

    @property
    def sites(self) -> Sequence[Site]:
        return sites_of(self.model, [self.dictionary])

    @property
    def value(self) -> Float[Tensor, " d_model"]:
        return self.dictionary.W_dec[self.number].to(single(self.model.W_U[:1]))

    def activity(self, run: Run) -> tuple[Tensor, Tensor, Tensor]:
        found = activations(run, self.dictionary)
        own = found.of([self.number])
        share = found.written(torch.ones_like(own))
        return own[..., 0], own[..., 0] > 0, share[..., 0]

    def held(self, value: float, positions: Sequence[int]) -> Edit:
        return Edit.latents(self.dictionary, {self.number: ("set", value)}, positions=positions)

    def weights_said(self) -> dict[str, Any]:
        """What the dictionary itself says of it."""
        one, n = self.dictionary, self.number
        cosine = F.cosine_similarity(one.W_enc[:, n], one.W_dec[n], dim=0)
        told = {
            "encoder_norm": (one.W_enc[:, n].norm(), "L2 norm", "norm of what it reads along"),
            "decoder_norm": (one.W_dec[n].norm(), "L2 norm", "norm of what it writes"),
            "encoder_bias": (one.b_enc[n], "activation", "bias before it is decided if it fires"),
            "encoder_cosine": (cosine, "cosine", "what it reads along and what it writes"),
        }
        return {k: variable((), float(x), unit=u, long_name=s) for k, (x, u, s) in told.items()}

    def similar(self, k: int) -> dict[str, Any]:
        """The other latents that write, or read, most nearly the same."""
        one, n, dims = self.dictionary, self.number, ("by", "rank")
        cosines = {
            "value": F.cosine_similarity(one.W_dec, one.W_dec[n], dim=-1),
            "receptor": F.cosine_similarity(one.W_enc.T, one.W_enc[:, n], dim=-1),
        }
        others = torch.arange(one.n_latents, device=one.W_dec.device) == n
        nearest = {
            by: x.masked_fill(others, -torch.inf).topk(k).indices for by, x in cosines.items()
        }
        labels = [[f"L{one.layer}F{i}" for i in chosen.tolist()] for chosen in nearest.values()]
        found: dict[str, Any] = {
            "by": ("by", list(cosines)),
            "similar": variable(dims, labels, unit="label", long_name="nearest latents"),
        }
        for name, x in cosines.items():
            values = torch.stack([x[chosen] for chosen in nearest.values()])
            about = f"cosines of {name} vectors with the nearest latents'"
            found[f"similar_{name}_cosine"] = variable(dims, values, unit="cosine", long_name=about)
        return found
