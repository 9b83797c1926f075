"""How much noise a model tolerates at a site before its predictions change."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor

from mlp_interp.corpus import SweepOptions
from mlp_interp.corpus import sweep as run_sweep
from mlp_interp.corpus.reducers import Batch, Moments, Reducer, Shape, State
from mlp_interp.edits import Edit
from mlp_interp.metrics import Effects
from mlp_interp.metrics.rows import joined
from mlp_interp.models import Weights
from mlp_interp.models.finite import check_weights
from mlp_interp.models.indices import distinct, indices
from mlp_interp.models.options import (
    check_choice,
    checked_number,
    checked_numbers,
    checked_seed,
    generator_of,
)
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.padding import which_count
from mlp_interp.models.protocol import Model
from mlp_interp.prompts.texts import padded_texts
from mlp_interp.results import mean_and_error, single, variable
from mlp_interp.runs import Runner
from mlp_interp.runs.effects import edit_effects
from mlp_interp.sites import Site

__all__ = ["noise_tolerance"]

Kind = Literal["isotropic", "values", "shuffled"]

_SITES = ("post", "mlp_out", "attn_out", "resid_pre", "resid_post")


@own_mode()
@torch.no_grad()
def noise_tolerance(
    model: Model,
    corpus: Any,
    *,
    sites: str | Sequence[str] = ("mlp_out", "post", "resid_post"),
    attention_mask: Any = None,
    layers: int | Sequence[int] | None = None,
    sizes: Sequence[float] = (0.05, 0.1, 0.2, 0.4, 0.8),
    kind: Kind = "isotropic",
    level: float = 0.01,
    first: int = 1,
    seed: int = 0,
    sweep: SweepOptions = SweepOptions(),
) -> xr.Dataset:
    """What predictions lose when noise is added at one site of one layer, at all tokens at once.

    Noise is measured in the site's own spread: with size 1 its root mean square is that of the
    activations around their mean. Interference of features in superposition is such noise, and a
    model that tolerates little of it has room for little interference: ``"shuffled"`` is the fair
    comparison, since interference looks like activations rather than like a ball. Where noise is
    small its cost is quadratic: `exponent` is then 2.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        corpus: As of `sweep`.
        sites: ``"post"``, ``"mlp_out"``, ``"attn_out"``, ``"resid_pre"``, ``"resid_post"``.
        attention_mask: As of `sweep`.
        layers: Which layers; None for all.
        sizes: Of the noise, as shares of the spread; ascending.
        kind: ``"isotropic"``: Gaussian, alike along all units; ``"values"``: Gaussian amounts of
            the layer's value vectors, at sites of the stream's width; ``"shuffled"``: the deviation
            from the mean of a token of another text of the batch.
        level: The KL, in nats, at which noise counts as no longer tolerated.
        first: Position from which on tokens get noise, and count.
        seed: Of the noise. One text gets the same directions at all sizes.
        sweep: How the corpus is run.

    Returns:
        A Dataset over ``site layer size`` with errors over sequences (``..._se``): ``kl`` (nats)
        and ``delta_loss`` (nats per token); over ``site layer``: ``tolerated``, the size at which
        KL reaches `level`, interpolated on logarithmic axes (NaN outside of `sizes`); ``spread``,
        the root mean square norm of the activations around their mean; and ``exponent``, the slope
        of log KL over log size between the two smallest sizes.

    Raises:
        ValueError: An unknown site, kind or layer, sizes that are not positive and ascending, a
            level that is not positive, ``"values"`` at ``"post"``, ``"shuffled"`` with a batch in
            which fewer than two texts have tokens that count, or as `sweep`.

    References:
        Hänni et al., "Mathematical models of computation in superposition", arXiv:2408.05451, on
        how much noise features may make.

    Example:
        >>> from mlp_interp import load_corpus, load_model
        >>> model = load_model("nano")
        >>> corpus = load_corpus("nano", model, sequences=4, length=32)
        >>> found = noise_tolerance(model, corpus, sites="resid_post", layers=2, sizes=(0.1, 0.2))
        >>> 1.8 < found["exponent"].item() < 2.2
        True
    """
    named = distinct("sites", sites)
    for name in named:
        check_choice("sites", name, _SITES)
    check_choice("kind", kind, get_args(Kind))
    if kind == "values" and "post" in named:
        raise ValueError(
            f"kind='values' with sites={list(named)}; wanted sites of the stream's width: value "
            "vectors are no noise of neurons"
        )
    grid = _checked_sizes(sizes)
    level = checked_number("level", level, lambda x: 0 < x < np.inf, "a positive number of nats")
    weights = Weights.of(model)
    weights.check_names(["post", *named] if kind == "values" else named, argument="sites")
    listed = indices("layers", layers, weights.n_layers)
    texts = padded_texts(model, corpus, attention_mask)
    counts = which_count(model, texts.tokens, texts.real, first)
    if kind == "shuffled":
        _check_others(counts, sweep)
    check_weights(model)
    reducers = {name: Moments(site=name, layers=listed, first=first) for name in named}
    moments = run_sweep(model, texts, reducers, options=sweep)
    means = {
        Site(name, layer): (
            torch.from_numpy(moments[name]["mean"].sel(layer=layer).values),
            float((moments[name]["std"].sel(layer=layer) ** 2).sum() ** 0.5),
        )
        for name in named
        for layer in listed
    }
    noisy = Noisy(sizes=grid, kind=kind, first=first, seed=checked_seed(seed), moments=means)
    found = run_sweep(model, texts, {"noise": noisy}, options=sweep)["noise"]
    result = _summary(found, named, listed, grid, [spread for _, spread in means.values()])
    result["tolerated"] = _tolerated(result["kl"], level)
    attrs = {k: v for k, v in found.attrs.items() if k != "reducer"}
    attrs |= {"analysis": "noise_tolerance", "kind": kind, "level": level, "first": first}
    attrs |= {"seed": seed, "unit": "nats", "errors": "standard error over texts"}
    attrs |= {"exact": 0, "approximation": "one draw of noise at each position"}
    return result.assign_attrs(attrs, long_name="what noise at a site does to predictions")


def _checked_sizes(given: Sequence[float]) -> tuple[float, ...]:
    wanted = "two or more positive numbers, ascending"
    sizes = checked_numbers("sizes", given, lambda x: x > np.append(0, x[:-1]), wanted)
    if len(sizes) < 2:
        raise ValueError(f"sizes={given!r}; wanted {wanted}")
    return tuple(sizes.tolist())


def _check_others(counts: Bool[Tensor, "sequence pos"], sweep: SweepOptions) -> None:
    """Refuse batches, as a sweep cuts them, without two texts that have tokens that count.

    Raises:
        ValueError: There is one.
    """
    size = min(sweep.batch_size, sweep.shard)
    if size == 1:
        raise ValueError(
            f"kind='shuffled' with batch_size={sweep.batch_size}, shard={sweep.shard}; wanted both "
            "at least 2: noise comes from other texts of the batch"
        )
    for shard in counts.any(1).split(sweep.shard):
        for texts in shard.split(size):
            if texts.sum() < 2:
                raise ValueError(
                    f"kind='shuffled' leaves a text alone in a batch: of {len(counts)} texts one "
                    f"batch of batch_size={sweep.batch_size}, shard={sweep.shard} has "
                    f"{int(texts.sum())} with tokens that count; wanted at least 2 in each"
                )


@dataclass(frozen=True, kw_only=True)
class Noisy(Reducer):
    """What noise costs each sequence.

    `noise_tolerance` runs it, and says what its result means.

    Args:
        sizes: As there.
        kind: As there.
        first: As there.
        seed: As there.
        moments: Mean and spread of every site.
    """

    sizes: tuple[float, ...]
    kind: str
    first: int
    seed: int
    moments: Mapping[Site, tuple[Tensor, float]] = field(repr=False, compare=False)
    takes_padding: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Its name, with the sites."""
        return f"noise.{','.join(site.label for site in self.moments)}"

    def sites(self, shape: Shape) -> tuple[Site, ...]:
        """None: it runs the model itself."""
        shape.check_next_token()
        return ()

    def empty(self, shape: Shape) -> State:
        """Nothing; tensors come with the first batch."""
        return {}

    def finish(self, state: State, batch: Batch) -> None:
        """Run the batch clean, and with every noise."""
        runner = Runner(batch.forward)
        runner.unembed = batch.readout()
        sites = [] if self.kind != "shuffled" else list(self.moments)
        clean = runner.run(batch.tokens, sites=sites)
        counts, parts = batch.counts(self.first), []
        for site, (mean, spread) in self.moments.items():
            if self.kind == "shuffled":
                noise = self._others(clean.at(site) - mean.to(clean.final), batch)
            else:
                noise = spread * self._gaussian(site, len(mean), batch)
            noise = (noise * counts[..., None]).to(clean.final)
            edits = ([Edit.add(site, size * noise)] for size in self.sizes)
            parts += edit_effects(runner, clean, edits, real=batch.real)
        effects: Effects = joined(parts)
        where = ~counts
        found = {
            "kl": single(effects.kl).masked_fill(where, torch.nan).nanmean(-1),
            "delta_loss": single(effects.delta_loss).masked_fill(where, torch.nan).nanmean(-1),
        }
        self.merge(state, {name: x.cpu() for name, x in found.items()})

    def merge(self, state: State, later: State) -> None:
        """The sequences one after the other."""
        for name, value in later.items():
            state[name] = torch.cat([state[name], value], -1) if name in state else value

    def result(self, state: State, shape: Shape) -> xr.Dataset:
        """One number for each noise and sequence."""
        return xr.Dataset({k: (("noise", "sequence"), v.numpy()) for k, v in state.items()})

    def _gaussian(self, site: Site, units: int, batch: Batch) -> Float[Tensor, "batch pos unit"]:
        """Noise of mean square norm 1, for each text that which its number alone decides."""
        values = (
            batch.weights.parameter(site.layer or 0, "W_out") if self.kind == "values" else None
        )
        size = units if values is None else len(values)
        length = batch.tokens.shape[1]
        rows = [
            torch.randn(
                length,
                size,
                generator=self._generator(batch.first + n, site),
                dtype=torch.float32,
            )
            for n in range(len(batch.tokens))
        ]
        noise = torch.stack(rows).to(batch.tokens.device)
        if values is None:
            return noise / units**0.5
        return noise.to(values) @ values / values.norm()

    def _others(
        self, around: Float[Tensor, "batch pos unit"], batch: Batch
    ) -> Float[Tensor, "batch pos unit"]:
        """At each place, what is at a place that counts of another text."""
        counts, rows = batch.counts(self.first).cpu(), []
        for n in range(len(around)):
            others = counts.clone()
            others[n] = False
            places = others.flatten().nonzero()[:, 0]
            generator = self._generator(batch.first + n, Site("embed"))
            chosen = torch.randint(len(places), (around.shape[1],), generator=generator)
            rows.append(around.flatten(0, 1)[places[chosen].to(around.device)])
        return torch.stack(rows)

    def _generator(self, text: int, site: Site) -> torch.Generator:
        layer = 0 if site.layer is None else 1 + site.layer
        return generator_of(self.seed, text, layer, len(site.name))


