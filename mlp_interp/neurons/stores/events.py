"""Does an MLP change the prediction by raising the new token, or by pushing the old one down?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mlp_interp.corpus import SweepOptions
from mlp_interp.corpus import sweep as run_sweep
from mlp_interp.corpus.reducers import Shape, State
from mlp_interp.models import Weights
from mlp_interp.models.finite import check_weights
from mlp_interp.models.indices import indices
from mlp_interp.models.options import checked_count
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.models.unembed import mean_direction
from mlp_interp.neurons.stores.updates import Updates, UpdatesReducer
from mlp_interp.neurons.sweeps.means import add_means, means, sums

__all__ = ["UpdateEvents", "update_events"]

_EVENTS = ("changed", "settled")
_OF_TOKEN = {
    "total": "change of the logit",
    "promoted": "what raises it: the neurons' positive contributions",
    "eliminated": "what lowers it: the neurons' negative contributions",
    "b_out": "b_out's contribution",
    "norm": "the norm's share: the stream before, divided by another scale",
    "dominant_mean": "mean contribution of the dominant sub-updates",
    "dominant_max": "largest contribution of a dominant sub-update",
    "dominant_min": "smallest contribution of a dominant sub-update",
}


@own_mode()
@torch.no_grad()
def update_events(
    model: Model,
    corpus: Any,
    *,
    attention_mask: Any = None,
    layers: int | Sequence[int] | None = None,
    dominant: int = 10,
    stream: Literal["read", "left"] = "read",
    first: int = 1,
    sample: int = 1,
    sweep: SweepOptions = SweepOptions(),
) -> xr.Dataset:
    """How MLPs change the prediction: by promoting the new token, or by eliminating the old one.

    At each token, with ``x`` the stream that the MLP reads and ``y = x + u`` the same with its
    update: where the top token of ``y`` is not that of ``x``, the update changed the prediction.
    The change of a token's logit is split exactly, with ``w`` its readout direction::

        w.y/s(y) - w.x/s(x) = sum_n a_n w.v_n/s(y) + w.b_out/s(y) + w.x (1/s(y) - 1/s(x))

    The last term is the share of the norm, whose scale ``s`` the update changes too. Logits are
    over their mean over the vocabulary, so nothing depends on how the weights were processed. A cap
    on logits (Gemma 2) is left out: it changes no order.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        corpus: As in `activity`.
        attention_mask: As in `activity`.
        layers: Which layers; None for all.
        dominant: How many of the largest sub-updates, by ``|activation| |value vector|``, are the
            dominant ones.
        stream: ``"read"``: ``x`` is what the MLP reads. In parallel blocks what the attention
            writes is then in neither stream; ``"left"``: it is in both, ``y`` is the stream that
            leaves the block. In sequential blocks these are the same.
        first: Position from which on tokens count.
        sample: Only every so many-th position, from `first` on.
        sweep: How the corpus is run.

    Returns:
        A Dataset over ``layer`` with standard errors over sequences (``..._se``):

        - ``share`` (with ``event``) of tokens at which the update ``changed`` the prediction; and
          at which it ``settled`` it: changed it to what the model predicts in the end (Geva et al.
          call it saturation where no later layer changes it: one may, and change it back);
        - over those tokens ``total, promoted, eliminated, b_out, norm``, in logits (with ``event``
          and ``token``: ``new`` is the new top token, ``old`` the one that it displaced): the
          change of its logit, and its four parts, which sum to it;
          ``dominant_mean, dominant_max, dominant_min`` of what each of the dominant sub-updates
          adds;
        - ``promotion`` (with ``event``): share of the changes at which the update raises the new
          token by more than it lowers the old one; the norm's share is left out, since it scales
          both logits and changes no order.

    Raises:
        ValueError: Layers that the model does not have, more dominant neurons than it has, other
            options out of range, a model without neurons, or as `sweep`.

    References:
        Geva et al., "Transformer Feed-Forward Layers Build Predictions by Promoting Concepts in the
        Vocabulary Space", 2022, section 5.

    Example:
        >>> from mlp_interp import load_corpus, load_model
        >>> model = load_model("nano")
        >>> corpus = load_corpus("nano", model, sequences=8, length=32)
        >>> changed = update_events(model, corpus).sel(event="changed")
        >>> parts = changed["promoted"] + changed["eliminated"] + changed["b_out"] + changed["norm"]
        >>> bool((abs(parts - changed["total"]) < 1e-4).all())
        True
        >>> bool((changed["promotion"] > 0.5).all())
        True
    """
    weights = Weights.of(model)
    weights.check_names(["post"], argument="neurons")
    listed = indices("layers", layers, weights.n_layers)
    checked_count(dominant, weights.d_mlp, "neurons", name="dominant")
    check_weights(model)
    reducer = UpdateEvents(
        dominant=dominant, stream=stream, sample=sample, layers=listed, first=first
    )
    found = run_sweep(
        model, corpus, {"events": reducer}, attention_mask=attention_mask, options=sweep
    )["events"]
    attrs = {name: value for name, value in found.attrs.items() if name != "reducer"}
    return found.drop_attrs(deep=False).assign_attrs(attrs | {"analysis": "update_events"})


@dataclass(frozen=True, kw_only=True)
class UpdateEvents(UpdatesReducer):
    """What changes of predictions are made of.

    `update_events` runs it, and says what its result means.

    Args:
        dominant: As there.
        stream: As there.
        sample: As there.
        site: ``"post"``; there is no other.
        layers: As in `SiteReducer`.
        first: As in `SiteReducer`.
    """

    dominant: int

    def empty(self, shape: Shape) -> State:
        """Sums over sequences, event by event."""
        layers, found = len(self.chosen(shape)), {}
        for event in _EVENTS:
            own = {
                **sums([f"share_{event}"], layers),
                **sums([f"promotion_{event}"], layers, (), f"sequences_{event}"),
                **sums(
                    [f"{name}_{event}" for name in _OF_TOKEN], layers, (2,), f"sequences_{event}"
                ),
            }
            found |= own
        return found

    def updated(self, mine: State, updates: Updates) -> dict[str, Tensor]:
        """Take the changes of the top token apart; whether it counts is known at the end."""
        new, old = updates.top_after, updates.top_before
        changed = (new != old) & updates.counts
        some = changed.nonzero()[:, 0]
        parts = self._parts(updates, some, torch.stack([new[some], old[some]], dim=1))
        whole = {
            name: x.new_zeros(len(changed), *x.shape[1:]).index_copy_(0, some, x)
            for name, x in parts.items()
        }
        return whole | {"changed": changed, "new": new}

    def ended(
        self,
        state: State,
        given: dict[int, Any],
        final: Int[Tensor, " token"],
        counts: Bool[Tensor, " token"],
        texts: int,
    ) -> None:
        """Add all changes, and those to the model's own prediction."""
        for row, found in enumerate(given.values()):
            mine = {name: value[row] for name, value in state.items()}
            changed, new = found.pop("changed"), found.pop("new")
            shares = {"changed": changed, "settled": changed & (new == final)}
            add_means(mine, {f"share_{k}": x for k, x in shares.items()}, counts, texts)
            for event, where in shares.items():
                own = {f"{name}_{event}": x for name, x in found.items()}
                add_means(mine, own, where, texts, f"sequences_{event}")

    def result(self, state: State, shape: Shape) -> xr.Dataset:
        """Means over tokens, then sequences, with their errors."""
        logits = {name: ("logits", about) for name, about in _OF_TOKEN.items()}
        decided = {"promotion": ("fraction", "share of changes that the new token's rise decides")}
        share = {"share": ("fraction", "share of tokens at which the update does this")}
        events = []
        for event in _EVENTS:
            own = {k.removesuffix(f"_{event}"): v for k, v in _of(state, event).items()}
            own["sequences"], some = state["sequences"], state[f"sequences_{event}"]
            variables = means(own, share)
            variables |= means(own | {"some": some}, decided, sequences="some")
            dims = dict.fromkeys(logits, ("token",))
            variables |= means(own | {"some": some}, logits, dims, sequences="some")
            events.append(xr.Dataset(variables))
        result = xr.concat(events, xr.Variable("event", [*_EVENTS]), combine_attrs="override")
        attrs = {
            "long_name": "changes of the prediction by MLPs",
            "unit": "see each variable",
            "dominant": self.dominant,
            "stream": self.stream,
            "first": self.first,
            "sample": self.sample,
        }
        coords = {**self.coords(shape), "token": ["new", "old"]}
        return result.assign_coords(coords).assign_attrs(attrs)

    def _parts(
        self, updates: Updates, some: Int[Tensor, " some"], tokens: Int[Tensor, "some 2"]
    ) -> dict[str, Tensor]:
        """The parts of the changes of logits, at some of the tokens."""
        weights, unembed = updates.weights, updates.unembed
        direction = unembed.directions(tokens).to(updates.post.dtype) - mean_direction(weights)[0]
        before, after = updates.before[some], updates.after[some]
        scale = unembed.scale(after)
        each = torch.einsum("tkd,nd->tkn", direction, updates.value)
        each *= (updates.post[some] / scale)[:, None]
        bias = updates.bias.expand(len(updates.post), -1)[some]
        largest = updates.largest(self.dominant)[some]
        dominant = each.gather(2, largest[:, None].expand(-1, 2, -1))
        found = {
            "total": _dot(direction, after / scale - before / unembed.scale(before)),
            "promoted": each.clamp_min(0).sum(-1),
            "eliminated": each.clamp_max(0).sum(-1),
            "b_out": _dot(direction, bias / scale),
            "norm": _dot(direction, before * (1 / scale - 1 / unembed.scale(before))),
            "dominant_mean": dominant.mean(-1),
            "dominant_max": dominant.amax(-1),
            "dominant_min": dominant.amin(-1),
        }
        # The norm divides both logits by the same: which of them is larger it has no say in.
        rise, fall = (found["promoted"] + found["eliminated"] + found["b_out"]).unbind(1)
        return found | {"promotion": (rise > -fall).to(rise.dtype)}


def _dot(
    directions: Float[Tensor, "token 2 d_model"], vectors: Float[Tensor, "token d_model"]
) -> Float[Tensor, "token 2"]:
    return torch.einsum("tkd,td->tk", directions, vectors)


def _of(state: State, event: str) -> State:
    ends = f"_{event}", f"_{event}_squares"
    return {k.replace(f"_{event}", ""): v for k, v in state.items() if k.endswith(ends)}
