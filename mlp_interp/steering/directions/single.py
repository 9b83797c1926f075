"""Directions of single prompts and components, and random ones to compare with."""

import numpy as np
import torch
import xarray as xr

from mlp_interp.models import Weights
from mlp_interp.models.indices import index
from mlp_interp.models.options import checked_seed
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.tokenizing import encode, token_strings, tokenizer_of
from mlp_interp.results import strings, to_numpy
from mlp_interp.runs import Runner
from mlp_interp.sites import STREAM, Site
from mlp_interp.steering.directions.activations import (
    Positions,
    Prompts,
    activations,
    check_reading,
    texts_of,
)
from mlp_interp.steering.directions.result import as_direction

__all__ = ["activation_addition", "output_direction", "random_direction"]


@own_mode()
def activation_addition(
    model: Model,
    plus: str,
    minus: str,
    layer: int,
    *,
    site: str = "resid_pre",
    prepend_bos: bool = True,
) -> xr.DataArray:
    """Difference of two prompts' activations, position by position (ActAdd).

    The shorter prompt is filled up with spaces on the right. `add` puts the result onto the first
    positions of whatever prompt is run.

    Args:
        model: The model.
        plus: Text to steer toward, for example ``" Love"``.
        minus: Text to steer away from, for example ``" Hate"``.
        layer: At which layer.
        site: ``resid_pre`` as in the paper, or another place in the stream.
        prepend_bos: Whether both begin with BOS; if so, its difference is zero.

    Returns:
        ``[layer, pos, d_model]``, one layer, with the tokens of both along ``pos``.

    Raises:
        ValueError: A text is empty, the layer or site is not there, or the prompts are of unequal
            length and the tokenizer has no token for a single space.

    References:
        Turner et al. 2023, "Steering Language Models With Activation Engineering",
        arXiv:2308.10248, algorithm 1.

    Example:
        >>> from mlp_interp import load_model
        >>> cheer = activation_addition(load_model("nano"), " happy", " sad", 2)
        >>> cheer.sizes, (cheer.norm > 0).values.tolist()
        (Frozen({'layer': 1, 'pos': 2, 'd_model': 192}), [[False, True]])
    """
    if site not in STREAM:
        raise ValueError(f"site={site!r}; wanted one of {', '.join(STREAM)}")
    layer = index("layer", layer, Weights.of(model).n_layers)
    rows = [
        list(texts_of(model, text, what=what, prepend_bos=prepend_bos).rows[0])
        for what, text in (("plus", plus), ("minus", minus))
    ]
    length = max(map(len, rows))
    if len({len(row) for row in rows}) > 1:
        space = _space(model, rows)
        rows = [row + [space] * (length - len(row)) for row in rows]
    place = Site(site, layer)
    run = Runner.of(model).run(torch.tensor(rows), sites=[place])
    activation = to_numpy(run.at(place).double())
    words = [token_strings(tokenizer_of(model), row) for row in rows]
    direction = as_direction(
        model,
        (activation[0] - activation[1])[None],
        site=site,
        layers=[layer],
        dims=("layer", "pos", "d_model"),
        attrs={
            "method": "activation_addition",
            "long_name": f"{plus!r} less {minus!r}, by position",
            "data": f"{plus!r} and {minus!r}",
        },
    )
    return direction.assign_coords(
        plus=("pos", strings(words[0])), minus=("pos", strings(words[1]))
    )


