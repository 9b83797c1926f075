"""The second moment of an MLP's keys: what an edit is kept away from."""

import hashlib
import math
from dataclasses import dataclass

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mlp_interp.models import Weights, describe
from mlp_interp.models._checksum import checksum
from mlp_interp.models.options import checked_number
from mlp_interp.models.protocol import Model
from mlp_interp.models.remember import has_hooks

__all__ = ["Keys", "checked_model", "upstream"]

MOMENT = "second_moment"

_EPS = torch.finfo(torch.float32).eps
_CLEAR = 16


@dataclass(frozen=True)
class Keys:
    """One layer's second moment, ready to be divided by.

    Attributes:
        moment: ``C = E[k k^T]``, uncentred, of the keys ``k`` (the MLP's hidden activations).
        ridge: What is added to its diagonal, as a share of the diagonal's mean.
    """

    moment: Float[Tensor, "d_mlp d_mlp"]
    ridge: float

    @classmethod
    def of(cls, keys: xr.Dataset, weights: Weights, layer: int, ridge: float | int) -> "Keys":
        """Of what `associations` gave.

        Raises:
            ValueError: It is something else, of another model or layer, or of other weights; or
                the ridge is no number from 0, or 0 where keys were fewer than neurons.
        """
        if not isinstance(keys, xr.Dataset) or MOMENT not in keys:
            raise ValueError(f"keys={type(keys).__name__}; wanted what associations gives")
        layers = keys["layer"].values.tolist()
        if layer not in layers:
            raise ValueError(f"layer={layer} with keys of layers {layers}; wanted one of those")
        here = keys.sel(layer=layer)
        found = torch.from_numpy(here[MOMENT].values).double()
        if tuple(found.shape) != (weights.d_mlp,) * 2:
            raise ValueError(
                f"keys of {found.shape[0]} neurons; wanted {weights.d_mlp}, as the model has"
            )
        if str(here["upstream"].item()) != upstream(weights, layer):
            own = describe(weights.model)
            raise ValueError(
                f"keys of model={keys.attrs.get('model')!r} in {keys.attrs.get('dtype')} were made "
                f"with other weights than those that make the keys of layer {layer} in model="
                f"{own['model']!r} in {own['dtype']}; wanted associations of this very model"
            )
        _check_ridge(ridge, int(keys.attrs["tokens"]), weights.d_mlp)
        return cls(found, float(ridge))

    def solve(self, keys: Float[Tensor, "key d_mlp"]) -> Float[Tensor, "key d_mlp"]:
        """``(C + ridge) ⁻¹ k``, in double precision."""
        return torch.linalg.solve(self.loaded(), keys.double().cpu().T).T

    def loaded(self) -> Float[Tensor, "d_mlp d_mlp"]:
        """The second moment with the ridge on its diagonal."""
        size = len(self.moment)
        load = self.ridge * float(self.moment.trace()) / size
        return self.moment + load * torch.eye(size, dtype=self.moment.dtype)

    def footprint(
        self, u: Float[Tensor, "fact d_mlp"], delta: Float[Tensor, "fact d_model"]
    ) -> float:
        """``sqrt(E|ΔWᵀk|²)`` of ``ΔW = Σ u δᵀ`` over the keys that the moment is of.

        NaN where that is rounding: products of keys are summed in single precision, and a ``u``
        that hardly any of few keys overlap with is nearly all in what is left after the last digit.
        """
        u, delta = u.double(), delta.double()
        square = float(((u @ self.moment @ u.T) * (delta @ delta.T)).sum())
        # Of C_ij about so many units of sqrt(C_ii C_jj) are rounding, up and down at random.
        reach = (u.abs().T * delta.norm(dim=1)).sum(1)
        rounding = _EPS * float(reach.square() @ self.moment.diagonal())
        return math.sqrt(square) if square > _CLEAR * rounding else math.nan


def _check_ridge(ridge: float | int, tokens: int, neurons: int) -> None:
    checked_number("ridge", ridge, lambda x: 0 <= x < math.inf, "a finite number from 0")
    if ridge == 0 and tokens < neurons:
        raise ValueError(
            f"ridge=0 with keys of {tokens} tokens for {neurons} neurons, whose second moment "
            "cannot be inverted; wanted a ridge above 0, or more text"
        )


def checked_model(model: Model, what: str) -> Weights:
    """A model's weights, if its MLPs' outputs are its neurons' sum and nothing is held on it.

    Raises:
        ValueError: Hooks are on the model, it has no MLPs, or it normalises what they write.
    """
    weights = Weights.of(model)
    if has_hooks(model):
        raise ValueError(
            f"{what}: model={model.cfg.model_name!r} has hooks on it (of `steer`, or of its own "
            "`hooks`), and the keys of what they do have no name; wanted a model without"
        )
    weights.check_names(["post"], argument="site")
    weights.check_no_post_norms(what)
    return weights


def upstream(weights: Weights, layer: int) -> str:
    """Digits that change with any of the weights that make the keys of a layer.

    These are the embedding, the blocks below, and what its own block has but for the matrix that
    values are read from: that one may have been rewritten.
    """
    digest = hashlib.sha256(f"{layer} {weights.d_mlp} {weights.d_model}".encode())
    tensors = [weights.W_E, *([weights.W_pos] if weights.has_pos_embed else [])]
    for n in range(layer + 1):
        block = weights.block(n)
        named = {name: x for name, x in vars(block).items() if isinstance(x, Tensor)}
        tensors += [block.ln1.w, block.ln1.b, block.ln2.w, block.ln2.b]
        tensors += [x for name, x in named.items() if n < layer or not name.endswith("_out")]
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)} {checksum(tensor)}".encode())
    return digest.hexdigest()[:16]