def _summary(
    found: xr.Dataset,
    sites: Sequence[str],
    layers: Sequence[int],
    sizes: Sequence[float],
    spreads: Sequence[float],
) -> xr.Dataset:
    """Means over sequences, as a grid."""
    shape, dims = (len(sites), len(layers), len(sizes)), ("site", "layer", "size")
    variables: dict[str, Any] = {}
    for name, unit in (("kl", "nats"), ("delta_loss", "nats per token")):
        mean, error = mean_and_error(torch.from_numpy(found[name].values).double())
        variables[name] = variable(dims, mean.view(shape), unit=unit)
        variables[f"{name}_se"] = variable(dims, error.view(shape), unit=unit)
    kl = variables["kl"].values
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.log(kl[..., 1] / kl[..., 0]) / np.log(sizes[1] / sizes[0])
    variables["exponent"] = variable(dims[:2], slope, unit="none")
    spread = np.reshape(spreads, shape[:2])
    variables["spread"] = variable(dims[:2], spread, unit="activation")
    coords = {"site": list(sites), "layer": list(layers), "size": list(sizes)}
    return xr.Dataset(variables, coords)


def _tolerated(kl: xr.DataArray, level: float) -> xr.DataArray:
    """The size at which KL first reaches a level, between two sizes on logarithmic axes."""
    sizes, values = np.log(kl["size"].values), np.log(kl.values.clip(1e-30))
    wanted, found = np.log(level), np.full(kl.shape[:2], np.nan)
    for place in np.ndindex(found.shape):
        line = values[place]
        reached = (line >= wanted).nonzero()[0]
        if len(reached) and reached[0]:
            pair = slice(reached[0] - 1, reached[0] + 1)
            found[place] = np.exp(np.interp(wanted, line[pair], sizes[pair]))
    about = {"unit": "share of the spread", "long_name": f"size of noise that costs {level:g} nats"}
    return xr.DataArray(found, dims=("site", "layer"), attrs=about)
