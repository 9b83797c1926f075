"""Which shape features make: their angles against those of charges on a sphere."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mlp_interp.models.indices import count, finite_number
from mlp_interp.models.options import checked_seed, checked_tensor
from mlp_interp.models.own_mode import own_mode
from mlp_interp.results import strings, variable
from mlp_interp.superposition.toy._train import dimensionality

__all__ = ["geometry", "thomson"]

_NAMES: Mapping[tuple[int, int], str] = MappingProxyType(
    {
        (1, 1): "dedicated",
        (2, 1): "antipodal pair",
        (3, 2): "triangle",
        (4, 3): "tetrahedron",
        (5, 2): "pentagon",
        (8, 3): "square antiprism",
    }
)
"""By features and dimensions. The square is two antipodal pairs, which do not touch each other."""


def geometry(
    W: Float[Tensor, "feature d"] | np.ndarray | xr.DataArray,
    *,
    represented: float = 0.5,
    touching: float = 0.1,
    tolerance: float = 0.1,
) -> xr.Dataset:
    """Which known shapes the stored features of a toy model make.

    Features whose directions touch (cosine beyond `touching`, through others too) are a group,
    which lives in dimensions of its own. Its cosines are compared with those of as many charges
    that repel each other on a sphere of as many dimensions (`thomson`), by their eigenvalues, which
    do not depend on how the shape is turned.

    Args:
        W: Features as rows, as of one instance of `toy_models`.
        represented: Shorter rows are no stored features.
        touching: Cosine from which on two features are of one group.
        tolerance: Largest difference of an eigenvalue of the cosines at which a shape has its name.

    Returns:
        A Dataset over ``group``, the largest first: ``shape`` (a name, or ``"none of them"``),
        ``features``, ``dimensions`` (eigenvalues of the cosines above a tenth), ``difference`` from
        the shape of that size; and over ``feature``: ``group_of`` (-1 where not stored) and
        ``dimensionality``.

    Raises:
        ValueError: `W` is no matrix of finite numbers, or another argument is no number.

    References:
        Elhage et al., "Toy models of superposition", 2022, on the geometry of superposition.

    Example:
        >>> angle = 2 * np.pi / 5 * np.arange(5)
        >>> geometry(np.stack([np.cos(angle), np.sin(angle)], 1))["shape"].values.tolist()
        ['pentagon']
    """
    represented = finite_number("represented", represented)
    touching, tolerance = finite_number("touching", touching), finite_number("tolerance", tolerance)
    given = W.values if isinstance(W, xr.DataArray) else W
    rows = checked_tensor("W", given, "finite numbers [feature, d]").detach().double()
    if rows.ndim != 2 or not bool(rows.isfinite().all()):
        raise ValueError(f"W of shape {tuple(rows.shape)}; wanted finite numbers [feature, d]")
    stored = (rows.norm(dim=-1) > represented).nonzero()[:, 0]
    cosines = torch.nn.functional.normalize(rows[stored], dim=-1)
    cosines = cosines @ cosines.T
    names, groups = _groups(cosines.abs() > touching), []
    for name in range(int(names.max()) + 1 if len(names) else 0):
        some = (names == name).nonzero()[:, 0]
        groups.append((some, *_named(cosines[some][:, some], tolerance)))
    groups.sort(key=lambda group: -len(group[0]))
    group_of = torch.full((len(rows),), -1)
    for number, (some, *_) in enumerate(groups):
        group_of[stored[some]] = number
    return xr.Dataset(
        {
            "shape": ("group", strings([shape for _, shape, _, _ in groups])),
            "features": variable("group", np.array([len(g[0]) for g in groups]), unit="features"),
            "dimensions": variable("group", np.array([g[2] for g in groups]), unit="dimensions"),
            "difference": variable("group", np.array([g[3] for g in groups]), unit="none"),
            "group_of": variable("feature", group_of, unit="none"),
            "dimensionality": variable("feature", dimensionality(rows), unit="dimensions"),
        },
        attrs={
            "analysis": "geometry",
            "long_name": "shapes that features make",
            "unit": "see each variable",
            "exact": 1,
            "represented": represented,
            "touching": touching,
            "tolerance": tolerance,
        },
    )


def _groups(touch: Tensor) -> Tensor:
    """Number of the connected part that each feature is in."""
    names = torch.arange(len(touch))
    for _ in range(len(touch)):
        lowest = torch.where(touch, names, len(touch)).amin(1).minimum(names)
        if torch.equal(lowest, names):
            break
        names = lowest
    return names.unique(return_inverse=True)[1]


def _named(cosines: Tensor, tolerance: float) -> tuple[str, int, float]:
    """The name of a group's shape, its dimensions, and how far it is from that shape."""
    values = torch.linalg.eigvalsh(cosines)
    dimensions, size = int((values > 0.1).sum()), len(values)
    name = _NAMES.get((size, dimensions))
    if name is None:
        return "none of them", dimensions, float("nan")
    ideal = np.eye(1) if size == 1 else thomson(size, dimensions)["gram"].values
    difference = np.abs(np.linalg.eigvalsh(ideal) - values.numpy()).max()
    return (name if difference < tolerance else "none of them"), dimensions, float(difference)