@own_mode()
def output_direction(
    model: Model,
    component: Site | str,
    *,
    prompts: Prompts | None = None,
    positions: Positions = "last",
    prepend_bos: bool = True,
    batch_size: int = 64,
) -> xr.DataArray:
    """What a neuron or a head writes to the stream.

    A neuron always writes its value vector, times its activation; so coefficient 1 is one unit of
    activation. A head writes one vector for each text: its mean output over `prompts`, through
    ``W_O`` and without the layer's output bias, is given.

    Args:
        model: The model.
        component: ``"L3N669"`` or ``"L2H1"``, or its `Site`.
        prompts: For a head: prompts to take the mean over.
        positions: For a head: which position of each prompt, as in `mean_difference`.
        prepend_bos: For a head: whether texts begin with BOS.
        batch_size: For a head: how many prompts run at once.

    Returns:
        ``[layer, d_model]`` at ``resid_post`` of the component's layer.

    Raises:
        ValueError: The component is neither a neuron nor a head of the model, a head comes without
            prompts, or a neuron with them; or the model normalises what attention and MLP write,
            so that neither adds a vector of its own.

    Example:
        >>> from mlp_interp import load_model
        >>> output_direction(load_model("nano"), "L3N5").sizes
        Frozen({'layer': 1, 'd_model': 192})
    """
    weights = Weights.of(model)
    weights.check_no_post_norms("output_direction")
    place = weights.place(component, argument="component")
    if place.kind not in ("head", "neuron") or place == place.whole:
        raise ValueError(
            f"component={place.label!r}; wanted a neuron or a head, as 'L3N5' or 'L2H1'"
        )
    layer = place.layer or 0
    if (prompts is None) != (place.kind == "neuron"):
        wanted = "none for a neuron" if place.kind == "neuron" else "some for a head"
        raise ValueError(f"prompts={prompts!r} with component={place.label!r}; wanted {wanted}")
    if prompts is None:
        vector = weights.parameter(layer, "W_out")[place.unit].double().cpu()
        data = "weights"
    else:
        texts = texts_of(model, prompts, what="prompts", prepend_bos=prepend_bos)
        check_reading(texts, positions, batch_size, "prompts")
        z = activations(
            model, texts, "z", [layer], positions=positions, batch_size=batch_size
        ).mean(0)[0, place.unit]
        vector = z @ weights.parameter(layer, "W_O")[place.unit].double().cpu()
        data = f"{len(texts)} prompts"
    return as_direction(
        model,
        to_numpy(vector)[None],
        site="resid_post",
        layers=[layer],
        attrs={
            "method": "output",
            "long_name": f"what {place.label} writes",
            "component": place.label,
            "data": data,
        },
    )


def random_direction(like: xr.DataArray, *, seed: int) -> xr.DataArray:
    """A random direction at the places of another one, of the same length at each: a control.

    Directions are uniform on the sphere, independent of each other at every layer (and head, or
    position). What a direction does to a model says something only where random ones of its length
    do not do it.

    Args:
        like: A direction.
        seed: Equal seeds give equal directions.

    Returns:
        As `like`, without its `separation` and what else was measured of it but `norm`.

    Raises:
        ValueError: `like` is no direction.

    Example:
        >>> from mlp_interp import load_model
        >>> value = output_direction(load_model("nano"), "L3N5")
        >>> control = random_direction(value, seed=0)
        >>> bool(np.allclose(control.norm, value.norm)), control.attrs["method"]
        (True, 'random')
    """
    if "norm" not in getattr(like, "coords", ()) or "site" not in like.attrs:
        raise ValueError("like has no norm or no site; wanted a direction of mlp_interp.steering")
    drawn = np.random.default_rng(checked_seed(seed)).standard_normal(like.shape)
    length = np.linalg.norm(like.values, axis=-1, keepdims=True)
    values = drawn / np.linalg.norm(drawn, axis=-1, keepdims=True) * length
    measured = [name for name in ("separation", "explained") if name in like.coords]
    control = like.drop_vars(measured).copy(data=values)
    attrs = {"method": "random", "long_name": f"random, as long as: {like.attrs['long_name']}"}
    return control.assign_attrs(**attrs, seed=seed)


def _space(model: Model, rows: list[list[int]]) -> int:
    tokenizer = tokenizer_of(model)
    ids = encode(tokenizer, " ")
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise ValueError(
            f"plus has {len(rows[0])} tokens and minus {len(rows[1])}, and the tokenizer has no "
            "token for a space to fill up with; wanted texts of equal length"
        )
    return ids[0]
