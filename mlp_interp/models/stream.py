"""What a model's stream must be for anything to be measured on it."""

from jaxtyping import Float
from torch import Tensor

__all__ = ["check_stream"]


def check_stream(final: Float[Tensor, "*rest d_model"]) -> None:
    """Refuse a final stream, prompt by prompt, with NaN or infinity.

    Raises:
        ValueError: There are some; the text says in which prompt.

    Example:
        >>> import torch
        >>> check_stream(torch.tensor([[[0.0, torch.nan]]]))
        Traceback (most recent call last):
        ValueError: the final stream of prompt 0 is not finite; wanted a finite number: ...
    """
    if final.sum().isfinite():  # a single pass
        return
    wrong = (~final.isfinite().flatten(1).all(1)).nonzero()[:, 0].tolist()
    if wrong:
        raise ValueError(
            f"the final stream of prompt {wrong[0]} is not finite; wanted a finite number: "
            "check_model says whether the weights are finite"
        )