def thomson(n: int, d: int, *, restarts: int = 8, steps: int = 500, seed: int = 0) -> xr.Dataset:
    """Where `n` charges come to rest that repel each other on the unit sphere of `d` dimensions.

    By projected gradient descent on the energy ``sum 1 / distance``, the best of several starts.

    Args:
        n: Charges.
        d: Dimensions of the space that the sphere is in; in one there are two places.
        restarts: Starts.
        steps: Of descent, each.
        seed: Of the starts.

    Returns:
        A Dataset with ``points`` (``point d``), ``gram`` (their cosines, ``point other``),
        ``energy`` of the best and ``energies`` of all starts.

    Raises:
        ValueError: Counts below 1, one charge, or more than two in one dimension.

    Example:
        >>> found = thomson(4, 3)
        >>> round(float(found["energy"]), 3), round(float(found["gram"][0, 1]), 3)
        (3.674, -0.333)
    """
    count("n", n, least=2)
    count("d", d, least=1 if n == 2 else 2, hint=f" for {n} charges")
    count("restarts", restarts)
    count("steps", steps)
    generator = torch.Generator().manual_seed(checked_seed(seed))
    with own_mode(), torch.no_grad():
        x = torch.randn(restarts, n, d, generator=generator, dtype=torch.float64)
        x = x / x.norm(dim=-1, keepdim=True)
        if d == 1:
            x = torch.tensor([[1.0], [-1.0]], dtype=torch.float64).expand(restarts, 2, 1)
        for step in range(steps if d > 1 else 0):
            force = _force(x)
            force = force - (force * x).sum(-1, keepdim=True) * x
            size = force.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None]
            # Steps of a length that falls: far at first, exact at the end.
            x = x + (0.5 * (1 - step / steps) ** 4 / size + 0.02 / n) * force
            x = x / x.norm(dim=-1, keepdim=True)
        energies = _energy(x)
    best = int(energies.argmin())
    return xr.Dataset(
        {
            "points": variable(("point", "d"), x[best], unit="none"),
            "gram": variable(("point", "other"), x[best] @ x[best].T, unit="none"),
            "energy": variable((), energies[best], unit="none"),
            "energies": variable("restart", energies, unit="none"),
        },
        attrs={
            "analysis": "thomson",
            "long_name": "charges at rest on a sphere",
            "unit": "none",
            "exact": 0,
            "approximation": "the best of several descents",
            "seed": seed,
        },
    )


def _force(x: Float[Tensor, "restart point d"]) -> Float[Tensor, "restart point d"]:
    apart = x[:, :, None] - x[:, None]
    distance = apart.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    return (apart / distance**3).sum(2)


def _energy(x: Float[Tensor, "restart point d"]) -> Float[Tensor, " restart"]:
    first, second = torch.triu_indices(x.shape[1], x.shape[1], offset=1)
    return (1 / (x[:, first] - x[:, second]).norm(dim=-1)).sum(1)
