"""One prompt, run once, and all that can be asked about its predictions, as plain numbers."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mlp_interp.attribution import attribute_logits, attribute_sources
from mlp_interp.models import Unembed, Weights
from mlp_interp.models.indices import indices
from mlp_interp.models.protocol import Model
from mlp_interp.models.vectors import Vectors
from mlp_interp.models.writes import frozen_scale
from mlp_interp.prompts.display import visible
from mlp_interp.prompts.texts import tokens_to_run
from mlp_interp.prompts.tokenizing import token_strings
from mlp_interp.residual import Level, decompose
from mlp_interp.results import to_numpy
from mlp_interp.runs import run
from mlp_interp.sites import Site

__all__ = ["Asked", "Reading"]

PREDICTIONS = 8
PROMOTED = 8
NEURONS = 12
MOST_TOKENS = 256
_DIGITS = 4


@dataclass(frozen=True)
class Asked:
    """Which logit is looked at: that of `answer` after the token at `position`.

    Attributes:
        position: Of the token whose prediction it is.
        answer: A token id.
        foil: The token whose logit is taken off; None for the mean over the vocabulary.
    """

    position: int
    answer: int
    foil: int | None = None


class Reading:
    """A prompt that was run, with everything kept.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        prompt: A text, which begins with BOS, or token ids, which are run as they are.

    Raises:
        ValueError: Several prompts, or one of more than 256 tokens; or as `mlp_interp.run`.
    """

    def __init__(self, model: Model, prompt: Any) -> None:
        tokens = tokens_to_run(model, [prompt] if isinstance(prompt, str) else prompt)
        if len(tokens) != 1 or tokens.shape[1] > MOST_TOKENS:
            raise ValueError(
                f"prompt has {len(tokens)} rows of {tokens.shape[1]} tokens; wanted one of at most "
                f"{MOST_TOKENS}, to look at by hand"
            )
        self.model = model
        self.weights = Weights.of(model)
        self.tokens: list[int] = tokens[0].tolist()
        self.run = run(model, tokens)
        # What is kept belongs to this prompt, and goes with it.
        self._shares = lru_cache(maxsize=16)(self._attributed)
        self._predicted = lru_cache(maxsize=16)(self._log_probabilities)
        self._vectors = lru_cache(maxsize=16)(self._decomposed)

    @property
    def columns(self) -> list[str]:
        """What of each layer the map shows."""
        heads = [f"H{head}" for head in range(self.weights.n_heads)]
        return [*(["attn"] if heads else []), *(["mlp"] if self.weights.d_mlp else []), *heads]

    def strings(self, ids: list[int]) -> list[str]:
        """Tokens as they are shown."""
        return [visible(x) for x in token_strings(getattr(self.model, "tokenizer", None), ids)]

    def text(self, prompt: str) -> dict[str, Any]:
        """The prompt and its tokens."""
        return {"prompt": prompt, "tokens": self.strings(self.tokens)}

    def asked(self, position: Any = -1, answer: int | None = None, foil: Any = None) -> Asked:
        """A question, checked; the likeliest token where no answer is named.

        Raises:
            ValueError: A position or a token that is none.
        """
        at = indices("position", position, len(self.tokens))[0]
        top = int(self._predicted(at).argmax())
        answer = top if answer is None else answer
        for name, token in (("answer", answer), ("foil", foil)):
            if token is not None and not 0 <= token < self.weights.d_vocab:
                raise ValueError(f"{name}={token} is outside the vocabulary")
        if answer == foil:
            raise ValueError(f"foil={foil} equals the answer; wanted another token, or None")
        return Asked(at, answer, foil)

    @cached_property
    def _unembed(self) -> Unembed:
        return Unembed.of(self.model)

    def _log_probabilities(self, position: int) -> Float[Tensor, " d_vocab"]:
        return self._unembed.logits(self.run.final[0, position]).log_softmax(-1)

    def map(self, asked: Asked) -> dict[str, Any]:
        """What each sub-update and head adds to the logit: ``values[layer][column]``, in logits.

        Heads sum to their layer's ``attn`` but for its output bias; all of ``attn``, ``mlp`` and
        ``rest`` sum to ``total``.
        """
        coarse = self._shares(asked, "component")
        kinds = coarse.kind.values
        heads = self._shares(asked, "head") if self.weights.n_heads else coarse
        of_head = {
            (int(layer), int(head)): float(share)
            for layer, head, share in zip(
                heads.layer.values, heads["head"].values, heads.values, strict=True
            )
        }
        of_kind = {
            (int(layer), str(kind)): float(share)
            for layer, kind, share in zip(coarse.layer.values, kinds, coarse.values, strict=True)
        }
        rows = [
            [
                of_kind.get((layer, name))
                if name in ("attn", "mlp")
                else of_head.get((layer, int(name[1:])))
                for name in self.columns
            ]
            for layer in range(self.weights.n_layers)
        ]
        rest = coarse[~np.isin(kinds, ("attn", "mlp"))]
        log_p = self._predicted(asked.position)
        top = log_p.topk(PREDICTIONS).indices.tolist()
        return {
            "position": asked.position,
            "answer": asked.answer,
            "foil": asked.foil,
            "names": self._named(asked),
            "log_p": _short(log_p[asked.answer]),
            "rank": int((log_p > log_p[asked.answer]).sum()),
            "predictions": [
                {"token": token, "text": text, "p": _short(log_p[token].exp())}
                for token, text in zip(top, self.strings(top), strict=True)
            ],
            "total": _short(coarse.sum()),
            "columns": self.columns,
            "values": [[None if x is None else _short(x) for x in row] for row in rows],
            "rest": [
                {"name": str(name), "share": _short(share)}
                for name, share in zip(rest.component.values, rest.values, strict=True)
            ],
        }

    def units(self, asked: Asked, labels: list[str]) -> list[dict[str, Any]]:
        """What sub-updates, heads or neurons wrote at the position, and what they went by.

        ``promoted`` and ``suppressed`` are the tokens whose logits each moves most there, in logits
        less their mean, the final norm's scale held.

        Raises:
            ValueError: The model has no such unit.
        """
        sites = [self.weights.place(label, argument="unit") for label in labels]
        for site in sites:
            if site.name not in ("attn_out", "mlp_out", "z", "post"):
                raise ValueError(f"unit={site.label!r}; wanted a sub-update, a head or a neuron")
        tokens = self._promoted(torch.stack([self._written(asked, site) for site in sites]))
        return [
            {"unit": site.label, "share": self._share(asked, site), **told, **self._by(asked, site)}
            for site, told in zip(sites, tokens, strict=True)
        ]

    def _by(self, asked: Asked, site: Site) -> dict[str, Any]:
        """What a unit went by: tokens that a head read, where a neuron fires, an MLP's neurons."""
        if site.name == "z":
            return {"over": self._sources(asked, site)}
        if site.name == "post":
            return {"over": {"activation": [_short(x) for x in self.run[site.label][0]]}}
        if site.name == "mlp_out":
            return {"neurons": self._neurons(asked, site.layer or 0)}
        return {}

    def _attributed(self, asked: Asked, level: Level) -> xr.DataArray:
        foil: Any = "mean" if asked.foil is None else asked.foil
        found = attribute_logits(
            self.model, self.run, asked.answer, foil, level=level, positions=asked.position
        )
        return found.isel(prompt=0, pos=0)

    def _share(self, asked: Asked, site: Site) -> float:
        levels: dict[str, Level] = {"z": "head", "post": "neuron"}
        shares = self._shares(asked, levels.get(site.name, "component"))
        return _short(shares.values[shares.component.values == site.label][0])

    def _decomposed(self, position: int, level: Level) -> dict[str, Float[Tensor, " d_model"]]:
        residual = decompose(self.model, self.run, level=level, positions=position)
        vectors = residual.vectors()[0, 0] / self.weights.final_norm.scale(residual.total)[0, 0]
        return dict(zip(residual.labels, vectors, strict=True))

    def _written(self, asked: Asked, site: Site) -> Float[Tensor, " d_model"]:
        """What it wrote, as the readout sees it."""
        if site.name != "post":
            level: Level = "head" if site.name == "z" else "component"
            return self._vectors(asked.position, level)[site.label]
        at = asked.position
        scale = self.weights.final_norm.scale(self.run.final[0, at])
        if self.weights.post_norms:
            whole = self.run[site.whole.hook_name]
            held = frozen_scale(self.weights, site.whole, whole)
            scale = scale if held is None else scale * held[0, at]
        value = self.weights.parameter(site.layer or 0, "W_out")[site.unit]
        return self.run[site.label][0, at] * value / scale

    def _promoted(self, vectors: Float[Tensor, "unit d_model"]) -> list[dict[str, Any]]:
        logits = vectors @ self._unembed.weight
        logits = logits - logits.mean(-1, keepdim=True)
        k = min(PROMOTED, logits.shape[-1])
        largest, least = logits.topk(k), (-logits).topk(k)
        return [
            {
                "promoted": self._listed(up.tolist(), at.tolist()),
                "suppressed": self._listed((-down).tolist(), below.tolist()),
            }
            for up, at, down, below in zip(*largest, *least, strict=True)
        ]

    def _listed(self, logits: list[float], ids: list[int]) -> list[dict[str, Any]]:
        return [
            {"token": token, "text": text, "logit": _short(logit)}
            for token, text, logit in zip(ids, self.strings(ids), logits, strict=True)
        ]

    def _sources(self, asked: Asked, site: Site) -> dict[str, list[float]]:
        """What a head attends to, and what each token it reads adds through it."""
        pattern = self.run[Site("pattern", site.layer).hook_name][0, site.head, asked.position]
        foil: Any = "mean" if asked.foil is None else asked.foil
        shares = attribute_sources(
            self.model, self.run, asked.answer, foil, heads=[site], positions=asked.position
        )
        return {
            "attention": [_short(x) for x in pattern],
            "share by source": [_short(x) for x in shares.values.reshape(-1)],
        }

    def _neurons(self, asked: Asked, layer: int) -> list[dict[str, Any]]:
        """The neurons of one layer that add most, for and against."""
        shares = self._shares(asked, "neuron")
        own = shares[(shares.kind.values == "neuron") & (shares.layer.values == layer)]
        largest = np.argsort(-np.abs(own.values), kind="stable")[:NEURONS]
        numbers = own["neuron"].values[largest]
        values = Vectors.of(self.weights, layer).value_folded[torch.as_tensor(numbers)]
        best = (values @ self._unembed.weight).topk(3).indices
        activations = to_numpy(self.run[Site("post", layer).hook_name][0, asked.position])
        return [
            {
                "unit": f"L{layer}N{number}",
                "share": _short(own.values[at]),
                "activation": _short(activations[number]),
                "promoted": self.strings(tokens),
            }
            for at, number, tokens in zip(largest, numbers, best.tolist(), strict=True)
        ]

    def _named(self, asked: Asked) -> dict[str, str]:
        foil = "the mean logit" if asked.foil is None else self.strings([asked.foil])[0]
        return {"answer": self.strings([asked.answer])[0], "foil": foil}


def _short(x: Any) -> float:
    """A number of four digits, for a page."""
    return float(f"{float(x):.{_DIGITS}g}")
