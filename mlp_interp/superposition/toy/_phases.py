"""When a feature is ignored, has a dimension of its own, or shares one: exactly, and trained."""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr

from mlp_interp.models.indices import count
from mlp_interp.models.options import checked_numbers, checked_seed
from mlp_interp.results import variable
from mlp_interp.superposition.toy._train import trained

__all__ = ["phase_diagram"]

_KINDS = ("ignored", "dedicated", "shared")


def phase_diagram(
    probabilities: Sequence[float],
    importances: Sequence[float],
    *,
    steps: int = 1500,
    restarts: int = 3,
    seed: int = 0,
) -> xr.Dataset:
    """What one dimension does with two features: the second is ignored, alone in it, or shares it.

    The expected losses of the three candidates are exact, with the biases that suit them best. A
    feature that is not stored is answered with its mean, ``p/2``, and costs its variance, ``v =
    p/3 - p^2/4``. Two that share a dimension as antipodes, with W = (1, -1) and no bias, are
    wrong only where both are active, where the smaller one is what each loses, ``p^2 / 6``::

        ignored = v importance,   dedicated = v,   shared = (1 + importance) p^2 / 6

    These are sums over the two features. Trained models may do better than all three: sharing with
    other lengths and biases is not among them.

    Args:
        probabilities: That a feature is active.
        importances: Of the second feature; the first has 1.
        steps: Of training, for each; 0 leaves training out.
        restarts: Trainings of each, of which the best counts.
        seed: Of training.

    Returns:
        A Dataset over ``importance probability``: ``expected`` loss (also ``solution``: ``ignored,
        dedicated, shared``), ``best`` (index into ``solution``), and, with training,
        ``trained_loss`` and ``trained_solution``, by the lengths and signs of the two weights.

    Raises:
        ValueError: Numbers out of range.

    References:
        Elhage et al., "Toy models of superposition", 2022, on phase changes.

    Example:
        >>> found = phase_diagram([0.05, 1.0], [1.0, 3.0], steps=0)
        >>> found["solution"][found["best"]].values.tolist()
        [['shared', 'ignored'], ['shared', 'dedicated']]
    """
    wanted = "numbers above 0 and at most 1"
    p = checked_numbers("probabilities", probabilities, lambda x: (x > 0) & (x <= 1), wanted)
    wanted = "positive numbers"
    weight = checked_numbers("importances", importances, lambda x: (x > 0) & np.isfinite(x), wanted)
    count("steps", steps, least=0)
    count("restarts", restarts)
    checked_seed(seed)
    variance = p / 3 - p**2 / 4
    expected = np.stack(
        [
            weight[:, None] * variance,
            np.broadcast_to(variance, (len(weight), len(p))),
            (1 + weight[:, None]) * p**2 / 6,
        ],
        -1,
    )
    dims, unit = ("importance", "probability"), "activation squared"
    variables = {
        "expected": variable((*dims, "solution"), expected, unit=unit),
        "best": variable(dims, expected.argmin(-1), unit="index of the solution"),
    }
    if steps:
        loss, solution = _trained(p, weight, steps, restarts, seed)
        variables["trained_loss"] = variable(dims, loss, unit=unit)
        variables["trained_solution"] = variable(dims, solution, unit="index of the solution")
    return xr.Dataset(
        variables,
        coords={"importance": weight, "probability": p, "solution": list(_KINDS)},
        attrs={
            "analysis": "phase_diagram",
            "long_name": "what one dimension does with two features",
            "unit": unit,
            "exact": 1,
            "steps": steps,
            "restarts": restarts,
            "seed": seed,
        },
    )


def _trained(
    p: np.ndarray, weight: np.ndarray, steps: int, restarts: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Loss (a sum over features) and solution of models trained on the whole grid."""
    grid = np.array([(w, q) for w in weight for q in p for _ in range(restarts)])
    importance = torch.from_numpy(np.stack([np.ones(len(grid)), grid[:, 0]], 1)).float()
    shares = torch.from_numpy(grid[:, 1]).float()
    W, _, loss = trained(shares, importance, 1, steps=steps, batch_size=512, seed=seed)
    loss = loss.view(-1, restarts)
    best = loss.argmin(1)
    W = W[..., 0].view(-1, restarts, 2)[torch.arange(len(best)), best]
    stored = W.abs() > 0.3
    solution = torch.where(stored.all(1), 2, torch.where(stored[:, 1], 1, 0))
    shape = len(weight), len(p)
    return (2 * loss.amin(1)).view(shape).numpy(), solution.view(shape).numpy()
