"""What evidence for a neuron comes to, in three questions with their answers."""

import numpy as np
import xarray as xr

from mlp_interp.results import variable

__all__ = ["verdict"]


def verdict(
    found: xr.Dataset,
    *,
    summary: str = "max",
    measure: str = "delta_loss",
    auroc: float = 0.9,
    errors: float = 2.0,
) -> xr.Dataset:
    """Is the neuron *about* what the positive texts have? Three tests, and all of them together.

    1. It tells the texts apart: its AUROC is above a threshold.
    2. Its loss is specific: the difference between positive and negative texts is larger than that
       of every control, the least p that so many controls allow.
    3. Its loss is there: the effect on positive texts is larger than so many standard errors.

    A neuron that passes the first test alone reads the feature and is not needed for it: others
    know it, too. A verdict is about the texts it was reached on; texts of another length may give
    another. The thresholds are conventions, and the numbers stand beside them.

    Args:
        found: What `verify_neuron` returns.
        summary: ``"max"`` or ``"mean"`` of a text's activations.
        measure: ``"delta_loss"``, ``"kl"`` or ``"promoted"``.
        auroc: What the AUROC must be above.
        errors: How many standard errors the effect must be larger than.

    Returns:
        Numbers without dimensions: ``auroc``, ``specific_p``, ``effect``, ``effect_se``; and flags:
        ``separates``, ``specific``, ``beyond_error``, ``is_about``, which is all three. What could
        not be measured (NaN) passes no test.

    Raises:
        ValueError: `found` is no evidence for a neuron, has no controls, or has no such summary or
            measure; or a threshold is out of range.

    Example:
        >>> from mlp_interp import load_model, neurons
        >>> texts = (
        ...     ["Il aime le pain.", "Elle voit le chat."],
        ...     ["He sat.", "They like the bread."],
        ... )
        >>> evidence = neurons.verify_neuron(load_model("nano"), "L0N433", *texts, controls=4)
        >>> bool(verdict(evidence).separates)
        True
    """
    _check(found, summary, measure, auroc, errors)
    controls = found.sizes["component"] - 1
    told = float(found["auroc"].sel(summary=summary).isel(component=0))
    lost = found.sel(measure=measure)
    own = lost.sel(where="positive").isel(component=0)
    effect, error = float(own["effect"]), float(own["effect_se"])
    p = float(lost["p_value"].sel(where="difference"))
    tests = {
        "separates": told > auroc,
        "specific": p < 1.5 / (1 + controls),
        "beyond_error": effect > errors * error,
    }
    unit = str(lost["measure_unit"].item())
    told_by = {
        "auroc": (told, "probability", f"AUROC of the {summary} activation"),
        "specific_p": (p, "probability", f"p of the difference in {measure} against controls"),
        "effect": (effect, unit, f"{measure} on positive texts without the neuron"),
        "effect_se": (error, unit, "standard error of the effect"),
        "separates": (tests["separates"], "flag", "the activation tells the texts apart"),
        "specific": (tests["specific"], "flag", "no control has so large a difference"),
        "beyond_error": (tests["beyond_error"], "flag", "the effect is larger than its error"),
        "is_about": (all(tests.values()), "flag", "all three"),
    }
    return xr.Dataset(
        {name: variable((), x, unit=unit, long_name=n) for name, (x, unit, n) in told_by.items()},
        attrs={
            **found.attrs,
            "analysis": "verdict on a neuron",
            "tests": f"AUROC of the {summary} above {auroc:g}; p of the {measure} against "
            f"{controls} controls at its least; {measure} above {errors:g} standard errors",
        },
    )


def _check(found: xr.Dataset, summary: str, measure: str, auroc: float, errors: float) -> None:
    held = getattr(found, "variables", {})
    if not {"auroc", "p_value", "effect", "effect_se"} <= {*held}:
        raise ValueError(
            f"found={type(found).__name__}; wanted the Dataset of neurons.verify_neuron"
        )
    for name, value, dim in (("summary", summary, "summary"), ("measure", measure, "measure")):
        known = [str(one) for one in found[dim].values]
        if value not in known:
            raise ValueError(f"{name}={value!r}; wanted one of {known}")
    if found.sizes["component"] < 2:
        raise ValueError("found has no controls; wanted verify_neuron(..., controls=16)")
    if not 0 <= auroc <= 1:
        raise ValueError(f"auroc={auroc!r}; wanted a number from 0 to 1")
    if not (np.isfinite(errors) and errors >= 0):
        raise ValueError(f"errors={errors!r}; wanted a number of at least 0")
