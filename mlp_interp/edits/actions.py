"""What edits do to the entries that they select."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlp_interp.edits.selection import Placed, Selection

if TYPE_CHECKING:
    from mlp_interp.edits.edit import Edit

__all__ = ["act", "span"]


def act(placed: Placed, x: Tensor, start: int = 0) -> tuple[Tensor, Int[Tensor, ""]] | None:
    """An activation with an edit done, and how many entries changed; None if it selects nothing.

    Args:
        placed: The edit.
        x: The activation. It is not changed.
        start: Position in the text at which `x` begins.
    """
    selection = placed.within(x.shape, start)
    if selection is None:
        return None
    edit, index = placed.edit, selection.index
    old = x[index] if index else x
    new = _ACTIONS[edit.action](edit, old, selection)
    if edit.site.name == "pattern":
        new = _causal(new, selection)
    changed = (new != old).sum()
    if not index:
        return new, changed
    whole = x.clone()
    whole[index] = new
    return whole, changed


def span(directions: Float[Tensor, "*k d"]) -> Float[Tensor, "rank d"]:
    """Orthonormal directions in float64 that span the same space."""
    rows = torch.atleast_2d(directions.detach().double())
    # Only the directions matter, so that a short one counts as much as a long one.
    rows = rows / rows.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    _, sizes, basis = torch.linalg.svd(rows, full_matrices=False)
    return basis[sizes > 1e-6]


def _set(edit: "Edit", old: Tensor, selection: Selection) -> Tensor:
    return torch.empty_like(old).copy_(selection.cut(_plain(edit), old))


def _add(edit: "Edit", old: Tensor, selection: Selection) -> Tensor:
    return old + selection.cut(_plain(edit), old)


def _scale(edit: "Edit", old: Tensor, selection: Selection) -> Tensor:
    return old * selection.cut(_plain(edit), old)


def _clamp(edit: "Edit", old: Tensor, selection: Selection) -> Tensor:
    low, high = edit.value if isinstance(edit.value, tuple) else (None, None)
    new = old if low is None else old.maximum(selection.cut(low, old))
    return new if high is None else new.minimum(selection.cut(high, old))


def _project_out(edit: "Edit", old: Tensor, _selection: Selection) -> Tensor:
    basis = edit.basis.to(old)
    return old - old @ basis.T @ basis


def _noise(edit: "Edit", old: Tensor, selection: Selection) -> Tensor:
    # A stream of random numbers for each position: the noise is the same however a text is cut.
    shape = (selection.shape[0], *selection.shape[2:])
    rows = []
    for position in selection.positions:
        words = np.random.SeedSequence([edit.seed, position]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(words[0] >> np.uint64(1)))
        rows.append(torch.randn(shape, generator=generator))
    return old + selection.cut(_plain(edit), old) * torch.stack(rows, dim=1).to(old)


def _causal(new: Tensor, selection: Selection) -> Tensor:
    """A pattern in which no position attends to a later one, whatever the edit was."""
    keys = torch.tensor(selection.rows.get(3) or list(range(selection.shape[3])))
    later = keys[None, :] > torch.tensor(selection.positions)[:, None]
    return new.masked_fill(later.to(new.device), 0.0)


def _plain(edit: "Edit") -> Tensor | float | int:
    return edit.values[0]


_ACTIONS: dict[str, Callable[["Edit", Tensor, Selection], Tensor]] = {
    "set": _set,
    "add": _add,
    "scale": _scale,
    "clamp": _clamp,
    "project_out": _project_out,
    "noise": _noise,
}
