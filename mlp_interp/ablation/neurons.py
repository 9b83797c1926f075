"""Direct ablation of every neuron by itself: thousands of small changes along known directions.

Taking out neuron n changes the logits by ``along * (w_n W') + back * (r W')`` with two numbers per
position: ``w_n W'`` is computed once for all positions, and no neuron is unembedded twice.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mlp_interp.ablation.second_order import TOGETHER, estimated
from mlp_interp.metrics import Effects, LogitChange, Tally
from mlp_interp.metrics.rows import distributions, joined
from mlp_interp.models.scan import blocks
from mlp_interp.models.unembed import Unembed
from mlp_interp.residual import Residual
from mlp_interp.residual.parts import Scaled

__all__ = ["neuron_effects"]


def neuron_effects(
    unembed: Unembed,
    removed: Residual,
    targets: Int[Tensor, "batch pos"],
    *,
    norm: str,
    tolerance: float | None = None,
) -> Effects:
    """Effects of taking out each neuron alone, ``[neuron, batch, pos]`` in the parts' order.

    Args:
        unembed: The readout.
        removed: What is taken away (only neurons), and `total`, as the final norm keeps them.
        targets: The next token of each position, -1 where unknown.
        norm: ``"recompute"`` or ``"freeze"``.
        tolerance: None computes everything exactly; a number allows the second-order form where
            its relative error is at most that.
    """
    shape = (len(removed), *targets.shape)
    total, flat_targets = removed.total.flatten(0, 1), targets.flatten()
    scale = unembed.scale(total)
    columns: list[Effects] = []
    for rows, clean in distributions(unembed, total / scale, flat_targets):
        layers = [
            _Neurons.of(unembed, total[rows], part, rows, norm=norm)
            for part in removed.parts
            if isinstance(part, Scaled)
        ]
        if tolerance is None:
            columns.append(joined([_measure(clean, layer) for layer in layers]))
        else:
            found = estimated(clean, [layer.changes for layer in layers], tolerance)
            columns.append(joined(found))
    return Effects(*(values.view(shape) for values in joined(columns, dim=1)))


@dataclass(frozen=True)
class _Neurons:
    """One layer's neurons at some rows, and how each changes the normalised stream there.

    The change is ``along * basis + back * total``.
    """

    basis: Float[Tensor, "neuron d_model"]
    total: Float[Tensor, "row d_model"]
    along: Float[Tensor, "neuron row"]
    back: Float[Tensor, "neuron row"]

    @classmethod
    def of(
        cls,
        unembed: Unembed,
        total: Float[Tensor, "row d_model"],
        part: Scaled,
        rows: Int[Tensor, " row"],
        *,
        norm: str,
    ) -> "_Neurons":
        """`stream_change` of each neuron alone, as two numbers a row."""
        basis, coefficients = part.basis, part.coefficients.flatten(0, 1)[rows].T
        scale = unembed.scale(total)[:, 0]
        if norm == "freeze":
            return cls(basis, total, -coefficients / scale, torch.zeros_like(coefficients))
        dots, squares = basis @ total.T, basis.square().sum(-1, keepdim=True)
        fall = coefficients * (2 * dots - coefficients * squares) / total.shape[-1]
        new_scale, back = unembed.norm.after(scale, fall)
        return cls(basis, total, -coefficients / new_scale, back)

    def __getitem__(self, neurons: Int[Tensor, " some"]) -> "_Neurons":
        return _Neurons(self.basis[neurons], self.total, self.along[neurons], self.back[neurons])

    def size(self) -> Float[Tensor, "neuron row"]:
        """A bound on the change's L2 norm."""
        along = self.along.abs() * self.basis.norm(dim=-1, keepdim=True)
        return along + self.back.abs() * self.total.norm(dim=-1)

    def dot(self, directions: Float[Tensor, "row d_model"]) -> Float[Tensor, "neuron row"]:
        """Dot product of the change with a direction for each row."""
        along = self.along * (self.basis @ directions.T)
        return along + self.back * (self.total * directions).sum(-1)

    def changes(self, row: int) -> Float[Tensor, "neuron d_model"]:
        """The changes at one row."""
        return self.along[:, row, None] * self.basis + self.back[:, row, None] * self.total[row]


def _measure(clean: LogitChange, layer: _Neurons) -> Effects:
    """Exact effects of a layer's neurons, ``[neuron, row]``."""
    if clean.unembed.cap is not None:  # nothing is linear, and each neuron is read for itself
        rows = range(layer.along.shape[1])
        pieces = [clean.row(row).effects(layer.changes(row)[:, None]) for row in rows]
        return joined(pieces, dim=1)
    # Neurons of like size together: then one choice of formula serves a whole chunk.
    order = layer.size().amax(-1).argsort()
    sorted_effects = joined([_exact(clean, layer[some]) for some in order.split(TOGETHER)])
    return Effects(*(values[order.argsort()] for values in sorted_effects))


def _exact(clean: LogitChange, layer: _Neurons) -> Effects:
    """Exact effects, ``[neuron, row]``; a block of the value vectors' logits serves all rows."""
    weight, total = clean.unembed.weight, layer.total
    mean = layer.dot(clean.expected)
    tally = Tally.of(clean, mean, layer.size())
    ones = torch.ones_like(total[:1, :1])
    for block in blocks(clean.unembed.d_vocab, max(256, 2**18 // len(layer.basis))):
        logits = clean.logits[:, block]
        p = (logits - clean.total).exp_()
        basis_logits, total_logits = layer.basis @ weight[:, block], total @ weight[:, block]
        for row in range(len(total)):
            # t = along * basis_logits + back * total_logits - mean
            rest = torch.stack([layer.back[:, row], -mean[:, row]], dim=1)
            other = torch.cat([total_logits[row, None], ones.expand(1, total_logits.shape[1])])
            t = torch.addmm(basis_logits * layer.along[:, row, None], rest, other)
            tally.add(t, p[row], logits[row], row=row)

    def whole(mask: Bool[Tensor, "neuron row"]) -> Float[Tensor, "some d_vocab"]:
        neuron, row = mask.nonzero(as_tuple=True)
        change = layer.along[mask][:, None] * layer.basis[neuron]
        change = change + layer.back[mask][:, None] * total[row]
        return change @ weight - mean[mask][:, None]

    t_target = layer.dot(weight.T[clean.targets.clamp_min(0)]) - mean
    return tally.effects(t_target, layer.dot(weight.T[clean.top]) - mean, whole)
